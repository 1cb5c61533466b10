"""FD-self: a small video network that learned the data at hand, and networks like it with random weights beside it.

Where there is no I3D, distances of its features say how far clips are from the data that it was trained on. It is
trained, and tried before it may be used, by `self_training`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from megavrc.errors import UserError
from megavrc.evaluation.features import Features
from megavrc.files import check_fields, check_format, read_json, sha256_file, write_json
from megavrc.hardware import check_device

FORMAT = 1  # of network.json and the weights beside it
FEATURES = 32  # so few, since a Frechet distance of N clips is biased by about its dimensions over N
WIDTHS = (16, 32, 64, 96)
COPIES = 5  # with random weights


class ClipConvolutions(nn.Module):
    """Four 3-D convolutions, a mean over pixels and frames, 32 features; 0.24 million parameters.

    Args:
        answers: what is asked of a clip in training.
    """

    def __init__(self, answers: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (width, wider) in enumerate(itertools.pairwise((3, *WIDTHS))):
            kernel, stride = ((3, 5, 5), (1, 2, 2)) if number == 0 else ((3, 3, 3), (2, 2, 2))
            padding = kernel[0] // 2, kernel[1] // 2, kernel[2] // 2
            layers += [nn.Conv3d(width, wider, kernel, stride, padding, bias=False), nn.BatchNorm3d(wider)]
            layers += [nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.features = nn.Linear(WIDTHS[-1], FEATURES)
        self.answers = nn.Linear(FEATURES, answers)

    def forward(self, clips_BTHWC: Tensor) -> Tensor:
        """Features [B, 32] of uint8 clips."""
        x_BCTHW = clips_BTHWC.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        found: Tensor = self.features(self.layers(x_BCTHW).mean(dim=(2, 3, 4)))
        return found


@dataclass(frozen=True)
class SelfNetwork:
    """The trained network and those with random weights, as one `ClipNetwork`.

    Attributes:
        networks: the trained one first.
        centre, scale: of all their features over real clips, [d]; so that each has the variance 1 there.
        frames, size: of the clips that it was trained on; others are resized, but not cut.
    """

    networks: Sequence[ClipConvolutions]
    centre: Features
    scale: Features
    frames: int
    size: int
    sha256: str = ""
    name: str = "self"
    dims: int = FEATURES

    @torch.inference_mode()
    def __call__(self, clips_BTHWC: NDArray[np.uint8]) -> Features:
        """Features [B, 32 x networks] of uint8 clips; UserError where they have another length."""
        if clips_BTHWC.shape[1] != self.frames:
            raise UserError(
                f"clips of {clips_BTHWC.shape[1]} frames; this network was trained on {self.frames}: "
                f"--change frames={self.frames}"
            )
        device = self.networks[0].features.weight.device
        x = torch.from_numpy(np.ascontiguousarray(clips_BTHWC)).to(device)
        if x.shape[2:4] != (self.size, self.size):
            flat = x.flatten(0, 1).permute(0, 3, 1, 2).float()
            flat = F.interpolate(flat, (self.size, self.size), mode="bilinear", antialias=True)
            x = flat.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])
        found = torch.cat([network(x) for network in self.networks], dim=1).cpu().numpy()
        features: Features = (found - self.centre) / self.scale
        return features

    def save(self, folder: Path, facts: dict[str, object]) -> None:
        """Write `model.safetensors` and `network.json`, with what is said of the network."""
        tensors = {
            f"{number}.{name}": tensor.contiguous()
            for number, network in enumerate(self.networks)
            for name, tensor in network.state_dict().items()
        }
        tensors |= {"centre": torch.from_numpy(self.centre), "scale": torch.from_numpy(self.scale)}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "model.safetensors")
        how = {"format": FORMAT, "frames": self.frames, "size": self.size}
        write_json(
            folder / "network.json", how | {"sha256": sha256_file(folder / "model.safetensors")} | facts
        )


def check_folder(folder: Path) -> None:
    """A network may replace another one, and no other files: UserError. Asked before it is trained."""
    path = folder / "network.json"
    if path.is_file():
        check_fields(path, read_json(path), {"frames": int, "size": int, "sha256": str, "wrong": list})
    elif folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(
            f"{folder}: is there and is no folder of megavrc evaluate fd-self; name another place"
        )


def load_self(folder: Path, device: str = "cpu") -> SelfNetwork:
    """The network of a folder that `megavrc evaluate fd-self` wrote.

    Raises:
        UserError: nothing whole there, or a network that did not pass its trial.
    """
    path = folder / "network.json"
    if not path.is_file():
        raise UserError(f"--network {folder}: neither i3d nor a folder of megavrc evaluate fd-self")
    facts = read_json(path)
    check_fields(path, facts, {"format": int, "frames": int, "size": int, "sha256": str, "wrong": list})
    check_format(path, facts["format"], FORMAT)
    if facts["wrong"]:
        raise UserError(
            f"{folder}: this network did not pass its trial ({'; '.join(map(str, facts['wrong']))}): "
            "its distances mean nothing; train it on more clips or for more steps"
        )
    weights = folder / "model.safetensors"
    if not weights.is_file() or sha256_file(weights) != facts["sha256"]:
        raise UserError(f"{weights}: missing or damaged; train it anew with megavrc evaluate fd-self")
    tensors = load_file(weights)
    networks = []
    for number in range(1 + COPIES):
        start = f"{number}."
        own = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
        network = ClipConvolutions(len(own["answers.bias"])).eval()
        network.load_state_dict(own)
        networks.append(network.to(check_device(device)))
    centre, scale = tensors["centre"].numpy(), tensors["scale"].numpy()
    return SelfNetwork(networks, centre, scale, facts["frames"], facts["size"], facts["sha256"])
