"""What a newer megavrc wrote is refused by name, by every command that would read it, and nothing is touched."""

import json
from pathlib import Path

import pytest
from commands import run

TOKENIZE, SHOW = "tools/tokenize_videos.py", ["tools/inspect_shards.py", "--folder=tokens/video"]
COMPARE = ["tools/compare_runs.py", "stage2"]
CONVERT = [
    "tools/convert_checkpoint.py",
    "to-hf",
    "--video_tokenizer=tokenizer/model",
    "--run=stage2",
    "--out=new",
]
VERIFY = [TOKENIZE, "verify", "--out=tokens"]
SAVED = "stage2/checkpoints/step-00000004/manifest.json"
FEATURES = "tokens/video/text_features/dataset.json"

# File, where its number is, what a newer one says, and a command that reads it.
FILES = [
    ("stage2/run.json", "format", 2, [*COMPARE, "stage1"]),
    (SAVED, "format", "megavrc-checkpoint v3", CONVERT),
    ("tokenizer/model/config.json", "format", 2, [*SHOW, "--tokenizer=tokenizer/model", "--sheet=s.png"]),
    ("tokens/plan.json", "format", 2, [TOKENIZE, "status", "--out=tokens"]),
    ("tokens/plan.json", "format", 2, [TOKENIZE, "run", "--out=tokens"]),
    ("tokens/video/dataset.json", "format", "megavrc-shards 2", SHOW),
    (FEATURES, "format", "megavrc-text-features 2", VERIFY),
    ("hf/config.json", "format_version", 3, ["tools/generate.py", "--model=hf", "--prompt=a", "--out=new"]),
    ("data/shapes.json", "format", 2, ["tools/make_shapes.py", "--out=data"]),
    ("slurm/slurm/1/job.json", "format", 2, ["tools/submit_slurm.py", "status", "--run_dir=slurm"]),
]  # fmt: skip


@pytest.mark.parametrize(("file", "key", "newer", "words"), FILES, ids=str)
def test_a_newer_file_is_refused(
    old: Path, file: str, key: str, newer: int | str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if "slurm" in file:  # needs a cluster to be made; its number is looked at first
        (old / file).parent.mkdir(parents=True)
        (old / file).write_text('{"job": "1"}')
    content = json.loads((old / file).read_text())
    (old / file).write_text(json.dumps(content | {key: newer}))
    before = {path: path.stat().st_mtime_ns for path in old.rglob("*") if path.is_file()}
    assert run(*words) == 2
    number = str(newer).split()[-1].removeprefix("v")
    assert f"made by a newer megavrc (format {number}, this one reads up to {int(number) - 1})" in (
        error := capsys.readouterr().err
    )
    assert error.splitlines()[-1].startswith(f"error: {file}") and "Traceback" not in error
    assert {path: path.stat().st_mtime_ns for path in old.rglob("*") if path.is_file()} == before


def test_a_reference_of_a_newer_format_is_refused(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, *lines = Path("results/reference.jsonl").read_text().splitlines()
    newer = {"reference": json.loads(first)["reference"] | {"format": 2}}
    Path("new.jsonl").write_text("\n".join([json.dumps(newer), *lines]))
    assert run(*COMPARE, "new.jsonl") == 2
    assert "new.jsonl: made by a newer megavrc (format 2, this one reads up to 1)" in capsys.readouterr().err
