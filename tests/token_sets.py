"""Datasets of tokens, as a tokenization job leaves them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megavrc.data.shards import ShardWriter, listed, read_done, shard_name, write_shard_manifest

Sample = tuple[str, np.ndarray, dict[str, Any]]  # key, ids, fields


def write_tokens(
    folder: Path,
    splits: Mapping[str, Sequence[Iterable[Sample]]],
    shape: tuple[int, ...],
    vocab: int,
    tokenizer_sha256: str = "a" * 64,
    **info: Any,
) -> Path:
    """Write a dataset of some shards for each split, `info` replacing what is usual of it; its folder is returned."""
    entries = []
    for split, shards in splits.items():
        for number, samples in enumerate(shards):
            tar = folder / "shards" / shard_name(split, number, len(shards))
            with ShardWriter(tar, shape, vocab) as shard:
                for sample in samples:
                    shard.add(*sample)
                shard.commit(plan_sha256="p")
            done = read_done(tar, "p")
            assert done is not None
            entries.append(listed(split, done))
    usual: dict[str, Any] = {"kind": "video" if shape[0] > 1 else "image", "image_source": "image"}
    usual |= {"shape": list(shape), "vocab": vocab, "tokenizer": {"name": "tiny", "sha256": tokenizer_sha256}}
    write_shard_manifest(folder, usual | info, entries)
    return folder
