"""The demo from end to end with a hundredth of its steps: every command, every file, the report in one piece."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from parsing import parsed

from megavrc.demo.run import demo_steps, main, what_now
from megavrc.demo.scenes import scene_steps
from megavrc.errors import UserError
from megavrc.video import clip_grid

ROOT = Path(__file__).parents[2]
WORDS = [sys.executable, "-m", "megavrc.demo.run", "--part=0.01"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run([*WORDS, f"--out={folder}"], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.mark.parametrize(("of", "name"), [(demo_steps, "demo"), (scene_steps, "demo_scenes")])
def test_every_command_of_the_demo_knows_its_options(of, name, tmp_path):
    """What the whole demo, which is slow, would find first."""
    steps = of(tmp_path, 0.5, 3, 2)
    for step in steps:
        script = next((at for at, word in enumerate(step.words) if word.endswith(".py")), None)
        if script:
            assert parsed(step.words[script], step.words[script + 1 :])
    [stages] = [step.environment for step in steps if step.environment]
    for stage, options in (("image", stages["IMAGE_OPTIONS"]), ("video", stages["VIDEO_OPTIONS"])):
        words = [f"--config=pretrain/configs/{name}_{stage}.yaml", *shlex.split(options)]
        found = parsed("pretrain/pretrain_vrc.py", words)
        assert found["seed"] == 3 and found["train.micro_batch"] == 4


@pytest.mark.slow
def test_every_part_leaves_its_result(run):
    for name in ("tokenizer", "stage1", "stage2"):
        assert (run / name / "complete.json").is_file()
        if name != "tokenizer":  # at so few steps it has no codebook yet, and nothing to show
            assert list((run / name / "previews").glob("*.png"))
        assert list((run / name / "tensorboard").iterdir())
        lines = [json.loads(line) for line in (run / name / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] > 0 and lines[-1]["loss"] > 0
    assert len(list((run / "samples").glob("*.mp4"))) == 3
    assert len(list((run / "samples").glob("0*.gif"))) == 3
    assert (run / "hf" / "modeling_vrc.py").is_file()


@pytest.mark.slow
def test_scores_cover_all_sets(run):
    scores = json.loads((run / "alignment.json").read_text())
    assert set(scores) == {"real", "reconstructed", "generated", "generated_t1", "heldout"}
    assert scores["real"]["all"] >= 0.99
    assert scores["reconstructed"]["psnr"] > 5


@pytest.mark.slow
def test_the_report_needs_no_other_file(run):
    page = (run / "report.html").read_text()
    assert page.count("data:image/") == 2 and page.count("<svg") == 3
    sources = re.findall(r'(?:src|href)="([^"#]{1,40})', page)
    assert sources and all(source.startswith("data:") for source in sources)
    assert "small-scale demonstration" in page


@pytest.mark.slow
def test_a_demo_goes_on_where_it_was_stopped(run):
    (run / "tokens" / "image" / "manifest.json").unlink()  # killed between the last two files of tokenization
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if "samples" not in path.parts}
    done = subprocess.run([*WORDS, f"--out={run}"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.count("already there") >= 6
    assert (run / "tokens" / "image" / "manifest.json").is_file()
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    again = {"tokens", "image", "video", "plan.json", "plan.jsonl", "dataset.json", "manifest.json"}
    assert changed <= {"report.html", "samples", "timing.json", run.name} | again


@pytest.mark.slow
def test_the_demo_of_scenes_compares_both_samplers_and_makes_again_what_is_gone(tmp_path):
    """The same prompts and seeds in one pass and in several; the page shows their scores, modes among them."""
    run, words = tmp_path / "demo", [*WORDS, "--data=scenes"]
    done = subprocess.run([*words, f"--out={run}"], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    one, several = (json.loads((run / f"{name}.json").read_text()) for name in ("one_pass", "refined"))
    assert one["config"] | {"later_passes": None} == several["config"] | {"later_passes": None}
    assert one["config"]["later_passes"] != several["config"]["later_passes"]
    page = (run / "report.html").read_text()
    rows = re.findall(r"<tr>.*?</tr>", page, re.DOTALL)
    for sampler in ("one pass", "refined"):
        assert sum(sampler in row for row in rows) == 2, "from the true first frame, and from the caption"
    assert all(word in page for word in ("whole", "modes", "direction"))
    assert page.count("data:image/") == 2
    sources = re.findall(r'(?:src|href)="([^"#]{1,40})', page)
    assert sources and all(source.startswith("data:") for source in sources)
    (run / "refined.json").unlink()
    again = subprocess.run([*words, f"--out={run}"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and again.stdout.count("already there") == 5
    scores = json.loads((run / "refined.json").read_text())
    assert scores["cases"] == several["cases"]


def test_commands_are_printed_whole(tmp_path):
    """With the variables that they read, quoted as a shell takes them; what comes next too."""
    steps = demo_steps(tmp_path / "my run", 0.25, 3, 2)
    assert {len(step.environment) for step in steps} == {0, 6}
    for step in steps:
        words = shlex.split(step.command)
        variables = dict(word.split("=", 1) for word in words[: len(step.environment)])
        assert variables == step.environment and words[len(variables) :] == step.words
    lines = [shlex.split(line) for _, line in what_now(tmp_path / "my run")]
    assert {tuple(words[:3]) for words in lines} == {(sys.executable, "-m", "megavrc")}
    assert ["demo", "--data=scenes"] in [words[3:] for words in lines], "the way to the other demo"


def test_the_comparison_names_every_clip(tmp_path):
    """Captions and the three kinds stand in the pictures whole: a phone shows them 350 pixels wide."""
    clips = [(name, np.zeros((2, 64, 64, 3), np.uint8)) for name in ("real", "reconstructed", "generated")]
    caption = "a magenta triangle moves right (held out)"
    grid = clip_grid(clips, columns=3, scale=3, headings=[caption], text=18)
    assert grid.shape[1:3] == (2 * 4 + 64 * 3 + 25 + 29, 3 * (64 * 3 + 4) + 4)
    longer = clip_grid(clips, columns=3, scale=3, headings=[caption + " and more" * 9], text=18)
    ink = [np.flatnonzero((g[0, 6:28] < 128).all(axis=-1).any(axis=0)).max() for g in (grid, longer)]
    assert ink[0] < ink[1] < grid.shape[2]  # the caption is not cut, a longer one is


def test_parts_of_another_demo_are_not_passed_off_as_this_one(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "demo.json").write_text('{"format": 2, "part": 1.0, "seed": 1, "processes": 2}')
    (tmp_path / "unknown").mkdir()
    (tmp_path / "made" / "demo.json").write_text('{"part": 0.25, "seed": 0, "processes": 2}')
    (tmp_path / "unknown" / "alignment.json").write_text("{}")
    for folder, words in (
        ("made", "(--part=0.25 there, 1.0 here; --seed=0 there, 1 here)"),
        ("unknown", "--part=? there, 1.0 here"),
        ("newer", "made by a newer megavrc (format 2, this one reads up to 1)"),
    ):
        before = sorted((tmp_path / folder).iterdir())
        with pytest.raises(UserError) as error:
            main(tmp_path / folder, seed=1)
        assert words in str(error.value)
        assert sorted((tmp_path / folder).iterdir()) == before


@pytest.mark.parametrize("data", ["shapes", "scenes"])
@pytest.mark.parametrize(
    ("processes", "said"),
    [(0, "--processes: 0, at least 1"), (3, "--processes: 3 does not divide the batch of 4")],
)
def test_a_wrong_option_leaves_no_folder_that_refuses_the_right_one(tmp_path, data, processes, said):
    with pytest.raises(UserError, match=said):
        main(tmp_path / "mine", data, processes=processes)
    assert not (tmp_path / "mine").exists()


def test_the_run_folder_is_relative_to_the_caller(tmp_path):
    """The steps run in the repository: their options must not be read relative to that."""
    words = [*WORDS, "--out=mine", "--part=1e-9"]  # no clips: a step refuses that
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert f"--out={tmp_path / 'mine' / 'data'}" in done.stdout
    options = json.loads((tmp_path / "mine" / "demo.json").read_text())
    assert options == {"format": 1, "part": 1e-9, "seed": 0, "processes": 2}
