"""`megavrc evaluate copying`: does a model copy the frame before, or predict what changes?"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from megavrc.errors import UserError, check_least
from megavrc.evaluation.clip_source import ClipSource, Part, first, frame_range, source_facts, wholes
from megavrc.evaluation.copying import measure_copying
from megavrc.evaluation.statistics import MetricReport
from megavrc.generation.clip_sources import open_source
from megavrc.generation.evaluate_clips import (
    FEWEST_DRAWS,
    check_outputs,
    encoder,
    publish_report,
)
from megavrc.generation.folder import Folder, load_folder
from megavrc.hardware import check_device
from megavrc.model import VRC
from megavrc.model.condition import Condition
from megavrc.progress import progress


def copying(
    model: Path,
    real: Path,
    n: int | None = None,
    stride: int = 1,
    draws: int = 1000,
    seed: int = 0,
    device: str = "auto",
    json: Path | None = None,
) -> None:
    """Bits that true tokens cost a model where pixels change and where they do not, with a true and a still history.

    Teacher-forced on real clips, so that no sampling is involved. A model that copies the frame before pays little
    where nothing changes and much where something does.

    Args:
        model: converted folder.
        real: clips that it was not trained on, with captions or labels: manifest.jsonl:SPLIT, or as for
            megavrc evaluate fvd.
        n: number of clips, the first ones (default: all).
        stride: step between the frames of a clip, as the model was trained.
        draws: draws of the bootstrap.
        seed: seed of the bootstrap.
        device: `cpu` or `cuda`; auto is cuda where there is one.
        json: file to write the result to.
    """
    check_outputs(json)
    check_least(n=(1 if n is None else n, 1), stride=(stride, 1), draws=(draws, FEWEST_DRAWS))
    device = str(check_device(device))
    source = open_source(real, device=device)
    report = measure_model_copying(model, source, n, draws, seed, device, stride)
    publish_report("copying", report, {"model": model, "real": real}, json, device)


def measure_model_copying(
    model: Path, source: ClipSource, n: int | None, draws: int, seed: int, device: str, stride: int = 1
) -> MetricReport:
    """Scores of a converted folder on the first `n` real clips (None: all), every `stride`-th frame.

    Raises:
        UserError: a model of images; clips without what it is asked for, or that cannot be read.
    """
    folder = load_folder(model, device)
    if not folder.model.config.frames:
        raise UserError(f"{model}: a model of images has no later frames")
    count = len(source.clips) if n is None else min(n, len(source.clips))
    rows = source.clips[:count]
    length = 1 + folder.model.config.frames * folder.video_tokenizer.config.temporal_patch
    by_class = folder.model.config.condition.is_class
    if silent := [row.key for row in rows if (row.label if by_class else row.prompt) is None]:
        what = "label" if by_class else "caption"
        raise UserError(f"{source.name}: {len(silent)} clips have no {what} ({first(silent)})")
    side = folder.pipeline.side
    wanted = frame_range(length, stride)
    clips = [source.read(index, wanted, side) for index in progress(range(count), source.name)]
    conditions = [(row.label if by_class else row.prompt) for row in rows]

    def bits(index: int, history: NDArray[np.int64], target: NDArray[np.int64]) -> NDArray[np.float64]:
        return token_bits(folder, conditions[index], history, target)

    measured = Part(source, range(count))
    report = measure_copying(
        clips, encoder(folder.video_tokenizer), bits, str(model), draws, seed, wholes(measured)
    )
    facts = source_facts(measured)
    report.protocol.update(model=folder.identity(), stride=stride, sources=[facts], real=facts)
    return report


@torch.inference_mode()
def token_bits(
    folder: Folder, what: str | int | None, history: NDArray[np.int64], target: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Bits of each later token of `target` [t, h, w], the model seeing `history` [t, h, w] before it: [t - 1, h, w].

    The tokens before it in its own frame, which `prediction: token` also sees, are those of the target.
    """
    vrc = folder.model
    at = vrc.tokens.weight.device
    by_class = vrc.config.condition.is_class
    condition = folder.condition(label=int(what or 0)) if by_class else folder.condition(str(what))
    found = np.empty(target[1:].shape)
    if vrc.config.prediction == "token":
        for k in range(1, len(target)):  # its frame is both context and target
            mixed = np.concatenate([history[:k], target[k : k + 1], history[k + 1 :]])
            found[k - 1] = _bits(vrc, mixed, target, condition.to(at))[k - 1]
        return found
    return _bits(vrc, history, target, condition.to(at))


def _bits(
    vrc: VRC, history: NDArray[np.int64], target: NDArray[np.int64], condition: Condition
) -> NDArray[np.float64]:
    ids = torch.from_numpy(np.ascontiguousarray(history[None])).to(vrc.tokens.weight.device)
    logits = vrc(ids, condition, logits=True).logits_later[0].float()  # [F, N, V]
    wanted = torch.from_numpy(np.ascontiguousarray(target[1:])).flatten(1).to(logits.device)
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
    found: NDArray[np.float64] = (nats / np.log(2)).reshape(target[1:].shape).double().cpu().numpy()
    return found
