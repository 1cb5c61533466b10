"""Measures of a reconstruction while training; pixels span 1, [-0.5, 0.5]."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian, pixels
C1, C2 = 0.01**2, 0.03**2


def clip_psnr(recon_BCTHW: Tensor, x_BCTHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, mean over clips."""
    error = (recon_BCTHW.float().clamp(-0.5, 0.5) - x_BCTHW).square().flatten(1).mean(1)
    return (-10 * error.clamp_min(1e-10).log10()).mean()


def ssim(recon_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Structural similarity of frames, at most 1, mean over frames, channels and the places where the window fits.

    Source: Wang et al. 2004; its constants, window 11x11 (or the frame's side, where that is less).
    """
    a, b = recon_BCHW.float().clamp(-0.5, 0.5) + 0.5, x_BCHW.float() + 0.5
    a, b = a.flatten(0, 1)[:, None], b.flatten(0, 1)[:, None]
    size = min(WINDOW, *a.shape[2:])
    places = torch.arange(size, device=a.device) - (size - 1) / 2
    line = torch.softmax(-places.square() / (2 * SIGMA**2), 0)
    stack = torch.cat([a, b, a * a, b * b, a * b])
    means = F.conv2d(F.conv2d(stack, line[None, None, :, None]), line[None, None, None])
    mean_a, mean_b, square_a, square_b, product = means.chunk(5)
    var_a, var_b, covariance = square_a - mean_a**2, square_b - mean_b**2, product - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + C1) * (2 * covariance + C2)
    return (likeness / ((mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2))).mean()
