"""The study's runner: what it runs, skips, repeats and records; the whole of P0 at toy size (slow)."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import measure
import pytest
import run as study
import yaml
from matrix import Matrix

from megavrc.errors import UserError
from megavrc.results import read_result

ROOT = Path(__file__).resolve().parents[2]
SET = {
    "format": 1,
    "checkpoints": [2],
    "sampled": [],
    "image": "pretrain/configs/scenes_image.yaml",
    "steps": {
        "one": {"product": "{set}/one", "command": "{clips} {set} one"},
        "two": {"product": "{set}/two", "command": "{clips} {set} two"},
    },
    "sets": {"toys": {"clips": "step.py"}},
    "runs": {
        "toy": {
            "priority": 0,
            "set": "toys",
            "config": "pretrain/configs/scenes_video.yaml",
            "seeds": [0, 1],
        },
        "next": {"priority": 0, "set": "toys", "config": "missing.yaml", "init": "toy", "seeds": [0]},
        "new": {"priority": 1, "set": "toys", "config": "missing.yaml", "needs": "model.wings", "seeds": [0]},
    },
}
STEP = (
    "import pathlib, sys\n"
    "folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]\n"
    "folder.mkdir(parents=True, exist_ok=True)\n"
    "print('step', name)\n"
    "if name == 'two' and not (folder / 'allowed').exists():\n"
    "    sys.exit(3)\n"
    "(folder / name).touch()\n"
)


def runner(folder: Path) -> study.Runner:
    """Of a matrix whose set is made by a small script, in this checkout."""
    (folder / "step.py").write_text(STEP)
    content = json.loads(json.dumps(SET).replace("step.py", str(folder / "step.py")))
    (folder / "matrix.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    matrix = Matrix(folder / "matrix.yaml", folder)
    return study.Runner(folder, ROOT, matrix, folder / "results", threading.Event(), pauses=False)


def statuses(made: study.Runner) -> dict[str, str]:
    return {job.name: made.status(job) for job in made.matrix.jobs()}


def test_what_fails_is_recorded_and_repeated_only_when_asked(tmp_path: Path) -> None:
    made = runner(tmp_path)
    jobs = made.matrix.jobs(0)
    assert [job.name for job in jobs] == [
        "toys/one",
        "toys/two",
        *("toy-0", "toy-0/bits", "toy-0/probes"),
        *("next-0", "next-0/bits", "next-0/probes"),
        *("toy-1", "toy-1/bits", "toy-1/probes"),
    ]
    assert made.matrix.jobs(0, seeds=[1]) == [*jobs[:2], *jobs[-3:]]
    assert not made.run(jobs, retry=False)
    expected = {"toys/one": "done", "toys/two": "failed"}
    assert {name: status for name, status in statuses(made).items() if status != "new"} == expected
    assert made.missing(jobs[2]) == "toys/two"
    (tmp_path / "sets" / "toys" / "allowed").touch()
    again = runner(tmp_path)  # what is known is in the folder
    assert not again.run(jobs[:2], retry=False)
    assert len(again.jobs["toys/two"]["attempts"]) == 1
    assert again.run(jobs[:2], retry=True)
    assert statuses(again)["toys/two"] == "done"
    assert [attempt["code"] for attempt in again.jobs["toys/two"]["attempts"]] == [3, 0]
    assert len(again.jobs["toys/one"]["attempts"]) == 1, "what is done is not done again"
    assert (tmp_path / "logs" / "toys-two.log").read_text() == "step two\nstep two\n"


def test_a_failed_run_has_a_result_that_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    """The training command refuses its data in one line."""
    (tmp_path / "sets" / "toys").mkdir(parents=True)
    (tmp_path / "sets" / "toys" / "allowed").touch()
    made = runner(tmp_path)
    assert not made.run(made.matrix.jobs(0)[:6], retry=False)
    found = statuses(made)
    assert (found["toy-0"], found["toy-0/bits"], found["next-0"]) == ("failed", "new", "new")
    text = (tmp_path / "results" / "toy-0.json").read_text()
    result = json.loads(text)
    assert (result["status"], result["run"], result["seed"]) == ("failed", "toy", 0)
    assert result["attempts"]["toy-0"][0]["code"] == 2 and result["metrics"] == {}
    assert result["output"]["toy-0"][-1].startswith("error: WORK/sets/toys/tokenizer/model")
    assert str(tmp_path) not in text and str(ROOT) not in text and sys.prefix not in text


def test_a_run_waits_for_a_key_of_the_configuration(tmp_path: Path) -> None:
    made = runner(tmp_path)
    [waiting] = [job for job in made.matrix.jobs() if job.name == "new-0"]
    assert waiting.needs == "model.wings" and "model.wings" in made.missing(waiting)
    assert "--model.grid " in made._options


def test_a_stop_leaves_the_rest(tmp_path: Path) -> None:
    made = runner(tmp_path)
    made.stop.set()
    assert made.run(made.matrix.jobs(), retry=False)
    assert set(statuses(made).values()) == {"new"}


def git(folder: Path, *words: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", "-C", folder, *names, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_clone_stays_at_its_revision_until_it_is_updated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, work = tmp_path / "checkout", tmp_path / "work"
    git(tmp_path, "init", "--quiet", str(checkout))
    git(checkout, "commit", "--quiet", "--allow-empty", "-m", "one")
    monkeypatch.setattr(study, "CHECKOUT", checkout)
    first = git(checkout, "rev-parse", "HEAD")
    clone = study.frozen_clone(work, update=False)
    (checkout / "more").touch()
    git(checkout, "add", "more")
    git(checkout, "commit", "--quiet", "-m", "two")
    assert study.revision(study.frozen_clone(work, update=False)) == first
    assert study.revision(study.frozen_clone(work, update=True)) == git(checkout, "rev-parse", "HEAD")
    assert (clone / "more").exists()


def test_one_runner_a_folder_and_outside_of_the_checkout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="inside the checkout"):
        study.run(ROOT / "runs" / "study")
    with pytest.raises(UserError, match="--priority: -1, at least 0"):
        study.run(tmp_path / "new", priority=-1)
    assert not (tmp_path / "new").exists()
    with open(tmp_path / "lock", "w") as lock:
        study.hold(lock, tmp_path)
        with open(tmp_path / "lock", "w") as second, pytest.raises(UserError, match="another runner"):
            study.hold(second, tmp_path)
    with pytest.raises(UserError, match="no matrix has been started"):
        study.status(tmp_path)


def start(work: Path, *more: str) -> "subprocess.Popen[str]":
    words = [
        sys.executable,
        "benchmarks/study/run.py",
        "run",
        f"--work={work}",
        f"--results={work / 'results'}",
    ]
    words += ["--priority=0", "--smoke", "--pauses=false", *more]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_p0_at_toy_size_with_a_stop_in_between(tmp_path: Path) -> None:
    first = start(tmp_path)
    assert first.stdout
    for line in first.stdout:
        if line.split()[1:] == ["scenes-vrc-0"]:
            os.kill(first.pid, signal.SIGTERM)
    assert first.wait() == 0
    state = json.loads((tmp_path / "state.json").read_text())["jobs"]
    assert state["scenes-vrc-0"]["status"] == "stopped" and state["scenes-stage1-0"]["status"] == "done"
    second = start(tmp_path, "--samples", "--tune")
    second.communicate()
    assert second.returncode == 0
    results = {path.stem: read_result(path) for path in (tmp_path / "results").iterdir()}
    assert sorted(results) == ["scenes-refine-0", "scenes-stage1-0", "scenes-token-0", "scenes-vrc-0"]
    assert all(found["status"] == "done" for found in results.values())
    assert all(found["metrics"]["steps"]["value"] == 4 for found in results.values())
    for name in ("scenes-vrc-0", "scenes-token-0", "scenes-refine-0"):
        cases = {case["name"]: case for case in results[name]["cases"]}
        bits = [f"bits {split} {step}" for step in (2, 4) for split in ("val", "heldout")]
        kinds = ["given 4", "free 4", "modes 4"]
        reconstructed = ["reconstructed 4"] if name == "scenes-vrc-0" else []
        if name == "scenes-refine-0":  # the same model in one pass and in several
            kinds += [kind.replace(" ", " refined ") for kind in kinds]
            bits += [f"bits {split} refined 4" for split in ("val", "heldout")]
            assert cases["given refined 4"]["config"]["later_passes"] == [8, 1, 1, 1]
        tuned = "refined tuned" if name == "scenes-refine-0" else "tuned"
        kinds += [f"{kind} {tuned} 4" for kind in ("given", "free", "modes", "each")]
        kinds += [f"judge {kind}" for kind in kinds if kind.startswith(("given", "free"))]
        assert sorted(found for found in cases if not found.startswith("tuning")) == sorted(
            [*bits, *kinds, *reconstructed, "probes val 2", "probes val 4"]
        )
        points = [case["config"] for label, case in cases.items() if label.startswith("tuning")]
        assert [len([p for p in points if p["entry"] == entry]) for entry in ("free", "given")] == [18, 6]
        assert [p["entry"] for p in points if p["best"]] == ["free", "given"]
        best = next(p for p in points if p["best"])
        assert cases[f"free {tuned} 4"]["config"]["temperatures"] == best["temperatures"]
        assert "noise" in cases["probes val 4"]["metrics"] and "noise" not in cases["probes val 2"]["metrics"]
        assert cases[f"each {tuned} 4"]["metrics"]["whole_by_latent_4"]["n"] == 2
        assert cases["free 4"]["metrics"]["whole"]["n"] == 2 and "modes_whole" in cases["modes 4"]["metrics"]
        last = json.loads((tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()[-1])
        for frame in range(5):  # of all clips of the split; the training measured them in larger batches
            nats = last[f"val/heldout/{f'frame_{frame}' if frame else 'first'}"]
            measured = cases["bits heldout 4"]["metrics"][f"frame_{frame}"]["value"]
            assert measured == pytest.approx(64 * nats / math.log(2), rel=1e-5)
    once = {case["name"]: case["metrics"] for case in results["scenes-refine-0"]["cases"]}
    totals = []
    for count in (1, 2):  # passes in every later frame; one is the paper's
        measure.passes(tmp_path / "runs" / "scenes-refine-0", count, tmp_path / "passes.json")
        found = json.loads((tmp_path / "passes.json").read_text())["cases"]
        totals.append([case["total"]["value"] for case in found])
    assert totals[0] == pytest.approx(
        [once[f"bits {split} 4"]["total"]["value"] for split in ("val", "heldout")], rel=1e-5
    )
    assert totals[1] != totals[0]  # after four steps known cells add little
    paired = [results[name]["cases"][0]["config"]["clips"] for name in ("scenes-vrc-0", "scenes-token-0")]
    assert paired[0] == paired[1], "they can be compared clip by clip"
    words = [sys.executable, "benchmarks/study/run.py", "status", f"--work={tmp_path}"]
    table = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(r"^scenes-token-0 .* done$", table, re.MULTILINE) and "nobody is at work" in table
