import json
import time

import numpy as np
import pytest

from megavrc.benchmarks.speed import seconds_per_clip
from megavrc.evaluation.quality import mean_psnr, psnr


def test_psnr() -> None:
    a = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(a, a) == 100
    assert psnr(a, a + np.uint8(255)) == 0
    assert psnr(a, a + np.uint8(16)) == pytest.approx(20 * np.log10(255 / 16))
    assert mean_psnr(a, np.stack([a[0], a[1] + np.uint8(255)])) == 50
    with pytest.raises(ValueError, match="equal shapes"):
        psnr(a, a[:1])


def test_speed_is_a_warm_median_of_generators_in_turn() -> None:
    calls: list[tuple[str, int]] = []

    def generator(name: str, seconds: float):
        def make(seed: int) -> None:
            calls.append((name, seed))
            time.sleep(seconds * (50 if seed == 0 else 1))  # the first clip is slow

        return make

    result = seconds_per_clip({"fast": generator("fast", 0.001), "slow": generator("slow", 0.004)}, repeats=5)
    assert calls == [(name, seed) for seed in range(6) for name in ("fast", "slow")]
    assert 0.001 <= result["fast"]["median"] < 0.004 <= result["slow"]["median"] < 0.05
    assert len(result["slow"]["seconds"]) == 5
    assert json.loads(json.dumps(result)) == result
    with pytest.raises(ValueError, match="repeats 4"):
        seconds_per_clip({}, repeats=4)
