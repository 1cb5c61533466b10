"""A plan is used as it was written, or not at all."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from jobs import SMALL, files

from megavrc.errors import UserError
from megavrc.files import read_json, sha256_json, write_json
from megavrc.tokenization.job import plan, run
from megavrc.tokenization.plan import UNHASHED, load_plan
from megavrc.tokenization.result import finalize, status, verify
from megavrc.video.manifest import read_manifest, write_manifest

COMMANDS: list[Callable[[Path], None]] = [run, finalize, verify, status]


@pytest.fixture
def job(done: Path, tmp_path: Path) -> Path:
    """A finished job."""
    return Path(shutil.copytree(done, tmp_path / "job"))


def refused(job: Path, name: str) -> None:
    for command in COMMANDS:
        with pytest.raises(UserError, match=rf"{name}( line 1)?: ") as error:
            command(job)
        assert "\n" not in str(error.value)


def test_lines_that_are_gone_are_noticed(
    job: Path, manifest: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(job)
    text = (job / "plan.jsonl").read_text()
    for changed in (
        text[: len(text) // 2],
        "".join(text.splitlines(True)[:-3]),
        text + text,
        "",
        text + "\n",
    ):
        (job / "plan.jsonl").write_text(changed)
        refused(job, "plan.jsonl")
    (job / "plan.jsonl").unlink()
    refused(job, "plan.jsonl")
    plan(manifest, job, tokenizer, **SMALL)  # as the error says
    verify(job)
    assert files(job) == before


def test_a_pipe_in_the_place_of_its_list_does_not_hang(job: Path) -> None:
    (job / "plan.jsonl").unlink()
    os.mkfifo(job / "plan.jsonl")
    refused(job, "plan.jsonl")


@pytest.mark.parametrize("key", ["shard", "source", "start_frame", "stride"])
def test_a_key_that_the_job_would_replace_is_refused(
    job: Path, manifest: Path, tokenizer: Path, tmp_path: Path, key: str
) -> None:
    entries = [entry | {key: "theirs"} for entry in read_manifest(manifest)]
    other = manifest.with_name(f"{key}.jsonl")
    write_manifest(other, entries)
    with pytest.raises(UserError, match=rf"{key}.jsonl: id '.*' has a key {key}, .* rename the column"):
        plan(other, tmp_path / "new", tokenizer, **SMALL)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["plan.jsonl", "plan.json"])
def test_no_flipped_bit_goes_unnoticed(job: Path, name: str) -> None:
    """In plan.json all bits but those of the two places, which may move."""
    whole = (job / name).read_bytes()
    content = read_json(job / "plan.json")
    places = [whole.find(str(content[key]).encode()) for key in ("root", "tokenizer_path")]
    spans = [
        range(at, at + len(content[key])) for at, key in zip(places, ("root", "tokenizer_path"), strict=True)
    ]
    chance = random.Random(0)
    tried = 0
    while tried < 200:
        at = chance.randrange(len(whole))
        if name == "plan.json" and any(at in span for span in spans):
            continue
        tried += 1
        flipped = bytearray(whole)
        flipped[at] ^= 1 << chance.randrange(8)
        (job / name).write_bytes(flipped)
        try:
            load_plan(job)
        except UserError:
            continue
        assert read_json(job / name) == content  # white space
    (job / name).write_bytes(whole)
    verify(job)


@pytest.mark.parametrize(
    "text", ["", "[]", "5", "{}", "[" * 100_000, '{"settings": ' + "9" * 5_000 + "}", "\ud83d", "null"]
)
def test_damaged_plan_files_are_one_line(job: Path, manifest: Path, tokenizer: Path, text: str) -> None:
    before = files(job)
    (job / "plan.json").write_text(text, errors="surrogatepass")
    refused(job, "plan.json")
    with pytest.raises(UserError, match=r"plan\.json"):
        plan(manifest, job, tokenizer, **SMALL)
    (job / "plan.json").unlink()
    plan(manifest, job, tokenizer, **SMALL)  # as the error says: what is done stays done
    shards = {path: path.stat().st_mtime_ns for path in job.rglob("*.tar")}
    run(job)
    verify(job)
    assert files(job) == before and shards == {path: path.stat().st_mtime_ns for path in shards}


def test_a_setting_that_was_changed_by_hand_is_refused(job: Path, manifest: Path, tokenizer: Path) -> None:
    content = read_json(job / "plan.json")
    for key, value in {"seed": 7, "frames": 9, "crop": "squash"}.items():
        write_json(job / "plan.json", {**content, "settings": {**content["settings"], key: value}})
        refused(job, "plan.json")
    for place in ("root", "tokenizer_path"):
        for value in (None, 3, ["/moved"], {}):
            write_json(job / "plan.json", {**content, place: value})
            refused(job, "plan.json")
    write_json(job / "plan.json", {**content, "root": "/moved"})  # may move
    assert load_plan(job).root == Path("/moved")


def write_classes(job: Path, classes: list[str] | None) -> None:
    """A plan as if it had been made with other classes."""
    content = read_json(job / "plan.json") | {"classes": classes}
    decides = {key: value for key, value in content.items() if key not in UNHASHED}
    write_json(job / "plan.json", content | {"plan_sha256": sha256_json(decides)})


def test_a_job_for_each_split_has_the_same_classes(manifest: Path, tokenizer: Path, tmp_path: Path) -> None:
    """A validation set of classes may be a job of its own, whose videos need not be of all of them."""
    entries = read_manifest(manifest)
    for entry in entries:
        entry["path"] = str(manifest.parent / entry["path"])
        entry["split"] = "val" if entry["label"] == 0 else "train"
    write_manifest(tmp_path / "m.jsonl", entries)
    for split in ("train", "val"):
        plan(tmp_path / "m.jsonl", tmp_path / split, tokenizer, **SMALL, splits=[split])
        assert load_plan(tmp_path / split).classes == ["a", "b"]
    write_classes(tmp_path / "val", ["a"])  # as it was made before
    plan(tmp_path / "m.jsonl", tmp_path / "val", tokenizer, **SMALL, splits=["val"])
    assert load_plan(tmp_path / "val").classes == ["a"]


def test_one_video_without_a_label_leaves_classes_their_names(
    manifest: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """Beside the folders of the classes lies a video of none; plans of before gave no names then, and stay."""
    entries = read_manifest(manifest)
    for entry in entries:
        entry["path"] = str(manifest.parent / entry["path"])
    entries[0] |= {"label": None, "class": None}
    write_manifest(listed := tmp_path / "manifest.jsonl", entries)
    plan(listed, out := tmp_path / "out", tokenizer, **SMALL)
    assert load_plan(out).classes == ["a", "b"]
    write_classes(out, None)
    plan(listed, out, tokenizer, **SMALL)
    assert load_plan(out).classes is None
