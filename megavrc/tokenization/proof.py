"""Do the ids of a dataset belong to its videos? A few samples are cut from them, encoded and decoded again.

The ids must be those of their own pixels rather than those of mistaken ones (channels swapped, mirrored, upside down,
a latent frame early or late, another clip), and must not decode to something much nearer to mistaken ones. Both are
relative: a weak tokenizer passes, and where two pictures look alike (a static clip, a grey one) neither is preferred.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from megavrc.data.dataset import TokenDataset
from megavrc.errors import UserError
from megavrc.progress import progress
from megavrc.tokenization.cut import cut
from megavrc.tokenization.encode import Sample, samples
from megavrc.tokenization.plan import Plan, check_decoder, encode
from megavrc.tokenizers import OmniTokenizer
from megavrc.video.errors import VideoError
from megavrc.video.manifest import Entry

Frames = NDArray[np.uint8]  # [T, H, W, 3]
SAMPLES = 8
SURE = 0.95  # share of a sample's ids that are found again: other machines change a few
FOUND = 0.5  # the least such share
MARGIN = 0.1  # of that share, by which mistaken pixels must be ahead of the own ones
NEARER = 0.7  # of the squared error to the own pixels: how near mistaken ones must be


@dataclass(frozen=True)
class Compared:
    """A sample, decoded, and what its video gives today.

    Attributes:
        decoded: frames of the stored ids.
        frames: what the ids should come from; None if the video is not at hand.
        same: share of the ids that encoding `frames` gives again.
        problem: why the video at hand gives no such sample any more.
    """

    key: str
    label: str
    ids: NDArray[np.int64]
    decoded: Frames
    frames: Frames | None = None
    same: float = 0.0
    problem: str | None = None

    @property
    def original(self) -> Frames | None:
        """The frames that `decoded` shows again."""
        return None if self.frames is None else self.frames[: len(self.decoded)]


class Proof(NamedTuple):
    """The number of samples that were compared, their faults, and the reason if none were."""

    samples: int
    problems: list[str]
    not_done: str | None = None

    @property
    def record(self) -> dict[str, int | str]:
        """The record that dataset.json keeps."""
        return {"samples": self.samples, **({"not_done": self.not_done} if self.not_done else {})}


def load_tokenizer(plan: Plan, tokenizer: Path | None) -> OmniTokenizer | str:
    """The tokenizer of a plan, or why there is none here."""
    if plan.decoder is None:
        return "the plan does not name its decoder"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        check_decoder(plan.out, plan.decoder)
        loaded = OmniTokenizer.from_checkpoint(
            tokenizer or plan.tokenizer_path, device, plan.settings.precision
        )
    except UserError as error:
        return str(error)
    if loaded.sha256 != plan.tokenizer["sha256"]:
        return f"{tokenizer or plan.tokenizer_path}: not the tokenizer of the plan"
    return loaded


def prove(plan: Plan, kind: str, tokenizer: OmniTokenizer | str, count: int) -> Proof:
    """Compare `count` samples, evenly spread over a finished dataset, with their videos.

    Args:
        tokenizer: that of the plan, or why it is not here.
    """
    if isinstance(tokenizer, str) or count < 1:
        return Proof(0, [], tokenizer if isinstance(tokenizer, str) else "not asked for")
    dataset = TokenDataset(plan.out / kind, plan.tokenizer["sha256"], split=None)
    compared = compare_samples(dataset, spread(len(dataset), count), tokenizer, plan)
    found = [item for item in compared if item.frames is not None or item.problem]
    if not found:
        return Proof(0, [], f"the videos are not at {plan.root}")
    return Proof(len(found), [f"{dataset.folder}: {problem}" for problem in problems(compared, tokenizer)])


def spread(length: int, count: int) -> list[int]:
    """`count` of `length` indices, evenly spread."""
    chosen: list[int] = np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()
    return chosen


def compare_samples(
    dataset: TokenDataset, chosen: list[int], tokenizer: OmniTokenizer, plan: Plan | None
) -> list[Compared]:
    """Decode some samples, and cut and encode them again where there is a plan and their videos are at hand."""
    read = [dataset.read(index) for index in chosen]
    sources = {str(fields["source"]) for _, fields in read}
    planned = (entry for shard in plan.sources(plan.units).values() for entry in shard) if plan else ()
    entries = {entry["id"]: entry for entry in planned if entry["id"] in sources}
    compared = []
    for index, (ids, fields) in progress(zip(chosen, read, strict=True), "compare", len(read)):
        key, ids = dataset.key(index), ids.astype(np.int64)
        decoded = tokenizer.decode(torch.from_numpy(ids[None]))[0].cpu().numpy()
        item = Compared(key, fields.get("caption") or key, ids, decoded)
        entry = entries.get(fields["source"])
        compared.append(_cut_again(item, plan, entry, tokenizer) if plan and entry else item)
    return compared


def _cut_again(item: Compared, plan: Plan, entry: Entry, tokenizer: OmniTokenizer) -> Compared:
    try:
        cuts = cut(plan.settings, plan.root / entry["path"], entry)
    except VideoError as error:
        there = error.stage != "io"
        return Compared(
            item.key, item.label, item.ids, item.decoded, problem=f"{error}, today" if there else None
        )
    made: list[Sample] = [sample for kind in samples(plan.settings, entry, cuts) for sample in kind]
    frames = next((sample.frames_THWC for sample in made if sample.key == item.key), None)
    if frames is None:
        problem = f"{entry['path']}: gives other samples today, not {item.key}"
        return Compared(item.key, item.label, item.ids, item.decoded, problem=problem)
    return Compared(item.key, item.label, item.ids, item.decoded, frames, _same(tokenizer, frames, item.ids))


def problems(compared: list[Compared], tokenizer: OmniTokenizer) -> list[str]:
    """A line for each sample whose ids are not those of its pixels, else one for mistaken pixels that are nearer."""
    found = [item.problem for item in compared if item.problem]
    errors: dict[str, list[float]] = {}
    for item, mistakes in _with_mistakes(compared):
        found += _foreign(item, mistakes, tokenizer)
        own = _error(item.decoded, item.original)
        for name, frames in mistakes.items():
            errors.setdefault(name, [0.0, 0.0])
            errors[name][0] += own
            errors[name][1] += _error(item.decoded, frames[: len(item.decoded)])
    ratios = {name: mistaken / own for name, (own, mistaken) in errors.items() if own}
    nearest = min(ratios, key=lambda name: ratios[name], default=None)
    if not found and nearest and ratios[nearest] < NEARER:
        found = [f"what its ids decode to is nearer to {nearest} than to its videos"]
    return found


def _with_mistakes(compared: list[Compared]) -> Iterator[tuple[Compared, dict[str, Frames]]]:
    """The samples whose videos are at hand, each with pixels that a mistaken program would have taken."""
    there = [item for item in compared if item.frames is not None]
    for number, item in enumerate(there):
        frames = item.frames
        assert frames is not None
        mistakes = {
            "pixels with red and blue swapped": frames[..., ::-1],
            "mirrored pixels": frames[:, :, ::-1],
            "pixels upside down": frames[:, ::-1],
        }
        if len(item.ids) > 1:
            step = (len(frames) - 1) // (len(item.ids) - 1)
            mistakes["pixels of a latent frame later"] = np.roll(frames, -step, axis=0)
            mistakes["pixels of a latent frame earlier"] = np.roll(frames, step, axis=0)
        other = there[(number + 1) % len(there)].frames
        if other is not None and other is not frames and other.shape == frames.shape:
            mistakes["pixels of another sample"] = other
        yield item, mistakes


def _foreign(item: Compared, mistakes: dict[str, Frames], tokenizer: OmniTokenizer) -> Iterator[str]:
    """Whether the ids are rather those of mistaken pixels, or of none that are known."""
    if item.same >= SURE:
        return
    shares = {name: _same(tokenizer, frames, item.ids) for name, frames in mistakes.items()}
    name = max(shares, key=lambda name: shares[name])
    if shares[name] > item.same + MARGIN:
        yield f"sample {item.key}: {item.same:.0%} of its ids are found again, from {name} {shares[name]:.0%}"
    elif item.same < FOUND:
        yield f"sample {item.key}: {item.same:.0%} of its ids are found again; {FOUND:.0%} are the least"


def _same(tokenizer: OmniTokenizer, frames: Frames, ids: NDArray[np.int64]) -> float:
    again = encode(tokenizer, np.ascontiguousarray(frames)[None])[0, : len(ids)]
    return float((again == ids).mean())


def _error(decoded: Frames, frames: Frames | None) -> float:
    assert frames is not None
    return float(np.mean((decoded.astype(np.float32) - frames) ** 2))
