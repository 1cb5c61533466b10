"""`megavrc evaluate clipsim`: whether clips show what their captions say, by the user's CLIP."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megavrc.errors import UserError
from megavrc.evaluation.clip_model import ClipModel
from megavrc.evaluation.clipsim import Mode, measure_clipsim
from megavrc.evaluation.statistics import MetricReport
from megavrc.generation.clip_sources import open_source
from megavrc.results import publish_tables, result
from megavrc.user_files import resolve

FEWEST_DRAWS = 20


def clipsim(
    clips: Path,
    against: Path | None = None,
    real: Path | None = None,
    clip: Path | None = None,
    mode: Mode = "text",
    planned: Path | None = None,
    frames: int = 16,
    stride: int = 1,
    draws: int = 1000,
    seed: int = 0,
    batch: int = 8,
    device: str = "cpu",
    json: Path | None = None,
) -> None:
    """CLIPSIM: cosine of each clip's frames with its caption, by a CLIP model that you bring.

    Each value stands beside what the captions of other clips get, with intervals. Clips are given as to megavrc
    evaluate fvd; their captions come from their list, from --planned or from a manifest (of one caption a video or of
    all: megavrc prepare_dataset msrvtt --captions).

    Args:
        clips: what is measured.
        against: other clips of the same captions; the difference is measured caption for caption.
        real: real clips: with --mode text they are measured beside, with --mode video frames are compared with theirs.
        clip: folder of the CLIP model (default: $MEGAVRC_CLIP).
        mode: compare frames with captions, or with the frames of real clips.
        planned: what must be among the clips, or be generated: JSON lines with id, caption or label.
        frames: of each clip that count.
        stride: step between them.
        draws: of the bootstrap.
        seed: bootstraps and generates.
        batch: clips generated at once.
        device: cpu or cuda.
        json: write the result there.
    """
    check_least(frames=(frames, 1), stride=(stride, 1), batch=(batch, 1), draws=(draws, FEWEST_DRAWS))
    model = ClipModel(resolve("clip", clip), device)
    true = open_source(real) if real else None
    one, other = (
        open_source(given, planned, true, seed, batch, device) if given else None
        for given in (clips, against)
    )
    assert one is not None
    report = measure_clipsim(one, model, other, true, mode, frames, stride, draws, seed)
    publish_report("clipsim", report, {"clips": clips, "against": against, "real": real}, json, device)


def check_least(**values: tuple[int, int]) -> None:
    """Refuse options below their least value."""
    for name, (value, least) in values.items():
        if value < least:
            raise UserError(f"--{name}: {value}, at least {least}")


def publish_report(
    name: str, report: MetricReport, config: Mapping[str, Any], json: Path | None, device: str = "cpu"
) -> None:
    """Print a report's remarks and tables; write it where `json` says."""
    for line in report.lines:
        print(f"note: {line}")
    given = {key: str(value) for key, value in config.items() if value is not None}
    content = result(f"evaluate {name}", given, report.cases, report.metrics, report.protocol, device)
    publish_tables(content, json)
