"""Files and folders of pictures for trees that look like a data set."""

from pathlib import Path

import numpy as np
from PIL import Image


def touch(path: Path, text: str = "") -> Path:
    """A file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def frames(folder: Path, count: int, name: str) -> None:
    """A folder of `count` pictures of 8x8; `name` is a pattern for their number from 0."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / name.format(number))
