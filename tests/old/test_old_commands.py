"""The command lines of 3415e13 (commands.txt) parse, and mean what they meant; none of them is run."""

import functools
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT
from parsing import parsed

from megavrc.model.clips import class_numbers

COMMANDS = [line for line in Path(__file__).with_name("commands.txt").read_text().splitlines() if line]
C_YAML = str(ROOT / "pretrain/configs/demo_video.yaml")
SCRIPTS = ("tools/", "pretrain/", "examples/")


@functools.cache
def parsed_line(line: str) -> dict[str, Any]:
    words = [
        C_YAML if word in ("C.yaml", "my/C.yaml") else word.replace("=C.yaml", f"={C_YAML}")
        for word in shlex.split(line)
    ]
    at = next(i for i, word in enumerate(words) if word.startswith(SCRIPTS))
    return parsed(words[at], words[at + 1 :])


@pytest.mark.parametrize("line", [line for line in COMMANDS if not line.startswith(("#", "make "))])
def test_command_line_parses(line: str) -> None:
    assert parsed_line(line)
    _, separator, own = line.partition(" -- ")
    if separator:  # of a script, or for plan_run of pretraining
        assert parsed_line(own if own.startswith(SCRIPTS) else f"pretrain/pretrain_vrc.py {own}")


@pytest.mark.parametrize(
    "line",
    [
        "tools/generate.py --model FOLDER --prompt a --out samples --topk 3",
        "tools/tokenize_videos.py run --out tokens --retry_failed=3",
        "pretrain/pretrain_vrc.py --config C.yaml --train.steps three",
        "tools/doctor.py --jsn FILE",
    ],
)
def test_a_line_that_is_wrong_does_not_parse(line: str) -> None:
    """Or the tests above could not fail."""
    with pytest.raises(pytest.fail.Exception, match="error: "):
        parsed_line(line)


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
def test_make_knows_the_target(line: str) -> None:
    done = subprocess.run([*shlex.split(line), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("beginning", "key", "value"),
    [
        ("tools/generate.py --model FOLDER --label '[3, 7]'", "label", [3, 7]),
        ("tools/generate.py --model FOLDER --label 3 ", "label", 3),
        ("tools/generate.py --model FOLDER --label 3 ", "top_k", 500),
        ('tools/generate.py --model FOLDER --prompt \'["a", "b"]\'', "prompt", ["a", "b"]),
        ("tools/tokenize_videos.py run --out tokens --retry-failed", "retry_failed", True),
        ("tools/tokenize_videos.py run --out tokens --retry_failed", "retry_failed", True),
        (
            "tools/prepare_dataset.py skytimelapse --folder DIR --out sky.jsonl --min-frames",
            "min_frames",
            17,
        ),
        ("tools/benchmark.py train --preset='[xl,1.2b]'", "micro_batch", [1, 8]),
        ("tools/benchmark.py attention --device cuda", "shapes", [[8, 12], [8, 32]]),
        ("pretrain/pretrain_vrc.py --config C.yaml --train.steps 3", "train.steps", 3),
        ("pretrain/pretrain_vrc.py --config C.yaml --train.save-every", "run_dir", "runs/x"),
        (
            "pretrain/pretrain_tokenizer.py --config=pretrain/configs/demo_tokenizer.yaml --train",
            "data.frames_schedule",
            {0: 9, 50: 17},
        ),
    ],
)
def test_values_mean_what_they_meant(beginning: str, key: str, value: object) -> None:
    """Quick to see that a parser takes the words; this is that it takes them for the same."""
    line = next(line for line in COMMANDS if line.startswith(f"python {beginning}"))
    found = parsed_line(line)[key]
    if key == "label":  # by name too since, so words; which classes are meant is the same
        found, value = class_numbers(found, 101), class_numbers(value, 101)  # type: ignore[arg-type]
    assert (list(map(list, found)) if key.endswith("shapes") else found) == value
