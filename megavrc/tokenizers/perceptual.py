"""Perceptual distance of frames: differences of normalised VGG16 features (LPIPS, Zhang et al. 2018).

Notable: the frozen weights come from the user's file and are non-persistent buffers: they follow the module to its
device, but are neither trained nor part of any checkpoint.
"""

import pickle
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megavrc.errors import UserError

# Torchvision's numbers of the convolutions.
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1]
EPS = 1e-10
UNREADABLE = (
    pickle.UnpicklingError,
    safetensors.SafetensorError,
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
)


class Perceptual(nn.Module):
    """LPIPS distance; features are tapped before each pooling and at the end.

    Args:
        convolutions: weight and bias of the 13 convolutions by torchvision's names, `features.0.weight` and so on.
        heads: non-negative channel weights of the 5 taps, [C] each; None weighs all channels by 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, convolutions: dict[str, Tensor], heads: list[Tensor] | None = None) -> None:
        super().__init__()
        tensors = {name.replace(".", "_"): tensor.float() for name, tensor in convolutions.items()}
        tensors |= {f"head_{tap}": head.float().flatten() for tap, head in enumerate(heads or [])}
        tensors |= {"mean": torch.tensor(MEAN), "std": torch.tensor(STD)}
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)
        self.weighted = heads is not None

    @classmethod
    def from_files(cls, vgg: str | Path, heads: str | Path = "") -> "Perceptual":
        """Read a state dict of torchvision's VGG16, and optionally LPIPS' linear heads (`lin0.model.1.weight`, ..).

        Raises:
            UserError: a file that is missing, unreadable, or something else.
        """
        convolutions = _convolutions(Path(vgg))
        if not heads:
            return cls(convolutions)
        sizes = [len(convolutions[f"features.{stage[-1]}.bias"]) for stage in STAGES]
        return cls(convolutions, _heads(Path(heads), sizes))

    def features(self, x_BCHW: Tensor) -> list[Tensor]:
        """Features at the 5 taps of frames in [-0.5, 0.5]."""
        x = (x_BCHW.float() + 0.5 - self.mean[:, None, None]) / self.std[:, None, None]
        taps: list[Tensor] = []
        for stage in STAGES:
            x = F.max_pool2d(x, 2) if taps else x
            for number in stage:
                weight, bias = (getattr(self, f"features_{number}_{what}") for what in ("weight", "bias"))
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            taps.append(x)
        return taps

    def forward(self, recon_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Mean distance of frames [B, 3, H, W] in [-0.5, 0.5], sides of at least 16 pixels."""
        with torch.no_grad():
            targets = self.features(x_BCHW)
        total = x_BCHW.new_zeros(())
        for tap, (ours, theirs) in enumerate(zip(self.features(recon_BCHW), targets, strict=True)):
            difference = (_unit(ours) - _unit(theirs)).square()
            if self.weighted:
                difference = difference * getattr(self, f"head_{tap}")[:, None, None]
            total = total + difference.sum(1).mean()
        return total


def _unit(features_BCHW: Tensor) -> Tensor:
    # The root of a sum of squares has no gradient at 0, where relu leaves all channels often enough.
    return features_BCHW * (features_BCHW.square().sum(1, keepdim=True) + EPS).rsqrt()


def _convolutions(path: Path) -> dict[str, Tensor]:
    state, channels = _state_dict(path, "VGG16"), 3
    found: dict[str, Tensor] = {}
    for number in (number for stage in STAGES for number in stage):
        weight, bias = (state.get(f"features.{number}.{what}") for what in ("weight", "bias"))
        if weight is None or bias is None or tuple(weight.shape) != (len(bias), channels, 3, 3):
            raise UserError(
                f"{path}: not a state dict of torchvision's vgg16: features.{number}.weight is "
                f"{'missing' if weight is None else list(weight.shape)}"
            )
        found |= {f"features.{number}.weight": weight, f"features.{number}.bias": bias}
        channels = len(bias)
    return found


def _heads(path: Path, sizes: list[int]) -> list[Tensor]:
    state, heads = _state_dict(path, "LPIPS heads"), []
    for tap, size in enumerate(sizes):
        head = state.get(f"lin{tap}.model.1.weight")
        if head is None or head.numel() != size:
            raise UserError(
                f"{path}: not LPIPS' heads for VGG16: lin{tap}.model.1.weight of {size} is missing"
            )
        heads.append(head)
    return heads


def _state_dict(path: Path, what: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected {what} as a state dict (.pth or .safetensors)")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = (str(error) or "empty").splitlines()[0]
        raise UserError(f"{path}: cannot be read as {what} ({reason})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a state dict of {what}")
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
