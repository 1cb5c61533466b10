"""Small files of a tokenization job after an accident or a stranger: named in one line, or named and made again."""

import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import files

from megavrc.data.dataset import TokenDataset
from megavrc.data.shards import DataError, index_path, manifest_id
from megavrc.errors import UserError
from megavrc.files import read_json, sha256_file, write_json
from megavrc.tokenization.job import run
from megavrc.tokenization.result import finalize, status, verify

TEXTS = [b"", b"[]", b"5", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b"9" * 5_000]


@pytest.fixture(autouse=True)
def heard() -> None:
    for name in ("megavrc", "megavrc.data.shards"):
        logging.getLogger(name).propagate = True


@pytest.fixture
def job(done: Path, tmp_path: Path) -> Path:
    """A finished job."""
    return Path(shutil.copytree(done, tmp_path / "job"))


def only(pattern: str, job: Path) -> Path:
    return sorted(job.glob(pattern))[0]


def test_a_damaged_done_file_is_named_and_its_shard_done_again(
    job: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, file = files(job), only("video/shards/*.done.json", job)
    whole = file.read_bytes()
    flipped = random.Random(0)
    for content in [*TEXTS, *(flip(whole, flipped) for _ in range(100))]:
        file.write_bytes(content)
        status(job)
        try:
            finalize(job, samples=0)
        except UserError as error:
            assert "\n" not in str(error)
    file.write_bytes(b'{"name": 5}')
    caplog.clear()
    with pytest.raises(UserError, match="are not done"):
        finalize(job, samples=0)
    assert f"{file}: name is 5, expected str; the shard counts as not done" in caplog.text
    run(job)
    finalize(job)
    assert files(job) == before


def flip(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def test_a_damaged_list_of_failures_is_named_and_its_shard_done_again(
    job: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, file = files(job), only("failures/*.jsonl", job)
    whole = file.read_bytes()
    for content in [*TEXTS[1:], b'{"source": 5}\n', b'{"stage": "io"}\n', whole[:-30], whole + whole]:
        file.write_bytes(content)
        caplog.clear()
        status(job)
        assert f"{file}" in caplog.text and "counts as not done" in caplog.text
        with pytest.raises(UserError, match="are not done"):
            finalize(job, samples=0)
    file.unlink()
    with pytest.raises(UserError, match="are not done"):
        finalize(job, samples=0)
    run(job)
    verify(job, samples=0)
    assert files(job) == before


def test_a_list_that_is_a_pipe_does_not_hang(job: Path) -> None:
    for file in (
        only("video/shards/*.done.json", job),
        job / "video/manifest.json",
        job / "video/dataset.json",
    ):
        file.unlink()
        os.mkfifo(file)
    with pytest.raises(UserError):
        TokenDataset(job / "video")
    status(job)


def change(folder: Path, edit: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
    """Change what dataset.json and manifest.json say, with a manifest_id that fits where that can be had."""
    info, manifest = read_json(folder / "dataset.json"), read_json(folder / "manifest.json")
    edit(info, manifest)
    if isinstance(manifest.get("shards"), list):
        manifest["manifest_id"] = manifest_id(info, manifest["shards"])
    write_json(folder / "dataset.json", info)
    write_json(folder / "manifest.json", manifest)


CHANGES: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "manifest.json: shards is": lambda info, manifest: manifest.update(shards=5),
    "manifest.json: shards is missing": lambda info, manifest: manifest.pop("shards"),
    "shard 0: count is 'x'": lambda info, manifest: manifest["shards"][0].update(count="x"),
    "shard 0: count is -1": lambda info, manifest: manifest["shards"][0].update(count=-1),
    "shard 0: count is 1000": lambda info, manifest: manifest["shards"][0].update(count=10**300),
    "shard 0: count is True": lambda info, manifest: manifest["shards"][0].update(count=True),
    "is not the name of a file": lambda info, manifest: manifest["shards"][0].update(name="../../x.tar"),
    "shard 0: sha256 is": lambda info, manifest: manifest["shards"][0].update(sha256="z"),
    "shard 0: split is": lambda info, manifest: manifest["shards"][0].update(split=None),
    "dataset.json: shape is 5": lambda info, manifest: info.update(shape=5),
    r"dataset.json: shape is \[1\]": lambda info, manifest: info.update(shape=[1]),
    r"shape is \[2, -4, 4\]": lambda info, manifest: info.update(shape=[2, -4, 4]),
    "dataset.json: vocab is": lambda info, manifest: info.update(vocab=10**9),
    "dataset.json: tokenizer is": lambda info, manifest: info.update(tokenizer="t"),
    "tokenizer: sha256 is missing": lambda info, manifest: info.update(tokenizer={}),
    "dataset.json: kind is missing": lambda info, manifest: info.pop("kind"),
    r"dataset.json: proof is \[\], expected": lambda info, manifest: info.update(proof=[]),
    "dataset.json: proof is 'x', expected": lambda info, manifest: info.update(proof="x"),
    "dataset.json: without is 3, expected": lambda info, manifest: info.update(without=3),
    "without is {'train': 5}, expected": lambda info, manifest: info.update(without={"train": 5}),
    "without is {'train': {'caption': '1'}}": lambda i, m: i.update(without={"train": {"caption": "1"}}),
}


@pytest.mark.parametrize("said", CHANGES)
def test_a_dataset_of_the_wrong_shape_is_one_line_with_the_key(job: Path, said: str) -> None:
    change(job / "video", CHANGES[said])
    with pytest.raises(UserError, match=said) as error:
        TokenDataset(job / "video")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["dataset.json", "manifest.json"])
@pytest.mark.parametrize("content", TEXTS, ids=range(len(TEXTS)))
def test_a_damaged_dataset_is_one_line(job: Path, name: str, content: bytes) -> None:
    (job / "video" / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as error:
        TokenDataset(job / "video")
    assert "\n" not in str(error.value)


def test_ids_beyond_the_vocabulary_are_noticed_by_the_loader(job: Path) -> None:
    change(job / "video", lambda info, manifest: info.update(vocab=1))
    with pytest.raises(DataError, match="ids outside the vocabulary of 1"):
        TokenDataset(job / "video")[0]


@pytest.mark.parametrize("how", ["bomb", "no zip", "lacks an array", "other shape", "negative"])
def test_an_index_that_cannot_be_ours_is_not_unpacked(job: Path, how: str) -> None:
    tar = only("video/shards/*.tar", job)
    with np.load(index_path(tar)) as found:
        arrays = dict(found)
    if how == "bomb":
        with open(index_path(tar), "wb") as file:
            np.savez_compressed(file, **arrays | {"keys": np.zeros(10_000_000, "S8")})
    elif how == "no zip":
        index_path(tar).write_bytes(b"PK")
    else:
        if how == "lacks an array":
            del arrays["keys"]
        elif how == "other shape":
            arrays["offsets"] = arrays["offsets"][:1]
        else:
            arrays["offsets"] = arrays["offsets"] - 10**9
        with open(index_path(tar), "wb") as file:
            np.savez(file, **arrays)
    sha256 = sha256_file(index_path(tar))
    change(job / "video", lambda info, manifest: manifest["shards"][0].update(index_sha256=sha256))
    with pytest.raises(DataError, match="index is damaged") as error:
        TokenDataset(job / "video")[0]
    assert json.dumps(str(error.value)).count("\\n") == 0
