"""Training of FD-self on the data at hand, and the trial that it must pass before it is used.

It learns what the list of clips tells of them (words of captions, labels, attributes) and whether a clip is as it was,
or its frames are blurred, in no order or run backward. Then clips that it never saw must lie as anybody would order
them: real ones nearest, reconstructed ones behind, and behind these all that are blurred, frozen, reversed, shuffled or
torn.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from megavrc.errors import UserError
from megavrc.evaluation.clip_files import FileClips
from megavrc.evaluation.clip_source import ClipSource, Frames
from megavrc.evaluation.distances import metric_names
from megavrc.evaluation.features import Features
from megavrc.evaluation.self_network import COPIES, ClipConvolutions, SelfNetwork
from megavrc.evaluation.statistics import (
    Estimate,
    MetricReport,
    as_metric,
    difference,
    distance_estimates,
    frechet_distance,
)
from megavrc.hardware import check_device
from megavrc.progress import progress
from megavrc.results import case, median_of

Clips = NDArray[np.uint8]  # [N, T, H, W, 3]
Targets = NDArray[np.float32]  # [N, words]

RARE = 0.05  # share of clips from which on a word, or its absence, teaches something
BATCH = 32  # clips whose features are computed at once
LEARNING_RATE = 2e-3
BLUR = 1 / 40  # standard deviation, of the width
BLURS = 0.5, 2.0  # of that, in training
TORN = 1 / 8  # of the width


def _blurred(frames: Frames, rng: np.random.Generator, strength: float = 1.0) -> Frames:
    side = strength * BLUR * frames.shape[2]
    return gaussian_filter(frames.astype(np.float32), (0, side, side, 0)).round().astype(np.uint8)


def _shuffled(frames: Frames, rng: np.random.Generator) -> Frames:
    return frames[rng.permutation(len(frames))]


def _torn(frames: Frames, rng: np.random.Generator) -> Frames:
    """From its second frame on, a clip's lower part is moved to the side."""
    made = frames.copy()
    row = int(rng.integers(frames.shape[1] // 4, 3 * frames.shape[1] // 4))
    made[1:, row:] = np.roll(frames[1:, row:], max(1, round(TORN * frames.shape[2])), axis=2)
    return made


Fault = Callable[[Frames, np.random.Generator], Frames]
RUNGS: dict[str, Fault] = {
    "blurred": _blurred,
    "frozen": lambda frames, rng: np.repeat(frames[:1], len(frames), axis=0),
    "reversed": lambda frames, rng: frames[::-1],
    "shuffled": _shuffled,
    "torn": _torn,
}


def with_fault(clips_NTHWC: Clips, rung: str, seed: int = 0) -> Clips:
    """The clips with a fault of RUNGS."""
    rng = np.random.default_rng(seed)
    return np.stack([RUNGS[rung](frames, rng) for frames in clips_NTHWC])


# --- training --------------------------------------------------------------------------------------------------


def what_is_told(source: ClipSource, chosen: Sequence[int]) -> tuple[list[str], Targets]:
    """The words that the list of a source gives its clips, and which clip has which, bool [N, words].

    Raises:
        UserError: it tells nothing in which its clips differ.
    """
    entries = source.entries if isinstance(source, FileClips) else None
    said = []
    for index in chosen:
        clip = source.clips[index]
        words = {f"caption {word}" for word in re.findall(r"\w+", (clip.prompt or "").lower())}
        words |= set() if clip.label is None else {f"label {clip.label}"}
        words |= set(_leaves("", entries[index].get("attributes"))) if entries else set()
        said.append(words)
    counts = Counter(word for words in said for word in words)
    kept = sorted(word for word, count in counts.items() if RARE <= count / len(said) <= 1 - RARE)
    if not kept:
        raise UserError(
            f"{source.name}: no captions, labels or attributes in which its clips differ: there is nothing to learn"
        )
    return kept, np.array([[word in words for word in kept] for words in said], np.float32)


def _leaves(name: str, value: Any) -> Iterator[str]:
    """Attributes as words; which of several objects has one is not said."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(name, inner)
    elif not isinstance(value, float):
        yield f"{name} {value}"


WAYS: dict[str, Fault] = {  # that clips are shown in training, and told apart
    "as it is": lambda frames, rng: frames,
    "blurred": lambda frames, rng: _blurred(frames, rng, rng.uniform(*BLURS)),
    "shuffled": _shuffled,
    "reversed": RUNGS["reversed"],
}


def train_convolutions(
    clips_NTHWC: Clips, targets: Targets, steps: int, batch: int = 32, seed: int = 0, device: str = "cpu"
) -> ClipConvolutions:
    """Train the network on clips and what is told of them.

    As many clips of a batch are shown in each of WAYS; only those that are as they were are asked for what is told.
    """
    rng, at = np.random.default_rng(seed), check_device(device)
    ways = list(WAYS.values())
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network = ClipConvolutions(targets.shape[1] + len(ways)).to(at).train()
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    last = [float("nan")]
    for _ in progress(range(steps), "train", note=lambda: f"loss {last[0]:.3f}"):
        rows = rng.integers(len(clips_NTHWC), size=batch)
        shown = rng.integers(len(ways), size=batch)
        pairs = zip(rows, shown, strict=True)
        clips = np.stack([ways[way](clips_NTHWC[row], rng) for row, way in pairs])
        answers = network.answers(network(torch.from_numpy(clips).to(at)))
        loss = F.cross_entropy(answers[:, -len(ways) :], torch.from_numpy(shown).to(at))
        if (plain := shown == 0).any():
            told = torch.from_numpy(targets[rows[plain]]).to(at)
            loss = loss + F.binary_cross_entropy_with_logits(answers[plain, : -len(ways)], told)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        last[0] = loss.item()
    return network.eval()


def self_network(trained: ClipConvolutions, real_NTHWC: Clips, seed: int = 0) -> SelfNetwork:
    """The trained network with its copies of random weights, their features scaled to variance 1 over real clips."""
    answers, at = trained.answers.out_features, trained.features.weight.device
    networks = [trained]
    with torch.random.fork_rng([]):
        for copy in range(COPIES):
            torch.manual_seed(seed + 1 + copy)
            networks.append(ClipConvolutions(answers).to(at).eval())
    frames, size = real_NTHWC.shape[1:3]
    as_they_are = np.zeros(1, np.float32), np.ones(1, np.float32)
    plain = features_of(SelfNetwork(networks, *as_they_are, frames, size), real_NTHWC)
    return SelfNetwork(networks, plain.mean(axis=0), plain.std(axis=0).clip(1e-8), frames, size)


def features_of(network: SelfNetwork, clips_NTHWC: Clips) -> Features:
    """Features of many clips, [N, d]."""
    parts = [network(clips_NTHWC[start : start + BATCH]) for start in range(0, len(clips_NTHWC), BATCH)]
    return np.concatenate(parts)


# --- trial -----------------------------------------------------------------------------------------------------


def try_network(
    network: SelfNetwork,
    reference_NTHWC: Clips,
    real_NTHWC: Clips,
    reconstructed_NTHWC: Clips | None = None,
    draws: int = 200,
    seed: int = 0,
    reversible: bool = False,
) -> MetricReport:
    """Distances of real, reconstructed and faulty clips from other real ones; facts `wrong` of the protocol say which
    are not shown to lie where they should.

    Args:
        reference_NTHWC, real_NTHWC: real clips that the network never saw.
        reconstructed_NTHWC: the latter through a video tokenizer.
        reversible: clips are as probable backward as forward: where reversed ones lie is measured, and not judged.
    """
    sets = {"real": real_NTHWC}
    if reconstructed_NTHWC is not None:
        sets["reconstructed"] = reconstructed_NTHWC
    known = features_of(network, reference_NTHWC)
    made = {name: features_of(network, clips) for name, clips in sets.items()}
    for rung in progress(RUNGS, "trial"):
        made[rung] = features_of(network, with_fault(real_NTHWC, rung, seed))
    sizes = len(real_NTHWC), len(known)

    def estimates(first: int) -> list[Estimate]:
        part = slice(first, first + network.dims)
        distances = [frechet_distance(x[:, part], known[:, part]) for x in made.values()]
        return distance_estimates(distances, *sizes, draws if first == 0 else 2, seed)

    found = dict(zip(made, estimates(0), strict=True))
    random = [estimates(network.dims * copy) for copy in range(1, 1 + COPIES)]
    wrong = []
    *below, floor = list(sets)
    judged = [name for name in RUNGS if not (reversible and name == "reversed")]
    for name in [*([floor] if below else []), *judged]:
        least = floor if name in RUNGS else below[-1]
        gap = difference(found[name], found[least])
        if gap.low <= 0:
            wrong.append(f"{name} is not shown to be above {least}")
    names = metric_names("fvd", "self"), metric_names("fvd", "random")
    cases = []
    for place, (name, one) in enumerate(found.items()):
        values = median_of([copy[place].value for copy in random])
        cases.append(case(name, {names[0]: as_metric(one, len(real_NTHWC)), names[1]: values}))
    protocol = {
        "n": len(real_NTHWC),
        "n_reference": len(known),
        "features": f"{network.dims}, each of variance 1 over the reference",
        "interval": f"95%, bootstrap of clips of both sides, {draws} draws, moved to the value; "
        f"{names[1]}: median and range of {COPIES} networks",
        "order": "paired differences, whose 95% interval must lie above 0",
        "reversible": reversible,
        "wrong": wrong,
        "seed": seed,
    }
    return MetricReport(cases, {}, protocol, wrong)
