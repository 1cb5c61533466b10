import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from token_folders import (
    SHAPE,
    TOKENIZER,
    VOCAB,
    damage,
    fields_of,
    flip,
    ids_of,
    key_of,
    make_dataset,
    tar_of,
)

from megavrc.data import dataset as dataset_module
from megavrc.data.dataset import TokenDataset
from megavrc.data.shards import DataError, ShardWriter
from megavrc.errors import UserError
from megavrc.files import read_json, write_json


def test_what_was_written_is_read(tmp_path: Path) -> None:
    dataset = TokenDataset(make_dataset(tmp_path), TOKENIZER["sha256"])
    assert (len(dataset), dataset.shape, dataset.vocab) == (11, SHAPE, VOCAB)
    for number in range(11):
        item = dataset[number]
        assert item["key"] == dataset.key(number) == key_of(number)
        assert item["ids"].dtype == torch.int64
        assert (item["ids"].numpy() == ids_of(number)).all()
        assert (item["caption"], item["label"]) == (fields_of(number)["caption"], number % 3)
    with pytest.raises(IndexError):
        dataset[11]


def test_it_goes_to_workers(tmp_path: Path) -> None:
    dataset = TokenDataset(make_dataset(tmp_path))
    before = dataset[3]["ids"]
    assert (pickle.loads(pickle.dumps(dataset))[3]["ids"] == before).all()


def test_more_shards_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "MAX_OPEN", 2)
    monkeypatch.setattr(dataset_module, "MAX_INDEXES", 3)
    dataset = TokenDataset(make_dataset(tmp_path, (2, 2, 2, 2, 2)))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert [dataset[index]["key"] for index in range(10)] == [key_of(number) for number in range(10)]
    assert len(os.listdir("/proc/self/fd")) - before == 2


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    samples = list(webdataset.WebDataset(str(tar_of(tmp_path)), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [key_of(number) for number in range(7)]
    assert all((sample["npy"] == ids_of(number)).all() for number, sample in enumerate(samples))
    assert [sample["json"] for sample in samples] == [fields_of(number) for number in range(7)]


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    make_dataset(tmp_path / "one")
    make_dataset(tmp_path / "two")
    names = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert len(names) == 2 + 3 * 3
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_an_abandoned_shard_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "x.tar", SHAPE, VOCAB) as shard:
        shard.add("k", ids_of(0), fields_of(0))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [-1, VOCAB])
def test_ids_outside_the_vocabulary_are_not_written(tmp_path: Path, value: int) -> None:
    with ShardWriter(tmp_path / "x.tar", SHAPE, VOCAB) as shard, pytest.raises(ValueError, match="outside"):
        shard.add("k", np.full(SHAPE, value), {})


@pytest.mark.parametrize("member", ["npy", "json"])
def test_a_flipped_bit_is_named(tmp_path: Path, member: str) -> None:
    make_dataset(tmp_path)
    damage(tar_of(tmp_path), 5, member)
    dataset = TokenDataset(tmp_path)
    dataset[4]
    with pytest.raises(DataError, match=rf"train-000000-of-000003.tar: sample {key_of(5)} is damaged"):
        dataset[5]


def test_a_truncated_shard_is_found_at_the_start(tmp_path: Path) -> None:
    tar = tar_of(make_dataset(tmp_path))
    tar.write_bytes(tar.read_bytes()[:-1024])
    with pytest.raises(DataError, match=r"train-000000-of-000003.tar: shard has .* bytes, the manifest says"):
        TokenDataset(tmp_path)
    tar.unlink()
    with pytest.raises(DataError, match=r"train-000000-of-000003.tar: shard is missing"):
        TokenDataset(tmp_path)


def test_a_shard_cut_while_in_use_is_found(tmp_path: Path) -> None:
    tar = tar_of(make_dataset(tmp_path))
    dataset = TokenDataset(tmp_path)
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(DataError, match=f"sample {key_of(6)} is damaged"):
        dataset[6]


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    index = tar_of(make_dataset(tmp_path)).with_name("train-000000-of-000003.tar.idx.npz")
    flip(index, 200)
    with pytest.raises(DataError, match=r"idx.npz: index is damaged"):
        TokenDataset(tmp_path)[0]
    index.unlink()
    with pytest.raises(DataError, match=r"idx.npz: index is missing"):
        TokenDataset(tmp_path)[0]


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    info = read_json(tmp_path / "dataset.json")
    write_json(tmp_path / "dataset.json", {**info, "vocab": 1024})
    with pytest.raises(DataError, match="manifest_id does not fit"):
        TokenDataset(tmp_path)


def test_shards_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    with pytest.raises(UserError, match=f"{'a' * 64}.*{'b' * 64}"):
        TokenDataset(tmp_path, "b" * 64)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest.json.*finalize"):
        TokenDataset(tmp_path)
    make_dataset(tmp_path)
    with pytest.raises(UserError, match=r"no samples of split 'val' \(there is: train\)"):
        TokenDataset(tmp_path, split="val")
