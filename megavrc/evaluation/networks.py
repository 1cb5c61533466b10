"""Networks that give features to clips: the I3D that the user brings, or one trained on the data at hand."""

from pathlib import Path

from megavrc.evaluation.features import ClipNetwork, load_detector
from megavrc.evaluation.self_network import load_self
from megavrc.user_files import resolve


def open_network(name: str, i3d: Path | None = None, device: str = "cpu") -> ClipNetwork:
    """A network by its name.

    Args:
        name: `i3d`, or the folder that `megavrc evaluate fd-self` wrote.
        i3d: the TorchScript file (default: as $MEGAVRC_I3D says).

    Raises:
        UserError: it is not there, or is another one than it should be.
    """
    return load_detector(resolve("i3d", i3d), device) if name == "i3d" else load_self(Path(name), device)
