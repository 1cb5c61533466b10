"""Files that users bring, which have terms of their own: found by an option or an environment variable, and hashed."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from megavrc.errors import UserError
from megavrc.files import sha256_file, sha256_json

USER_FILES = {  # name -> (environment variable, what it is)
    "omnitokenizer": (
        "MEGAVRC_OMNITOKENIZER",
        "a published OmniTokenizer checkpoint (.ckpt) or an exported folder",
    ),
    "vgg": ("MEGAVRC_VGG", "the state dict of torchvision's vgg16 (perceptual loss of the video tokenizer)"),
    "text_encoder": ("MEGAVRC_TEXT_ENCODER", "a T5 encoder folder in transformers format (text features)"),
    "i3d": ("MEGAVRC_I3D", "the I3D TorchScript file (FVD)"),
    "clip": ("MEGAVRC_CLIP", "a CLIP model folder in transformers format (CLIPSIM)"),
}
# Of i3d_torchscript.pt (51,235,320 bytes), as several public evaluation suites state it.
I3D_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"


@dataclass(frozen=True)
class UserFile:
    """A file or a folder that is there."""

    path: Path

    @cached_property
    def sha256(self) -> str:
        """The hash of a file's bytes; for a folder, of the names and hashes of all its files. Read when asked for."""
        if self.path.is_file():
            return sha256_file(self.path)
        files = (file for file in sorted(self.path.rglob("*")) if file.is_file())
        return sha256_json({file.relative_to(self.path).as_posix(): sha256_file(file) for file in files})


def place(name: str, given: str | Path | None = None) -> Path | None:
    """The place where a file should lie: as given, else as its environment variable says; None: not said."""
    said = given or os.environ.get(USER_FILES[name][0])
    return Path(said) if said else None


def resolve(name: str, given: str | Path | None = None, option: str | None = None) -> UserFile:
    """A file that a user brings.

    Args:
        name: one of USER_FILES.
        given: by the option; goes before the environment variable.
        option: its name, for messages (default: --NAME).

    Raises:
        UserError: not said where it is, or not there.
    """
    variable, purpose = USER_FILES[name]
    option = option or f"--{name}"
    path = place(name, given)
    if path is None:
        raise UserError(f"{option}: needed, {purpose}; give its path here or in {variable}")
    if not path.exists():
        raise UserError(f"{option if given else variable} {path}: no such file or folder; expected {purpose}")
    return UserFile(path)
