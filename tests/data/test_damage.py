"""What a damaged dataset does to a run: F10 of the fault list, under both policies."""

import errno
import logging
import os
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from failing_files import fail
from token_folders import TOKENIZER, damage, flip, key_of, make_dataset, make_features, tar_of

from megavrc.data.dataset import TokenDataset
from megavrc.data.order import InOrder, Order
from megavrc.data.shards import DataError, index_path
from megavrc.data.stream import Stream, evaluation_batches
from megavrc.data.text_features import TextFeatures
from megavrc.errors import TransientError, UserError

COUNTS = (12, 0, 8)


def cut_tar(folder: Path) -> None:
    tar = tar_of(folder)
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])


def remove_tar(folder: Path) -> None:
    tar_of(folder).unlink()


def flip_a_sample(folder: Path) -> None:
    damage(tar_of(folder), 5)


def flip_a_caption(folder: Path) -> None:
    damage(tar_of(folder), 5, "json")


def flip_the_index(folder: Path) -> None:
    flip(index_path(tar_of(folder)), 300)


def remove_the_index(folder: Path) -> None:
    index_path(tar_of(folder)).unlink()


def zero_a_header(folder: Path) -> None:
    """Drops the rest of a tar silently for those who read it in order; here it hurts nobody."""
    content = bytearray(tar_of(folder).read_bytes())
    content[:512] = bytes(512)
    tar_of(folder).write_bytes(content)


AT_START = {cut_tar: "shard has .* bytes, the manifest says", remove_tar: "shard is missing"}
WHEN_READ = {
    flip_a_sample: f"sample {key_of(5)} is damaged",
    flip_a_caption: f"sample {key_of(5)} is damaged",
    flip_the_index: "index is damaged",
    remove_the_index: "index is missing",
}


def keys(items: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(item["position"], item["key"]) for item in items]


def stream(folder: Path, strict: bool = True, micro: int = 4, rank: int = 0, **options: Any) -> Stream:
    dataset = TokenDataset(folder, strict=strict)
    order = Order(len(dataset), 3)
    return Stream(dataset, order, global_batch=8, micro_batch=micro, rank=rank, collate=keys, **options)


def read(stream: Stream, steps: int) -> list[tuple[int, str]]:
    passes = steps * stream.global_batch // stream.micro_batch // stream.world_size
    return [pair for batch in islice(iter(stream), passes) for pair in batch]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "tokens", COUNTS)


def test_an_empty_shard_is_no_damage(folder: Path) -> None:
    assert sorted(key for _, key in read(stream(folder), 5)[:20]) == [key_of(n) for n in range(20)]


def test_a_damaged_tar_header_is_no_damage(folder: Path) -> None:
    zero_a_header(folder)
    assert len(read(stream(folder), 5)) == 40


def test_shards_of_another_tokenizer_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="these shards were made by tokenizer a"):
        TokenDataset(folder, "b" * 64, strict=False)
    TokenDataset(folder, TOKENIZER["sha256"])


@pytest.mark.parametrize(("fault", "words"), AT_START.items())
def test_a_run_does_not_start_on_it(folder: Path, fault: Any, words: str) -> None:
    fault(folder)
    with pytest.raises(DataError, match=rf"train-000000-of-000003.tar: {words}"):
        stream(folder)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("fault", "words"), WHEN_READ.items())
def test_a_run_ends_on_it(folder: Path, fault: Any, words: str, workers: int) -> None:
    fault(folder)
    with pytest.raises(DataError, match=rf"^{folder}.*train-000000-of-000003.tar.*{words}"):
        read(stream(folder, workers=workers), 5)


@pytest.mark.parametrize("fault", [*AT_START, *WHEN_READ])
def test_others_take_its_place(folder: Path, fault: Any, caplog: pytest.LogCaptureFixture) -> None:
    whole = read(stream(folder), 10)
    fault(folder)
    damaged = stream(folder, strict=False, max_damaged=20)
    found = read(damaged, 10)
    assert [position for position, _ in found] == list(range(80)), "as many as ever"
    changed = [position for position, _ in whole if found[position] != whole[position]]
    assert changed and damaged.replaced >= len(changed)
    numbers = {int(whole[position][1][:16], 16) for position in changed}
    assert numbers <= set(range(12)), "only samples of that shard"
    if fault in (flip_a_sample, flip_a_caption):
        assert numbers == {5} and damaged.replaced == 4
    assert [key_of(index) for index in damaged.samples] == [key for _, key in found[-4:]]
    if fault is remove_tar:
        assert "cannot be read: No such file" in caplog.text
    for position in changed:
        assert f"position {position}: {tar_of(folder)}" in caplog.text


def test_text_features_follow_the_policy_of_their_tokens(folder: Path) -> None:
    remove_tar(make_features(TokenDataset(folder)))
    with pytest.raises(DataError, match=r"text_features/.*: shard is missing"):
        TextFeatures(TokenDataset(folder))
    features = TextFeatures(TokenDataset(folder, strict=False))
    assert features[12].tolist() == [[12.0] * 3] * 2
    with pytest.raises(DataError, match=r"text_features/.*cannot be read"):
        features[5]


def test_the_replacement_is_the_same_for_any_ranks_workers_and_resumes(folder: Path) -> None:
    cut_tar(folder)
    options = {"strict": False, "max_damaged": 20}
    whole = read(stream(folder, **options), 10)
    parts = read(stream(folder, **options, workers=2), 3) + read(stream(folder, **options, start_step=3), 7)
    ranks = [
        read(stream(folder, **options, world_size=2, rank=rank, micro=2, workers=rank), 10) for rank in (0, 1)
    ]
    assert parts == whole == sorted(ranks[0] + ranks[1])
    assert len(ranks[0]) == len(ranks[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_budget_ends_it(folder: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    for number in (2, 5, 9):
        damage(tar_of(folder), number)
    damaged = stream(folder, max_damaged=3, workers=workers)
    read(damaged, 10)  # three samples, four times each
    assert damaged.replaced >= 12
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(DataError, match=r"3 damaged samples, data.max_damaged"),
    ):
        read(stream(folder, max_damaged=2, workers=workers), 10)


def test_a_dataset_without_a_whole_sample_is_an_error(folder: Path) -> None:
    shutil.rmtree(folder / "shards")
    with pytest.raises(DataError, match="damaged samples in a row"):
        read(stream(folder, strict=False, max_damaged=1000), 1)


def test_an_evaluation_follows_the_same_policy(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    damage(tar_of(folder), 5)
    dataset = TokenDataset(folder)
    logging.getLogger("megavrc").propagate = True

    def evaluate(replace: bool) -> list[tuple[int, str]]:
        batches = evaluation_batches(
            dataset, InOrder(20), count=20, micro_batch=4, collate=keys, replace=replace
        )
        return [pair for batch, _ in batches for pair in batch]

    first = evaluate(replace=True)
    assert [position for position, key in first if key != key_of(position)] == [5]
    assert evaluate(replace=True) == first and f"sample {key_of(5)} is damaged" in caplog.text
    with pytest.raises(DataError, match=f"sample {key_of(5)} is damaged"):
        evaluate(replace=False)


def test_an_index_that_cannot_be_opened_for_a_while(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = TokenDataset(folder)
    failed = fail(monkeypatch, errno.ESTALE, index_path(tar_of(folder)).name, times=2)
    assert data[0]["key"] == key_of(0) and len(failed) == 2


def test_a_drive_that_fails_for_a_while_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megavrc.files.PAUSES", (0.0, 0.0))
    dataset = TokenDataset(folder)
    whole, read, left = dataset[0], os.pread, [2]

    def failing(number: int) -> Callable[..., bytes]:
        def pread(*words: int) -> bytes:
            left[0] -= 1
            if left[0] >= 0:
                raise OSError(number, os.strerror(number))
            return read(*words)

        return pread

    monkeypatch.setattr(os, "pread", failing(errno.ESTALE))
    assert torch.equal(dataset[0]["ids"], whole["ids"]) and left[0] == -1
    left[0] = 100
    with pytest.raises(TransientError, match="Stale file handle"):
        dataset[0]
    monkeypatch.setattr(os, "pread", failing(errno.EIO))  # of a bad sector, for ever
    with pytest.raises(DataError, match="cannot be read: Input/output error"):
        dataset[0]
