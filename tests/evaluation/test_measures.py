import numpy as np
import pytest

from megavrc.evaluation.quality import mean_psnr, psnr


def test_psnr() -> None:
    a = np.zeros((2, 4, 4, 3), np.uint8)
    assert psnr(a, a) == 100
    assert psnr(a, a + np.uint8(255)) == 0
    assert psnr(a, a + np.uint8(16)) == pytest.approx(20 * np.log10(255 / 16))
    assert mean_psnr(a, np.stack([a[0], a[1] + np.uint8(255)])) == 50
    with pytest.raises(ValueError, match="equal shapes"):
        psnr(a, a[:1])
