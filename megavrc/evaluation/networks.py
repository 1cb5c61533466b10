"""Which network gives features to clips: the I3D that the user brings, one from a package, one trained on the data."""

from pathlib import Path

from megavrc.evaluation.features import ClipNetwork, load_detector
from megavrc.evaluation.package_networks import PACKAGES, load_package
from megavrc.evaluation.self_network import load_self
from megavrc.user_files import resolve


def open_network(name: str, i3d: Path | None = None, device: str = "cpu") -> ClipNetwork:
    """A network by its name.

    Args:
        name: `i3d`; `tn` or `eff`, of a package; or the folder that `megavrc evaluate fd-self` wrote.
        i3d: the TorchScript file (default: as $MEGAVRC_I3D says).

    Raises:
        UserError: it is not there, or is another one than it should be.
    """
    if name == "i3d":
        return load_detector(resolve("i3d", i3d), device)
    package = next((known for known in PACKAGES if known == name), None)
    return load_package(package, device) if package else load_self(Path(name), device)
