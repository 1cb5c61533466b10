"""Compressor and decompressor of token representations (appendix A of the paper), spatial only.

Frames are folded into the batch, so nothing flows along time. At rate 4 the compressor is conv 3x3 stride 2, norm,
ReLU, conv 1x1 and the decompressor transposed conv 4x4 stride 2, norm, ReLU, conv 1x1; rates 16 and 64 have one and
two more stages; rate 1 has stride-1 3x3 convolutions on both sides.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .config import CompressionConfig


class _SumOverRanks(torch.autograd.Function):
    """All-reduce with its gradient: the sum over ranks of a sum is differentiated by the sum of the gradients."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        grad = grads[0].clone()
        dist.all_reduce(grad)
        return grad


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
        if self.training:
            mean, var, count = self._joint_statistics(wide)
            with torch.no_grad():
                unbiased = var * (count / (count - 1).clamp(min=1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        else:
            mean, var = self.running_mean.to(wide.dtype), self.running_var.to(wide.dtype)
        scale = self.weight.to(wide.dtype) * (var + self.eps).rsqrt()
        shift = self.bias.to(wide.dtype) - mean * scale
        return (wide * scale[:, None, None] + shift[:, None, None]).to(x_BDHW.dtype)

    def _joint_statistics(self, x_BDHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, biased variance (both [D]) and sample count over all ranks, in two exact passes."""
        count = torch.tensor(
            [float(x_BDHW.numel() // x_BDHW.shape[1])], device=x_BDHW.device, dtype=x_BDHW.dtype
        )
        spread = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not spread:
            var, mean = torch.var_mean(x_BDHW, dim=(0, 2, 3), correction=0)
            return mean, var, count
        packed = _SumOverRanks.apply(torch.cat([x_BDHW.sum((0, 2, 3)), count]))
        count = packed[-1:].detach()
        mean = packed[:-1] / count
        var = _SumOverRanks.apply((x_BDHW - mean[:, None, None]).square().sum((0, 2, 3))) / count
        return mean, var, count


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


def _norm(kind: str, width: int) -> nn.Module:
    if kind == "batch":
        return BatchNorm(width)
    return nn.GroupNorm(min(32, width // 4), width) if kind == "group" else ChannelRMSNorm(width)


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
