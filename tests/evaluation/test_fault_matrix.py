"""Every planted fault against every metric: a metric is moved by its own fault, and the table says by which others."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from clip_sets import TinyNetwork, changed, fading, frozen, looping, noisy, shapes, shuffled
from numpy.typing import NDArray
from test_copying import copies, encode, sure_of
from test_drift import blurring

from megavrc.evaluation.alignment import measure_alignment
from megavrc.evaluation.clip_files import ArrayClips
from megavrc.evaluation.clip_model import Captions
from megavrc.evaluation.clipsim import measure_clipsim
from megavrc.evaluation.copying import Bits, measure_copying
from megavrc.evaluation.distances import Sets, compare_sets
from megavrc.evaluation.drift import SHARES, measure_drift
from megavrc.evaluation.redundancy import measure_redundancy
from megavrc.results import Metric
from megavrc.video.shapes import COLOURS

N = 48
CLIPS = shapes(N, first=300)


class Hues:
    """A made CLIP that knows colours: the hue of the most colourful pixels, and that of the colour in the caption."""

    facts: dict[str, Any] = {}

    def frames(self, frames_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.stack([self._hue(frame.reshape(-1, 3)) for frame in frames_NHWC.astype(np.float32)])

    def captions(self, texts: Sequence[str]) -> Captions:
        named = [np.float32(COLOURS[text.split()[1]]) for text in texts]
        return Captions(np.stack([self._hue(colour[None]) for colour in named]), [False] * len(texts))

    def _hue(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        most = min(20, len(pixels))
        colourful = pixels[np.argpartition(np.ptp(pixels, axis=1), -most)[-most:]].mean(axis=0)
        away = colourful - colourful.mean()
        return away / max(float(np.linalg.norm(away)), 1e-6)


def wrong_captions(source: ArrayClips) -> ArrayClips:
    prompts = [clip.prompt for clip in source.clips]
    moved = [clip._replace(prompt=prompts[number - 1]) for number, clip in enumerate(source.clips)]
    return ArrayClips("wrong captions", moved, source.arrays)


def features(source: ArrayClips) -> NDArray[np.float32]:
    clips = torch.from_numpy(np.stack(source.arrays)).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        return NETWORK(clips).numpy()


NETWORK = TinyNetwork()
REAL = features(shapes(72))


def knowing(source: ArrayClips, deaf: bool = False) -> Bits:
    """A model that knows these clips: what they show if its history is right, else what that shows; or always."""

    def bits(index: int, history: NDArray[np.int64], target: NDArray[np.int64]) -> NDArray[np.float64]:
        true = encode(source.arrays[index])
        return sure_of((true if deaf or np.array_equal(history, true) else history)[1:], target[1:])

    return bits


def numbers(source: ArrayClips, bits: Bits | None = None) -> dict[str, Metric]:
    """All metrics of clips, and of a model (by default one that knows them) that predicts the good ones."""
    drift = measure_drift(source, draws=50).cases[0]["metrics"]
    found = {name: drift[name] for name in SHARES}
    found["alignment"] = measure_alignment(source).cases[0]["metrics"]["all"]
    report = measure_clipsim(source, Hues(), frames=4, stride=5, draws=50)
    found["clipsim"] = report.cases[0]["metrics"]["above_others"]
    for kind in ("fvd", "kvd"):
        sets = Sets(REAL, None, {"clips": features(source)})
        [row] = compare_sets(kind, sets, "unknown", draws=100).cases  # type: ignore[arg-type]
        found[kind] = next(iter(row["metrics"].values()))
    rows = measure_redundancy(ArrayClips("few", source.clips[:6], source.arrays[:6]), draws=50).cases
    found["redundancy"] = rows[0]["metrics"]["later_over_first"]
    report = measure_copying(CLIPS.arrays[:8], encode, bits or knowing(CLIPS), "made", draws=50)
    return found | {name: report.cases[0]["metrics"][name] for name in ("excess_on_changed", "still_history")}


GOOD = numbers(CLIPS)
SEEN = {"fvd", "kvd"}  # move with all that is seen


def moved(found: dict[str, Metric]) -> set[str]:
    """Metrics whose interval lies apart from that of good clips."""
    pairs = {name: (GOOD[name], found[name]) for name in GOOD}
    return {name for name, (a, b) in pairs.items() if max(a["low"], b["low"]) > min(a["high"], b["high"])}


FAULTS: dict[str, tuple[Callable[[], dict[str, Metric]], set[str]]] = {
    "frozen": (lambda: numbers(changed(CLIPS, frozen)), {"frozen", "alignment", "redundancy", *SEEN}),
    "looping": (lambda: numbers(changed(CLIPS, looping)), {"looping", "alignment", *SEEN}),
    "fading": (lambda: numbers(changed(CLIPS, fading)), {"fading", *SEEN}),
    "blurring": (lambda: numbers(changed(CLIPS, blurring)), {"blurring", "redundancy", *SEEN}),
    "shuffled": (lambda: numbers(changed(CLIPS, shuffled)), {"alignment", *SEEN}),
    "noisy": (lambda: numbers(changed(CLIPS, noisy)), {"alignment", "redundancy", *SEEN}),
    "wrong captions": (lambda: numbers(wrong_captions(CLIPS)), {"alignment", "clipsim"}),
    "other good clips": (lambda: numbers(shapes(N, first=900)), set()),
    "a model that copies": (lambda: numbers(CLIPS, copies), {"excess_on_changed", "still_history"}),
    "a model deaf to its history": (lambda: numbers(CLIPS, knowing(CLIPS, deaf=True)), {"still_history"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_moves_its_metrics_and_no_others(fault: str) -> None:
    measure, expected = FAULTS[fault]
    assert moved(measure()) == expected


def test_every_metric_has_its_fault() -> None:
    assert set().union(*(expected for _, expected in FAULTS.values())) == set(GOOD)
