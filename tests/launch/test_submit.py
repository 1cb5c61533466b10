"""What is submitted: the script's text, the snapshot, refusals; and when a job goes back into the queue."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import PRETRAIN, ROOT, make_tokens, write_config
from scripts import run_script

import megavrc
from megavrc.distributed import Rank
from megavrc.errors import UserError
from megavrc.launch.requeue import Attempt, attempts, attempts_file, diagnose, record, saved_step, stop_reason
from megavrc.launch.slurm import Resources
from megavrc.launch.snapshot import ENTRIES, snapshot
from megavrc.training.watchdog import Watchdog

TOOL = "tools/submit_slurm.py"
EXAMPLES = ROOT / "examples" / "slurm"


def example_command(script: Path) -> list[str]:
    """What the README of the examples says a script was made with."""
    lines = (EXAMPLES / "README.md").read_text().replace("\\\n", " ").splitlines()
    [line] = [line for line in lines if line.rstrip().endswith(f"> examples/slurm/{script.name}")]
    words = line.strip().partition(" > ")[0].split()
    assert words[:2] == ["megavrc", Path(TOOL).stem]
    return words[2:]


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.sbatch")), ids=lambda path: path.name)
def test_examples_are_what_the_tool_renders(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert run_script(TOOL, *example_command(script)) == 0
    assert capsys.readouterr().out == script.read_text()
    assert subprocess.run(["bash", "-n", script]).returncode == 0, "not valid shell"


def test_there_are_examples_for_three_sizes() -> None:
    texts = [path.read_text() for path in EXAMPLES.glob("*.sbatch")]
    sizes = {(text.count("--nodes=8") and 64) or (8 if "--gpus-per-node=8" in text else 1) for text in texts}
    assert sizes == {1, 8, 64}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "after `--` comes one of"),
        (["--", "tools/generate.py"], "after `--` comes one of"),
        (["--", PRETRAIN, "--config=missing.yaml"], "missing.yaml"),
        (["--nodes=0", "--", PRETRAIN, "--config={config}"], "--nodes: 0"),
        (["--nodes=3", "--", PRETRAIN, "--config={config}"], "not a multiple of 3 ranks"),
        (["--", PRETRAIN, "--config={config}", "--train.stepz=1"], "stepz"),
        (["--array=2", "--", PRETRAIN, "--config={config}"], "--array"),
        (["--", "tools/tokenize_videos.py", "run", "--out=x"], "--array=N"),
        (["--array=2", "--", "tools/tokenize_videos.py", "run"], "tokenize_videos run: required: out"),
        (
            ["--array=2", "--", "tokenize_videos", "run", "x", "--thread=2"],
            "unknown option --thread (did you",
        ),
        (["--name=a\nb", "--", PRETRAIN, "--config={config}"], "an option of sbatch is one line"),
        (
            ["--time=10", "--", PRETRAIN, "--config={config}"],
            "--grace: 600 seconds before the end of --time 10",
        ),
        (["--time=0-0:05:00", "--grace=300", "--", PRETRAIN, "--config={config}"], "--grace: 300 seconds"),
    ],
)
def test_mistakes_are_named_before_the_queue(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    named: str,
) -> None:
    config = write_config(tmp_path, tmp_path / "tokens", "run", 5)
    assert run_script(TOOL, "render", *(option.format(config=config) for option in options)) == 2
    said = capsys.readouterr().err
    assert named in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["a\nb", "a\\b", "10:30", "a\tb"])
def test_folders_that_slurm_cannot_carry_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    config = write_config(tmp_path, tmp_path / "tokens", name, 5)
    assert run_script(TOOL, "render", "--", PRETRAIN, f"--config={config.rename(tmp_path / 'c.yaml')}") == 2
    said = capsys.readouterr().err
    assert "a job's folder cannot have" in said and said.count("\n") == 1


def test_an_unbalanced_quote_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, tmp_path / "tokens", "run", 5)
    assert run_script(TOOL, "render", '--sbatch=--foo "', "--", PRETRAIN, f"--config={config}") == 2
    said = capsys.readouterr().err
    assert "--sbatch" in said and "No closing quotation" in said and said.count("\n") == 1


def test_time_limits_are_read_as_slurm_reads_them() -> None:
    for time in ("", "UNLIMITED", "0", "11", "10:01", "00:10:01", "1-0", "0-1:00", "0-0:10:01"):
        Resources(time=time)
    for time in ("10", "10:00", "0:10:00", "0-0:10"):
        with pytest.raises(UserError, match=f"--time {time} are before"):
            Resources(time=time, grace=600)


def test_the_folder_of_tokenization_may_stand_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["render", "--array=2", "--", "tokenize_videos", "run", str(tmp_path / "o p"), "--threads", "2"]
    assert run_script(TOOL, *words) == 0
    assert f"--run_dir='{tmp_path}/o p' --exit_code" in capsys.readouterr().out


def test_a_mistake_before_there_are_heartbeats_leaves_word(tmp_path: Path) -> None:
    """Of one rank, whose exit code srun may not tell: that of another one, which it kills, is higher."""
    note = tmp_path / "mistake"
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "MEGAVRC_MISTAKE": str(note)}
    words = [sys.executable, PRETRAIN, "--config=none.yaml"]
    done = subprocess.run(words, capture_output=True, text=True, env=environ, cwd=ROOT)
    assert done.returncode == 2 and note.is_file()


def test_render_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, make_tokens(tmp_path / "tokens"), "run", 5)
    words = ["--gpus=2", "--", PRETRAIN, f"--config={config}", "--train.steps", "7"]
    assert run_script(TOOL, "render", *words) == 0
    assert "#SBATCH --gpus-per-node=2" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_job_of_a_run_that_is_named_from_inside_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run := tmp_path / "runs/mine").mkdir(parents=True)
    monkeypatch.chdir(run)
    assert "--job-name=runs-mine" in Resources().directives(Path())


def test_without_slurm_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    config = write_config(tmp_path, tmp_path / "tokens", "run", 5)
    assert run_script(TOOL, "submit", "--", PRETRAIN, f"--config={config}") == 2
    assert "no sbatch here" in capsys.readouterr().err
    assert run_script(TOOL, "requeue", f"--run_dir={tmp_path}") == 2
    assert "was never submitted" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_snapshot_runs_by_itself(tmp_path: Path) -> None:
    snapshot(tmp_path / "code")
    assert not list((tmp_path / "code").rglob("*.pyc"))
    code = "import megavrc.launch.submit as s; print(s.__file__)"
    words = [sys.executable, "-c", code]
    done = subprocess.run(
        words, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path / "code")}, cwd=tmp_path
    )
    assert done.stdout.strip() == str(tmp_path / "code" / "megavrc" / "launch" / "submit.py"), done.stderr
    assert (tmp_path / "code" / PRETRAIN).is_file()


def test_the_snapshot_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no scripts beside the package, they are written."""
    site = tmp_path / "site" / "megavrc"
    shutil.copytree(ROOT / "megavrc", site, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(megavrc, "__file__", str(site / "__init__.py"))
    assert snapshot(tmp_path / "code") is None
    words = [sys.executable, tmp_path / "code" / TOOL, "requeue", f"--run_dir={tmp_path}"]
    environment = {"PYTHONPATH": str(tmp_path / "code")}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert "was never submitted" in done.stderr
    for script in ENTRIES:
        assert f'main("{Path(script).stem}")' in (ROOT / script).read_text()
        assert f'main("{Path(script).stem}")' in (tmp_path / "code" / script).read_text()


def history(*ends: tuple[int, int]) -> list[Attempt]:
    """Attempts from (exit code, step)."""
    return [
        Attempt("1", number, "n1", code, step, 100.0 * number) for number, (code, step) in enumerate(ends)
    ]


@pytest.mark.parametrize(
    ("ends", "complete", "reason"),
    [
        ([(0, 50)], True, "complete"),
        ([(0, 50)], False, None),  # stopped by a signal
        ([(85, 50)], False, None),
        ([(2, 50)], False, "mistake"),
        ([(1, 0), (1, 0)], False, None),
        ([(1, 0), (1, 0), (137, 0)], False, "no progress"),
        ([(1, 0), (1, 0), (137, 20)], False, None),  # the third got further
        ([(0, 40), (1, 40), (1, 40)], False, None),
        ([(0, 40), (1, 40), (85, 40), (0, 40)], False, "no progress"),
        ([(1, 0), (1, 0), (0, 9), (1, 9), (1, 9)], False, None),
    ],
)
def test_training_comes_back_unless(ends: list[tuple[int, int]], complete: bool, reason: str | None) -> None:
    found = stop_reason(history(*ends), complete, counts_steps=True)
    assert found is None if reason is None else reason in str(found)


def test_a_job_submitted_anew_starts_counting_from_zero() -> None:
    failed = history((1, 0), (1, 0), (1, 0))
    assert stop_reason([*failed, replace(failed[-1], job="2")], False, counts_steps=True) is None
    later = history((85, 5000), (85, 5000), (85, 5000))  # what it began with is no progress of its own
    assert stop_reason(later, False, True, 5000) and not stop_reason(later, False, True, 4000)


@pytest.mark.parametrize(
    "error", [UserError("a damaged sample"), ValueError("a bug")], ids=["mistake", "bug"]
)
def test_a_mistake_that_one_rank_met_is_the_job_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """srun's exit code is that of the ranks it killed afterwards."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(type(error)), Watchdog(tmp_path, Rank(1, 2, 1, torch.device("cpu")), limit=10.0):
        raise error
    mistake = isinstance(error, UserError)
    assert record(tmp_path, 137)[-1].exit_code == (2 if mistake else 137)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert record(tmp_path, 137)[-1].exit_code == 137, "what a stay before this one said"


def test_tokenization_comes_back_unless_it_fails_thrice() -> None:
    stopped, failed = (75, 0), (1, 0)
    assert stop_reason(history(*[stopped] * 9), False, counts_steps=False) is None
    assert stop_reason(history(stopped, failed, failed), False, counts_steps=False) is None
    assert stop_reason(history(failed, failed, failed), False, counts_steps=False)


def test_the_diagnosis_says_what_happened(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "1.out").write_text("earlier\n" * 100 + "RuntimeError: the cause\n")
    text = diagnose(tmp_path, history((1, 0), (1, 0), (137, 0)), "no progress", None).read_text()
    assert "RuntimeError: the cause" in text and "out of host memory" in text and "on n1" in text


def test_the_saved_step_is_the_checkpoint_s(tmp_path: Path) -> None:
    assert saved_step(tmp_path) == 0
    for name in ("step-00000120", "step-00000140", ".unfinished-step-00000160-1", "step-old"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    latest = tmp_path / "checkpoints" / "latest"
    assert saved_step(tmp_path) == 140, "the node died before `latest` was written"
    latest.write_text("step-00000120")
    assert saved_step(tmp_path) == 120
    for damaged in ("", "step-00000200", "edited", "step-"):
        latest.write_text(damaged)
        assert saved_step(tmp_path) == 140


# --- the end of a stay, as the batch script calls it; SLURM's commands only write down what is asked of them -----


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    for name, does in {"scontrol": f"echo $* >> {tmp_path}/asked", "squeue": "", "sbatch": "echo 9"}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "run" / "slurm").mkdir(parents=True)
    return tmp_path / "run"


def stay(run: Path, exit_code: int, *limits: str) -> tuple[bool, str]:
    """Whether job 7 asked to come back after a stay, and what was said."""
    environ = {"PATH": f"{run.parent}/bin:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "7"}
    words = [*limits, sys.executable, TOOL, "requeue", f"--run_dir={run}", f"--exit_code={exit_code}"]
    done = subprocess.run(words, capture_output=True, text=True, env=environ, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    asked = run.parent / "asked"
    came = asked.is_file()
    assert not came or asked.read_text() == "requeue 7\n"
    asked.unlink(missing_ok=True)
    return came, done.stdout + done.stderr


def test_damaged_small_files_do_not_keep_a_job_away(run: Path) -> None:
    for name, content in {"checkpoints/latest": "", "heartbeats/rank-00000.json": ""}.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(content)
    whole = '{"job": "7", "restart": 0, "nodes": "n1", "exit_code": 137, "step": 0, "time": 1.0}'
    strange = '[1]\n{"job": 7}\n' + whole.replace("137", '"x"') + "\n" + "9" * 5000 + "\n" + "[" * 100_000
    attempts_file(run).write_text(f"{whole}\n{strange}\n{whole[:40]}")
    os.mkfifo(run / "heartbeats" / "rank-00001.json")
    came, said = stay(run, 137)
    assert came and "exit code 137: requeued" in said
    assert [attempt.exit_code for attempt in attempts(attempts_file(run))] == [137, 137]
    came, said = stay(run, 1)
    assert not came and "3 attempts in a row" in said, "what could be read still counts"


def test_a_full_disk_does_not_keep_a_job_away(run: Path) -> None:
    came, said = stay(
        run, 85, "prlimit", "--fsize=20"
    )  # bytes of a file; the stand-in for scontrol writes ten
    assert came and "this attempt is not written down (File too large)" in said
    assert not any((run / "slurm").iterdir()), "nothing half-written"


def test_an_earlier_end_is_not_this_one_s(run: Path) -> None:
    """train.steps was raised; complete.json is there until training has begun."""
    (run / "complete.json").write_text('{"step": 100}')
    for code in (85, 138):
        came, said = stay(run, code)
        assert came and f"exit code {code}: requeued" in said
    came, said = stay(run, 0)
    assert not came and "exit code 0: not requeued: complete" in said
    assert not (run / "slurm" / "diagnosis.txt").exists()


def submitted(run: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Job 7 is that submission's, and SLURM's commands are those of the fixture."""
    monkeypatch.setenv("PATH", f"{run.parent}/bin:/usr/bin:/bin")
    (run / "slurm" / str(number)).mkdir()
    job = '{"job": "7", "command": [], "revision": null}'
    (run / "slurm" / str(number) / "job.json").write_text(job)


def test_status_and_requeue_by_hand_bear_damaged_files(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(run, 1, monkeypatch)
    attempts_file(run).write_text('{"job": ')
    (run / "checkpoints" / "step-00000120").mkdir(parents=True)
    (run / "checkpoints" / "latest").write_text("")
    assert run_script(TOOL, "status", f"--run_dir={run}") == 0
    assert "step       120 saved\n" in capsys.readouterr().out
    (run / "complete.json").write_text("{}")
    assert run_script(TOOL, "requeue", f"--run_dir={run}") == 2
    assert "is complete" in capsys.readouterr().err
    stay(run, 85)
    assert run_script(TOOL, "requeue", f"--run_dir={run}") == 0, "the last stay failed"
    assert "submitted job 9" in capsys.readouterr().out
    (run / "complete.json").write_text("{}")  # finished without SLURM
    assert run_script(TOOL, "requeue", f"--run_dir={run}") == 2


def test_a_job_goes_on_from_the_folder_that_it_was_submitted_in(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(run, 1, monkeypatch)
    asked, here = run.parent / "asked", os.getcwd()
    (run.parent / "bin" / "sbatch").write_text(f"#!/bin/sh\necho $* from $(pwd) >> {asked}\necho 9\n")
    config = write_config(run.parent, run.parent / "tokens", "run", 5)
    (run / "checkpoints" / "step-00000003").mkdir(parents=True)
    assert run_script(TOOL, "submit", "--", PRETRAIN, f"--config={config}") == 0
    job = run / "slurm" / "2" / "job.json"
    assert json.loads(job.read_text()).items() >= {"folder": here, "step": 3}.items()
    monkeypatch.chdir(run.parent)
    assert run_script(TOOL, "requeue", "--run_dir=run") == 0
    assert asked.read_text().splitlines()[1] == f"--parsable {run}/slurm/2/job.sbatch from {here}"
    job.write_text(job.read_text().replace(here, "/gone"))
    assert run_script(TOOL, "requeue", "--run_dir=run") == 2
    assert "/gone: the job was submitted from there, and it is gone" in capsys.readouterr().err


def test_a_submission_never_takes_the_folder_of_another(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(run, 2, monkeypatch)  # the first was deleted
    config = write_config(run.parent, run.parent / "tokens", "run", 5)
    submit = ["submit", "--", PRETRAIN, f"--config={config}"]
    (run.parent / "bin" / "sbatch").write_text("#!/bin/sh\necho full >&2; exit 1\n")
    assert run_script(TOOL, *submit) == 2
    assert [path.name for path in (run / "slurm").iterdir()] == ["2"], "and the refused one is gone"
    (run.parent / "bin" / "sbatch").write_text("#!/bin/sh\necho 9\n")
    assert run_script(TOOL, *submit) == 0
    assert '"job": "9"' in (run / "slurm" / "3" / "job.json").read_text()
    assert '"job": "7"' in (run / "slurm" / "2" / "job.json").read_text()
    (run / "slurm" / "4").mkdir()  # of a submission that was killed
    capsys.readouterr()
    assert run_script(TOOL, "status", f"--run_dir={run}") == 0
    assert "job        9 (submission 3)" in capsys.readouterr().out


def test_a_queue_that_does_not_answer_is_no_empty_queue(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(run, 1, monkeypatch)
    squeue = run.parent / "bin" / "squeue"
    squeue.write_text("#!/bin/sh\necho slurm_load_jobs error: Socket timed out >&2; exit 1\n")
    for command in ("status", "requeue"):
        assert run_script(TOOL, command, f"--run_dir={run}") == 2
        assert "does not say whether job 7 is done: slurm_load_jobs error: Socket" in capsys.readouterr().err
    squeue.write_text("#!/bin/sh\necho slurm_load_jobs error: Invalid job id specified >&2; exit 1\n")
    assert run_script(TOOL, "status", f"--run_dir={run}") == 0
    assert "not in the queue" in capsys.readouterr().out
