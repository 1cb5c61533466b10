"""What a finished dataset says of its captions, and what a plan and a dataset say of folders, sizes and names."""

import json
import re
import unicodedata
from pathlib import Path

import pytest
from jobs import SMALL
from trees import touch

from megavrc.data.dataset import TokenDataset
from megavrc.errors import UserError
from megavrc.files import read_json, write_json
from megavrc.tokenization.datasets import list_
from megavrc.tokenization.inspect import inspect
from megavrc.tokenization.job import plan, run
from megavrc.tokenization.plan import load_plan, names_by_label
from megavrc.tokenization.result import finalize, verify
from megavrc.tokenizers import OmniTokenizer


def test_videos_without_caption_or_label_are_counted(
    manifest: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    entries = [entry for entry in entries if entry["id"] != "a/10.mp4"][:6]  # which is damaged
    entries += [{"path": "gone.mp4", "id": "gone"}]  # gives no sample, so nothing is counted
    entries[1]["caption"], entries[2]["caption"], entries[4]["caption"] = None, " \n", None
    entries[4]["split"] = entries[5]["split"] = "val"
    for entry in entries:
        entry |= {"path": str(manifest.parent / entry["path"]), "label": None}
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    out = tmp_path / "out"
    plan(tmp_path / "m.jsonl", out, tokenizer, **SMALL | {"images_per_video": 1, "splits": ["train", "val"]})
    run(out)
    finalize(out, samples=0)
    for kind in ("video", "image"):
        info = read_json(out / kind / "dataset.json")
        assert info["without"] == {"train": {"caption": 2, "label": 4}, "val": {"caption": 1, "label": 2}}
        write_json(out / kind / "dataset.json", {key: info[key] for key in info if key != "without"})
        assert len(TokenDataset(out / kind)) == 4  # as old ones, of which this is not known
    printed = capsys.readouterr().out
    first = min(entries[1]["id"], entries[2]["id"])
    assert f"{out} train: 2 of 4 videos have no caption, the first is {first}\n" in printed
    assert "no label" not in printed  # none has one, which is not by mistake


def test_a_class_keeps_its_name_beside_videos_without() -> None:
    entries = [{"label": 2, "class": "bike"}, {"label": 2}, {"label": 0}, {"label": None, "class": "none"}]
    assert names_by_label(entries) == ["0", "1", "bike"]
    assert names_by_label([{"label": None}]) is None


def test_the_folder_of_a_job_is_no_dataset(done: Path) -> None:
    with pytest.raises(
        UserError, match=f"{done}: the folder of a job; its datasets are {done}/video and {done}/image"
    ):
        TokenDataset(done)
    with pytest.raises(UserError, match=r"no manifest.json; finish it with megavrc tokenize_videos finalize"):
        TokenDataset(done / "failures")


def test_counts_and_sizes_that_cannot_be(done: Path, manifest: Path, tokenizer: Path, tmp_path: Path) -> None:
    for command in (finalize, verify):
        with pytest.raises(UserError, match="--samples -1: at least 0"):
            command(done, samples=-1)
    assert (done / "video" / "manifest.json").is_file()
    for wrong in ({"timeout": 1e10}, {"threads": 100_000}, {"decoders": 100_000}):
        with pytest.raises(UserError, match=r"timeout is at most 1e\+06 seconds, threads and decoders 1024"):
            run(done, **wrong)
    with pytest.raises(UserError, match="--count 0: at least 1"):
        inspect(done / "video", count=0)
    with pytest.raises(UserError, match="frames of size 1000000000: array is too big"):
        plan(manifest, tmp_path / "out", tokenizer, **SMALL | {"size": 10**9})


def test_a_dataset_is_no_job(done: Path) -> None:
    with pytest.raises(UserError, match=f"{done}/video: a part of a job, whose folder is {done}$"):
        load_plan(done / "video")


def test_the_tokenizer_says_the_size(
    manifest: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {key: value for key, value in SMALL.items() if key != "size"}
    loaded = OmniTokenizer.from_checkpoint(tokenizer)
    OmniTokenizer(loaded.net, size=48).save(tmp_path / "tokenizer")
    for name, options, expected in (("own", {}, 48), ("other", {"size": 32}, 32)):
        plan(manifest, tmp_path / name, tmp_path / "tokenizer", **small, **options)
        assert load_plan(tmp_path / name).settings.size == expected
        warned = (
            "warning: --size 32: the tokenizer was trained on frames of 48 pixels" in capsys.readouterr().err
        )
        assert warned == (name == "other")
    plan(manifest, tmp_path / "old", tokenizer, **small)  # which does not say
    assert load_plan(tmp_path / "old").settings.size == 256
    plan(manifest, tmp_path / "old", tokenizer, **small, size=256)  # the same plan


@pytest.mark.parametrize("folder", ["", "caf\u00e9/"])
def test_names_in_another_unicode_form_are_told_from_missing_ones(tmp_path: Path, folder: str) -> None:
    nfc = f"{folder}\u00fc.mp4"
    touch(tmp_path / unicodedata.normalize("NFD", nfc))
    touch(tmp_path / "a.mp4")
    told = (
        r"the first is .*; the name of .* on disk is spelled with other Unicode characters \(NFD\): copy it"
    )
    table = touch(tmp_path / "t.csv", f"path\n{nfc}\n")
    with pytest.raises(UserError, match=f"t.csv: none of the 1 listed videos exists, {told}"):
        list_(table, tmp_path / "new" / "m.jsonl")
    table = touch(tmp_path / "t.csv", f"path\na.mp4\n{nfc}\ngone.mp4\n")
    (note,) = list_(table, tmp_path / "m.jsonl").notes
    assert re.match(f"2 listed videos are missing and left out, {told}", note)
    table = touch(tmp_path / "t.csv", "path\n\u00f6.mp4\n")
    with pytest.raises(UserError, match=r"is --folder right\?$"):
        list_(table, tmp_path / "m.jsonl")
