"""`megavrc evaluate clipsim`, `drift`, `redundancy`, `export`: commands on clips, whoever made them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megavrc.errors import UserError, check_keep, check_least
from megavrc.evaluation.clip_model import ClipModel
from megavrc.evaluation.clip_source import Frames, frame_range, read_at, source_facts, wholes
from megavrc.evaluation.clipsim import Mode, measure_clipsim
from megavrc.evaluation.drift import SHARES, measure_drift
from megavrc.evaluation.export_clips import Layout, export_clips
from megavrc.evaluation.redundancy import Encode, measure_redundancy, outlined
from megavrc.evaluation.statistics import MetricReport
from megavrc.files import check_picture_place
from megavrc.generation.clip_sources import open_source
from megavrc.generation.evaluate_tokens import report_tokens, token_grids
from megavrc.generation.folder import load_folder
from megavrc.hardware import check_device
from megavrc.results import check_result_place, publish_tables, result
from megavrc.tokenizers import OmniTokenizer
from megavrc.user_files import resolve
from megavrc.video import MAX_FPS, MIN_FPS, write_png
from megavrc.video.h264 import CRF

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
    device: str = "auto",
    json: Path | None = None,
) -> None:
    """CLIPSIM: cosine of each clip's frames with its caption, by a CLIP model that you bring.

    Each value stands beside what the captions of other clips get, with intervals. Clips are given as for megavrc
    evaluate fvd; their captions come from their list, from --planned or from a manifest (of one caption a video or of
    all: megavrc prepare_dataset msrvtt --captions).

    Args:
        clips: clips to measure.
        against: other clips of the same captions; the difference is measured caption for caption.
        real: real clips: with --mode text they are measured too, with --mode video the frames are compared
            with theirs.
        clip: folder of the CLIP model (default: $MEGAVRC_CLIP).
        mode: compare frames with captions, or with the frames of real clips.
        planned: list of the clips that must be there, or be generated: JSON lines with id, caption or label.
        frames: frames of each clip that count.
        stride: step between these frames.
        draws: draws of the bootstrap.
        seed: seed of the bootstrap and of generated clips.
        batch: clips generated at once.
        device: `cpu` or `cuda`; auto is cuda where there is one.
        json: file to write the result to.
    """
    check_outputs(json)
    device = str(check_device(device))
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


def drift(
    clips: Path,
    real: Path | None = None,
    planned: Path | None = None,
    draws: int = 1000,
    seed: int = 0,
    batch: int = 8,
    device: str = "auto",
    json: Path | None = None,
) -> None:
    """Clips that freeze, loop, fade or blur, as shares; change, contrast and sharpness by frame. Pixels alone decide.

    Clips are given as for megavrc evaluate fvd. --json also holds the curves, NAME/FRAME.

    Args:
        clips: clips to measure.
        real: real clips to measure too.
        planned: list of the clips that must be there, or be generated: JSON lines with id, caption or label.
        draws: draws of the bootstrap.
        seed: seed of the bootstrap and of generated clips.
        batch: clips generated at once.
        device: `cpu` or `cuda`; auto is cuda where there is one.
        json: file to write the result to.
    """
    check_outputs(json)
    device = str(check_device(device))
    check_least(draws=(draws, FEWEST_DRAWS), batch=(batch, 1))
    true = open_source(real) if real else None
    source = open_source(clips, planned, true, seed, batch, device)
    report = measure_drift(source, true, draws, seed)
    config = {"clips": clips, "real": real, "planned": planned}
    publish_report("drift", report, config, json, device, SHARES)


def redundancy(
    clips: Path,
    tokenizer: Path | None = None,
    tokens: Path | None = None,
    keep: list[float] | None = None,
    planned: Path | None = None,
    frames: int = 5,
    stride: int = 1,
    size: int | None = None,
    crf: int = CRF,
    draws: int = 1000,
    seed: int = 0,
    device: str = "auto",
    picture: Path | None = None,
    json: Path | None = None,
) -> None:
    """Measure how much of a clip its earlier frames hold: bytes of H.264, unchanged blocks of pixels, equal tokens.

    H.264 as one I frame and P frames, and by the paper's literal command, which also makes B frames: bytes of each
    frame's packet and of its picture data alone. Clips are given as for megavrc evaluate fvd.

    Args:
        clips: clips to measure.
        tokenizer: folder or .ckpt of a video tokenizer, whose ids of neighbouring latent frames are compared.
        tokens: converted folder: measure instead how few of its tokens the later latent frames need, with
            methods of token reduction and its own compressor (docs/token_redundancy.md). Takes 1 + 4k frames.
        keep: shares of the later tokens that methods leave (default: 0.5 0.25 0.0625).
        planned: list of the clips that must be there: JSON lines with id.
        frames: frames of each clip, from its first on.
        stride: step between these frames.
        size: side that clips are resized to (short side, then the centre), as most tokenizers need; with --tokens it
            is the model's (default: as they are).
        crf: x264 quality, 1 (best) to 51.
        draws: draws of the bootstrap.
        seed: seed of the bootstrap.
        device: device of the tokenizer, `cpu` or `cuda`; auto is cuda where there is one.
        picture: picture to write (PNG): frames of the first clip, with what stays outlined in orange.
        json: file to write the result to.
    """
    check_outputs(json, picture)
    check_least(frames=(frames, 2), stride=(stride, 1), crf=(crf, 1), draws=(draws, FEWEST_DRAWS))
    check_least(size=(8 if size is None else size, 8))
    device = str(check_device(device))
    if crf > 51:
        raise UserError(f"--crf: {crf}, at most 51")
    check_keep(*keep or ())
    if tokens:
        folder = load_folder(tokens, device, "fp32")
        source = open_source(clips, planned, seed=seed, device=device)
        grids = token_grids(source, folder, frames, stride)
        shares = [0.5, 0.25, 0.0625] if keep is None else keep
        report = report_tokens(folder, grids, wholes(source), shares, draws, seed)
        report.protocol["sources"] = [source_facts(source)]
        config = {"clips": clips, "tokens": tokens, "model": folder.identity()}
        return publish_report("redundancy", report, config, json, device)
    video = OmniTokenizer.from_checkpoint(tokenizer, device) if tokenizer else None
    source = open_source(clips, planned, seed=seed, device=device)
    encode = encoder(video) if video else None
    report = measure_redundancy(source, frames, stride, crf, encode, draws, seed, size)
    if picture:
        write_png(picture, outlined(read_at(source, 0, frame_range(frames, stride), size)))
    if video:
        report.protocol["tokenizer"] = video.sha256
    publish_report("redundancy", report, {"clips": clips, "tokenizer": tokenizer}, json, device)


def encoder(video: OmniTokenizer) -> Encode:
    """A tokenizer as a function from a clip to its ids; what is over 1 + 4k frames is left out."""

    def encode(frames_THWC: Frames) -> NDArray[np.int64]:
        patch = video.config.temporal_patch
        whole = len(frames_THWC) - (len(frames_THWC) - 1) % patch
        if whole <= patch:
            raise UserError(f"--frames: {len(frames_THWC)}, two latent frames take {1 + patch}")
        try:
            ids = video.encode(torch.from_numpy(np.ascontiguousarray(frames_THWC[None, :whole])))
        except ValueError as error:
            raise UserError(f"clips that the video tokenizer does not take: {error}") from None
        return ids[0].cpu().numpy()

    return encode


def export(
    clips: Path,
    out: Path,
    layout: Layout,
    planned: Path | None = None,
    fps: float = 8,
    seed: int = 0,
    batch: int = 8,
    device: str = "auto",
) -> None:
    """Write clips as other suites read them: vbench ({prompt}-{index}.mp4), frames (folders of PNG) or npz.

    Clips are given as for megavrc evaluate fvd.

    Args:
        clips: clips to export.
        out: a folder, or FILE.npz; must not be there yet.
        layout: layout of the files.
        planned: list of the clips that must be there, or be generated: JSON lines with id, caption or label.
        fps: frames a second of mp4 files.
        seed: seed of generated clips.
        batch: clips generated at once.
        device: `cpu` or `cuda`; auto is cuda where there is one.
    """
    check_least(batch=(batch, 1))
    device = str(check_device(device))
    if not MIN_FPS <= fps <= MAX_FPS:
        raise UserError(f"fps: {fps} is not between {MIN_FPS:g} and {MAX_FPS:g}")
    count = export_clips(open_source(clips, planned, None, seed, batch, device), layout, out, fps)
    print(f"{out}: {count} clips")


def check_outputs(json: Path | None, picture: Path | None = None) -> None:
    """Refuse, before anything is measured, to replace another file than a result or a PNG."""
    check_result_place(json)
    if picture:
        check_picture_place(picture, [".png"])


def publish_report(
    name: str,
    report: MetricReport,
    config: Mapping[str, Any],
    json: Path | None,
    device: str = "cpu",
    columns: Sequence[str] = (),
) -> None:
    """Print a report's remarks and tables (these columns, default all); write it where `json` says."""
    for line in report.lines:
        print(f"note: {line}")
    given = {key: str(value) for key, value in config.items() if value is not None}
    content = result(f"evaluate {name}", given, report.cases, report.metrics, report.protocol, device)
    publish_tables(content, json, columns)
