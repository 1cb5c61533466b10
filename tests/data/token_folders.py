"""Small token datasets with known content, and damage to them."""

import itertools
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from token_sets import write_tokens

from megavrc.data.dataset import TokenDataset
from megavrc.data.shards import listed, read_done, shard_name, write_shard_manifest
from megavrc.data.text_features import FORMAT, FeatureWriter, features_folder

SHAPE = (5, 2, 3)
VOCAB = 512
TOKENIZER = {"name": "tiny", "sha256": "a" * 64}


def ids_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, VOCAB, SHAPE)


def fields_of(number: int) -> dict[str, Any]:
    return {
        "caption": None if number % 5 == 4 else f"clip {number}, mot clé",
        "label": number % 3,
        "source": "s",
    }


def key_of(number: int) -> str:
    return f"{number:016x}-{0:07d}"


def make_dataset(
    folder: Path, counts: tuple[int, ...] = (7, 0, 4), split: str = "train", first: int = 0, **info: Any
) -> Path:
    """Samples `first`, `first` + 1, ... in shards of these sizes."""
    numbers = itertools.count(first)
    shards = [
        [(key_of(each), ids_of(each), fields_of(each)) for each in itertools.islice(numbers, count)]
        for count in counts
    ]
    return write_tokens(folder, {split: shards}, SHAPE, VOCAB, **info)


def make_features(tokens: TokenDataset) -> Path:
    """Text features of a dataset, two rows of three numbers each: the sample's index."""
    folder, shards = features_folder(tokens.folder), []
    for number, shard in enumerate(tokens.shards):
        tar = folder / "shards" / shard["name"]
        with FeatureWriter(tar) as writer:
            for index in tokens.rows(number):
                writer.add(tokens.key(index), np.full((2, 3), index, "f2"), {"caption": None})
            writer.commit(plan_sha256="p")
        done = read_done(tar, "p")
        assert done is not None
        shards.append(listed("train", done))
    info = {"width": 3, "encoder": {"sha256": "e" * 64}, "tokens": {"manifest_id": tokens.manifest_id}}
    write_shard_manifest(folder, info, shards, FORMAT)
    return folder


def tar_of(folder: Path, number: int = 0, total: int = 3) -> Path:
    return folder / "shards" / shard_name("train", number, total)


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def damage(tar: Path, number: int, member: str = "npy") -> None:
    """Flip a bit of a sample."""
    with tarfile.open(tar) as opened:
        at = opened.getmember(f"{key_of(number)}.{member}").offset_data
    flip(tar, at + 5)
