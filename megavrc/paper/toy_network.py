"""A video network for smoke runs: fixed random weights in the signature of the published I3D, so that nobody takes its
distances for FVD, and every other step of the measurement is the real one.

    python -m megavrc.paper.toy_network --out FILE
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from megavrc.config import command


class ToyNetwork(nn.Module):
    """Means of what random filters see in pictures, and of how much that changes: 2 x 12 features a clip."""

    def __init__(self, channels: int = 12) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.filters = nn.Conv3d(3, channels, (1, 7, 7), stride=(1, 4, 4))

    def forward(
        self, x_BCTHW: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = True
    ) -> Tensor:
        """Features [B, 24] of clips, uint8 (`rescale`) or -1 to 1."""
        x = x_BCTHW.float()
        if rescale:
            x = x / 127.5 - 1
        seen = self.filters(x).relu()
        change = seen.diff(dim=2).abs().mean(dim=(2, 3, 4))
        return 10 * torch.cat([seen.mean(dim=(2, 3, 4)), change], dim=1)


def save_network(out: Path) -> None:
    """Write the network as TorchScript.

    Args:
        out: the new file.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.jit.script(ToyNetwork()).save(str(out))


if __name__ == "__main__":
    command(save_network)
