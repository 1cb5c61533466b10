"""Compressor and decompressor of token representations (appendix A of the paper), spatial only.

Frames are folded into the batch, so nothing flows along time. At rate 4 the compressor is conv 3x3 stride 2, norm,
ReLU, conv 1x1 and the decompressor transposed conv 4x4 stride 2, norm, ReLU, conv 1x1; rates 16 and 64 have one and
two more stages; rate 1 has stride-1 3x3 convolutions on both sides.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .config import CompressionConfig


class _JointNorm(torch.autograd.Function):
    """Normalise by the statistics of the joint batch: one all-reduce forward and one backward.

    Sums are taken of x - shift, so that a mean far from zero does not eat the digits of the variance.
    """

    @staticmethod
    def forward(ctx: Any, x_BDHW: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, eps: float) -> Any:
        centred = x_BDHW - shift[:, None, None]
        count = x_BDHW.new_full((1,), x_BDHW.numel() / x_BDHW.shape[1])
        sums = sum_over_ranks(torch.cat([centred.sum((0, 2, 3)), centred.square().sum((0, 2, 3)), count]))
        offset, square = (sums[:-1] / sums[-1]).chunk(2)
        var = (square - offset.square()).clamp(min=0)
        scale = (var + eps).rsqrt()
        normed = (centred - offset[:, None, None]) * scale[:, None, None]
        ctx.save_for_backward(normed, weight * scale, sums[-1])
        ctx.mark_non_differentiable(*(statistics := (shift + offset, var, sums[-1])))
        return normed * weight[:, None, None] + bias[:, None, None], *statistics

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad, (normed, slope, count) = grads[0], ctx.saved_tensors
        local = torch.cat([grad.sum((0, 2, 3)), (grad * normed).sum((0, 2, 3))])
        bias_grad, weight_grad = local.chunk(2)
        mean, product = (sum_over_ranks(local.clone()) / count).chunk(2)
        x_grad = (grad - mean[:, None, None] - normed * product[:, None, None]) * slope[:, None, None]
        return x_grad, weight_grad, bias_grad, None, None


def several_ranks() -> bool:
    """Whether several ranks train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_ranks(sums: Tensor) -> Tensor:
    """All-reduce in place, where there are several ranks."""
    if several_ranks():
        dist.all_reduce(sums)
    return sums


class BatchNorm(nn.Module):
    """Batch normalisation over the joint batch of all ranks, on any backend (gloo included).

    Sums are fp32 and all-reduced, so statistics, running statistics and outputs do not depend on how the batch is
    spread over ranks. In eval mode, and so in generation, the running statistics are used.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
        self.register_buffer("running_mean", torch.empty(width))
        self.register_buffer("running_var", torch.empty(width))
        self.momentum, self.eps = momentum, eps
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Gain 1, offset 0, and statistics of a standard normal."""
        for ones, zeros in ((self.weight, self.bias), (self.running_var, self.running_mean)):
            ones.fill_(1.0)
            zeros.fill_(0.0)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        wide = x_BDHW if x_BDHW.dtype == torch.float64 else x_BDHW.float()
        weight, bias, mean, var = (
            tensor.to(wide.dtype) for tensor in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        if not self.training:
            scale = weight * (var + self.eps).rsqrt()
            return (wide * scale[:, None, None] + (bias - mean * scale)[:, None, None]).to(x_BDHW.dtype)
        out, mean, var, count = _JointNorm.apply(wide, weight, bias, mean, self.eps)
        with torch.no_grad():
            unbiased = var * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return out.to(x_BDHW.dtype)


class ChannelRMSNorm(nn.Module):
    """RMS norm over the channels of each cell, [B, D, H, W]."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
        self.eps = eps
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gain 1, offset 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        wide = x_BDHW if x_BDHW.dtype == torch.float64 else x_BDHW.float()
        normed = wide * (wide.square().mean(1, keepdim=True) + self.eps).rsqrt()
        return (normed * self.weight[:, None, None] + self.bias[:, None, None]).to(x_BDHW.dtype)


RESETTABLE = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.GroupNorm,
    BatchNorm,
    ChannelRMSNorm,
)  # all that has parameters here


def _norm(kind: str, width: int) -> nn.Module:
    if kind == "batch":
        return BatchNorm(width)
    groups = math.gcd(min(32, width // 4), width)  # 32, but for narrow widths and those that 32 do not divide
    return nn.GroupNorm(groups, width) if kind == "group" else ChannelRMSNorm(width)


def _stages(config: CompressionConfig) -> int:
    """Convolutional stages before the 1x1: 1, 1, 2, 3 for rates 1, 4, 16, 64 (2-, 2-, 3-, 4-layer CNNs)."""
    return max(1, config.side.bit_length() - 1)


class Compressor(nn.Module):
    """Token representations of one frame to compressed cells: [B, g, g, D] -> [B, g / side, g / side, D]."""

    net: nn.Sequential  # of the kinds that have parameters

    def __init__(self, config: CompressionConfig, width: int) -> None:
        super().__init__()
        self.config = config
        side = config.side
        if config.kind == "conv":
            layers: list[nn.Module] = []
            for _ in range(_stages(config)):
                layers += [
                    nn.Conv2d(width, width, 3, stride=min(side, 2), padding=1),
                    _norm(config.norm, width),
                    nn.ReLU(),
                ]
            self.net = nn.Sequential(*layers, nn.Conv2d(width, width, 1))
        elif config.kind == "space_to_depth":
            self.net = nn.Sequential(nn.PixelUnshuffle(side), nn.Conv2d(width * side**2, width, 1))

    def forward(self, x_BHWD: Tensor) -> Tensor:
        kind, side = self.config.kind, self.config.side
        if kind == "identity":
            return x_BHWD
        if kind == "strided":
            return x_BHWD[:, ::side, ::side]
        x_BDHW = x_BHWD.permute(0, 3, 1, 2)
        out = F.avg_pool2d(x_BDHW, side) if kind == "avgpool" else self.net(x_BDHW)
        return out.permute(0, 2, 3, 1)


class Decompressor(nn.Module):
    """Trunk states of one segment to token representations: [B, m, m, D] -> [B, m side, m side, D]."""

    net: nn.Sequential  # of the kinds that have parameters

    def __init__(self, config: CompressionConfig, width: int) -> None:
        super().__init__()
        self.config = config
        side = config.side
        if config.kind == "space_to_depth":
            self.net = nn.Sequential(nn.Conv2d(width, width * side**2, 1), nn.PixelShuffle(side))
        elif config.kind != "identity":
            layers: list[nn.Module] = []
            for _ in range(_stages(config)):
                up = (
                    nn.Conv2d(width, width, 3, padding=1)
                    if side == 1
                    else nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)
                )
                layers += [up, _norm(config.norm, width), nn.ReLU()]
            self.net = nn.Sequential(*layers, nn.Conv2d(width, width, 1))

    def forward(self, x_BHWD: Tensor) -> Tensor:
        if self.config.kind == "identity":
            return x_BHWD
        return self.net(x_BHWD.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
