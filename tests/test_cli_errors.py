"""A user's mistake ends in one line on stderr that names what is wrong, and exit code 2; never in a traceback."""

import json
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
import yaml
from forked import run_forked
from scripts import run_script
from tiny import TINY, save_tokenizer

from megavrc.config import run_command
from megavrc.generation.evaluate_clips import drift, redundancy
from megavrc.hf.convert import build, read_run, write_folder
from megavrc.tokenizers import OmniTokenizer, TextTokenizer
from megavrc.video import write_mp4

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos, two tokenizers with random weights, tokens made by the first, and a configuration for them."""
    folder = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(0)
    rows = []
    for number in range(3):
        write_mp4(folder / f"{number}.mp4", random.integers(0, 256, (17, 32, 32, 3), np.uint8))
        rows.append(
            {
                "id": str(number),
                "path": f"{number}.mp4",
                "caption": "a red square",
                "label": 0,
                "split": "train",
            }
        )
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "broken.mp4").write_bytes(b"not a video" * 100)
    options = ["--manifest", folder / "manifest.jsonl", "--size", 32]
    options += ["--tokenizer", save_tokenizer(folder / "tokenizer0")]
    save_tokenizer(folder / "tokenizer1", seed=1)
    for step in (["plan", *options], ["run"], ["finalize"]):
        assert run_script("tools/tokenize_videos.py", *step, "--out", folder / "tokens") == 0
    assert run_script("tools/tokenize_videos.py", "plan", *options, "--out", folder / "todo") == 0
    TextTokenizer.train(["a red square moves left", "a blue circle"] * 10, folder / "tokenizer.model", 64)
    config = {
        "run_dir": str(folder / "run"),
        "stage": "video",
        "model": {
            "layers": 1,
            "heads": 1,
            "width": 16,
            "vocab": TINY.codes,
            "grid": 4,
            "condition": {"slots": 8, "vocab": TextTokenizer(folder / "tokenizer.model").vocab},
        },
        "data": {
            "path": str(folder / "tokens/video"),
            "text_tokenizer": str(folder / "tokenizer.model"),
            "video_tokenizer": str(folder / "tokenizer0"),
        },
        "train": {"steps": 1, "global_batch": 1, "micro_batch": 1},
        "preview": {"count": 0},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    config["model"]["widht"] = config["model"].pop("width")  # type: ignore[index]
    (folder / "misspelt.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def pretraining(world: Path) -> dict[str, CompletedProcess[str]]:
    """How a run of one step ended, and how its mistakes did, by name; the last one stands in the run's folder."""
    mistakes = {
        name: f"--run_dir {world}/other {options.replace('{}', str(world))}".split()
        for name, (options, _) in PRETRAIN_MISTAKES.items()
    }
    runs = {"": [], **mistakes, "another run": ["--seed", "1"]}
    command = [ROOT / "pretrain/pretrain_vrc.py", "--config", world / "config.yaml"]
    return {name: run_forked(*command, *words) for name, words in runs.items()}


@pytest.fixture(scope="module")
def trained(world: Path, pretraining: dict[str, CompletedProcess[str]]) -> Path:
    """A run of one step, and its folder, converted without the gate, which other tests try."""
    assert pretraining[""].returncode == 0, pretraining[""].stderr
    vrc = build(read_run(world / "run"), torch.float32)
    parts = OmniTokenizer.from_checkpoint(world / "tokenizer0"), TextTokenizer(world / "tokenizer.model")
    write_folder(world / "hf", vrc, *parts, training={}, shard_size="4GB")
    return world


# name -> (script, options, words of the error line); {} in them is the world's folder
MISTAKES: dict[str, tuple[str, str, str]] = {
    "no options": ("tools/make_shapes.py", "", "out"),
    "abbreviated option": ("tools/make_shapes.py", "--out {}/x --clip 3", "--clip"),
    "unknown option": ("tools/make_shapes.py", "--out {}/x --colour red", "--colour"),
    "value of the wrong type": ("tools/make_shapes.py", "--out {}/x --clips many", "clips"),
    "value out of range": ("tools/make_shapes.py", "--out {}/x --heldout 50", "heldout"),
    "folder that holds something else": ("tools/make_shapes.py", "--out {}", "{}"),
    "unknown subcommand": ("tools/prepare_dataset.py", "videos", "videos"),
    "missing folder": (
        "tools/prepare_dataset.py",
        "videofolder --folder {}/none --out {}/m.jsonl",
        "{}/none",
    ),
    "missing table": ("tools/prepare_dataset.py", "list --table {}/none.csv --out {}/m.jsonl", "{}/none.csv"),
    "missing manifest": (
        "tools/tokenize_videos.py",
        "plan --manifest {}/none.jsonl --tokenizer {}/tokenizer0 --out {}/t",
        "{}/none.jsonl",
    ),
    "missing tokenizer": (
        "tools/tokenize_videos.py",
        "plan --manifest {}/manifest.jsonl --tokenizer {}/none --out {}/t",
        "{}/none",
    ),
    "no workers": (
        "tools/tokenize_videos.py",
        "all --manifest {}/manifest.jsonl --tokenizer {}/tokenizer0 --out {}/t --size 32 --workers 0",
        "--workers: 0 is not a positive number",
    ),
    "size that does not fit the tokenizer": (
        "tools/tokenize_videos.py",
        "plan --manifest {}/manifest.jsonl --tokenizer {}/tokenizer0 --out {}/t --size 33",
        "33",
    ),
    "another plan lies there": (
        "tools/tokenize_videos.py",
        "plan --manifest {}/manifest.jsonl --tokenizer {}/tokenizer1 --out {}/tokens --size 32",
        "{}/tokens",
    ),
    "no plan": ("tools/tokenize_videos.py", "run --out {}/none", "{}/none"),
    "tokenizer of another plan": (
        "tools/tokenize_videos.py",
        "run --out {}/todo --tokenizer {}/tokenizer1",
        "plan is for tokenizer",
    ),
    "missing configuration": ("pretrain/pretrain_vrc.py", "--config {}/none.yaml", "{}/none.yaml"),
    "unknown key in YAML": (
        "pretrain/pretrain_vrc.py",
        "--config {}/misspelt.yaml",
        "model.widht (did you mean model.width?)",
    ),
    "unknown key on the command line": (
        "pretrain/pretrain_vrc.py",
        "--config {}/config.yaml --train.stpes 3",
        "train.stpes",
    ),
    "abbreviated key on the command line": (
        "pretrain/pretrain_vrc.py",
        "--config {}/config.yaml --train.step 3",
        "train.step",
    ),
    "value of the wrong type in a configuration": (
        "pretrain/pretrain_vrc.py",
        "--config {}/config.yaml --train.steps many",
        "train.steps",
    ),
    "not a dataset": ("tools/inspect_shards.py", "--folder {}", "{}"),
    "no such sample": ("tools/inspect_shards.py", "--folder {}/tokens/video --sample 99", "99"),
}

PRETRAIN_MISTAKES: dict[str, tuple[str, str]] = {  # name -> (options, words of the error line)
    "shape that does not fit": ("--model.grid 8", "4x4"),
    "shards of another tokenizer": ("--data.video_tokenizer {}/tokenizer1", "shards were made by tokenizer"),
    "batches that do not divide": ("--train.micro_batch 2", "micro_batch"),
}

TRAINED_MISTAKES: dict[str, tuple[str, str, str]] = {
    "prompt longer than the slots": (
        "tools/generate.py",
        "--model {}/hf --out {}/clips --prompt " + "a_red_square_" * 20,
        "the model takes 7",
    ),
    "unreadable picture": (
        "tools/generate.py",
        "--model {}/hf --out {}/clips --prompt red --first_image {}/broken.mp4",
        "{}/broken.mp4",
    ),
    "prompts that are missing": (
        "tools/generate.py",
        "--model {}/hf --out {}/clips --prompts {}/none.txt",
        "{}/none.txt",
    ),
    "label for a text model": ("tools/generate.py", "--model {}/hf --out {}/clips --label 3", "prompts"),
    "folder that exists": (
        "tools/convert_checkpoint.py",
        "to-hf --run {}/run --video_tokenizer {}/tokenizer0 --out {}/hf",
        "{}/hf",
    ),
    "output folder that is a file": (
        "tools/generate.py",
        "--model {}/hf --out {}/config.yaml --prompt red",
        "{}/config.yaml: File exists",
    ),
    "output folder below a file": (
        "tools/convert_checkpoint.py",
        "to-hf --run {}/run --video_tokenizer {}/tokenizer0 --text_tokenizer {}/tokenizer.model "
        "--out {}/config.yaml/hf",
        "{}/config.yaml/hf: Not a directory",
    ),
    "pixels of no size": (
        "tools/generate.py",
        "--model {}/hf --out {}/clips --prompt red --scale 0",
        "scale: 0",
    ),
    "no frames a second": (
        "tools/generate.py",
        "--model {}/hf --out {}/clips --prompt red --fps 0",
        "fps: 0",
    ),
    "no frames to continue": (
        "tools/generate.py",
        "--model {}/hf --out {}/clips --prompt red --clip {}/0.mp4 --clip_frames 0",
        "{}/0.mp4: has 17 frames, 0",
    ),
    "clips without attributes": (
        "tools/evaluate.py",
        "alignment --model {}/hf --manifest {}/manifest.jsonl",
        "make_shapes",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_line_and_exit_code_2(mistake: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, options, words = MISTAKES[mistake]
    capsys.readouterr()
    assert run_script(script, *options.replace("{}", str(world)).split()) == 2
    check_line(capsys.readouterr().err, words.replace("{}", str(world)))


@pytest.mark.parametrize("mistake", TRAINED_MISTAKES)
def test_with_a_trained_model(mistake: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, options, words = TRAINED_MISTAKES[mistake]
    capsys.readouterr()
    assert run_script(script, *options.replace("{}", str(trained)).split()) == 2
    check_line(capsys.readouterr().err, words.replace("{}", str(trained)))


@pytest.mark.parametrize("mistake", PRETRAIN_MISTAKES)
def test_pretraining(mistake: str, world: Path, pretraining: dict[str, CompletedProcess[str]]) -> None:
    done = pretraining[mistake]
    assert done.returncode == 2, done.stderr
    check_line(done.stderr, PRETRAIN_MISTAKES[mistake][1].replace("{}", str(world)))


def test_a_run_folder_that_holds_another_run(pretraining: dict[str, CompletedProcess[str]]) -> None:
    done = pretraining["another run"]
    assert done.returncode == 2, done.stderr
    check_line(done.stderr, "holds another run (seed: 0 there, 1 here)")


def check_line(errors: str, words: str) -> None:
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ") and words in lines[0]


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_that_no_generator_takes_are_refused_before_any_work(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after it: numpy and torch refuse some of them with an error of their own, where an interval is drawn."""
    write_mp4(tmp_path / "a.mp4", np.zeros((5, 32, 32, 3), np.uint8))
    write_mp4(tmp_path / "b.mp4", np.zeros((5, 32, 32, 3), np.uint8))
    for command in (drift, redundancy):
        assert run_command(command, [str(tmp_path), "--draws", "20", "--seed", str(seed)]) == 2
        assert capsys.readouterr().err == f"error: --seed: {seed} is not between 0 and 2**64 - 1\n"
