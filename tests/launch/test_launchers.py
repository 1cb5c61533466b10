"""One command, every launcher: the same training under each, to the last bit where there are as many ranks."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import PRETRAIN, ROOT, environment, launch, make_tokens, metrics, weights, write_config

STEPS = 4
BIN = Path(sys.executable).parent
MPIRUN = [BIN / "mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
TORCHRUN = ["python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
needs_mpi = pytest.mark.skipif(
    not (BIN / "mpirun").exists() or importlib.util.find_spec("mpi4py") is None,
    reason="Open MPI and mpi4py are not installed: pip install 'megavrc[mpi]'",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launchers")
    make_tokens(folder / "tokens")
    return folder


def train(world: Path, name: str, *launcher: str | Path, **more: str) -> Path:
    """A whole run under a launcher."""
    config = write_config(world, world / "tokens", name, STEPS)
    done = launch(*launcher, PRETRAIN, f"--config={config}", **more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (world / name / "complete.json").is_file()
    return world / name


@pytest.fixture(scope="module")
def torchrun(world: Path) -> Path:
    return train(world, "torchrun", *TORCHRUN)


def same(a: Path, b: Path) -> bool:
    mine, theirs = weights(a, STEPS), weights(b, STEPS)
    return all(torch.equal(mine[name], theirs[name]) for name in mine | theirs)


@pytest.fixture(scope="module")
def mpirun(world: Path) -> Path:
    return train(world, "mpirun", *MPIRUN, sys.executable)


@needs_mpi
def test_mpirun(mpirun: Path) -> None:
    [start] = json.loads((mpirun / "run.json").read_text())["starts"]
    assert start["world_size"] == 2 and metrics(mpirun)[-1]["step"] == STEPS


@needs_mpi
@pytest.mark.slow
def test_mpirun_and_torchrun_train_the_same(mpirun: Path, torchrun: Path) -> None:
    assert same(mpirun, torchrun)


@needs_mpi
@pytest.mark.slow
def test_mpirun_over_several_machines_asks_the_first_rank_for_its_address(
    world: Path, torchrun: Path
) -> None:
    """Two ranks, each told that it is the only one on its machine."""
    alone = ["env", "OMPI_COMM_WORLD_LOCAL_SIZE=1", sys.executable]
    assert same(train(world, "machines", *MPIRUN, *alone), torchrun)


@pytest.mark.slow
def test_plain_python(world: Path, torchrun: Path) -> None:
    alone = train(world, "alone", "python")
    ours, theirs = metrics(alone), metrics(torchrun)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [1, 2, 3, 4]


@pytest.mark.slow
def test_the_launcher_of_deepspeed(world: Path, torchrun: Path, free_port: int) -> None:
    launcher = [BIN / "deepspeed", "--num_gpus=2", f"--master_port={free_port}"]
    path = f"{BIN}:{os.environ['PATH']}"
    assert same(train(world, "deepspeed", *launcher, DS_ACCELERATOR="cpu", PATH=path), torchrun)


@pytest.mark.slow
def test_a_mistake_under_our_torchrun_is_one_line(world: Path) -> None:
    words = ["-m", "megavrc.distributed.torchrun", *TORCHRUN[3:], PRETRAIN, "--config=demo_image"]
    done = subprocess.run(
        [sys.executable, *words, "--data.path=/nowhere"],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number", "exit_code"),
    [
        ("python", signal.SIGTERM, 0),
        ("python", signal.SIGINT, 0),
        ("torchrun", signal.SIGTERM, 1),  # whatever its processes say
        ("ours", signal.SIGTERM, 128 + signal.SIGTERM),
        ("ours", signal.SIGINT, 128 + signal.SIGINT),
        pytest.param("mpirun", signal.SIGUSR1, 0, marks=needs_mpi),  # SIGTERM would end the job at once
    ],
)
def test_a_signal_to_the_launcher_stops_a_run_after_saving(
    world: Path, name: str, number: signal.Signals, exit_code: int
) -> None:
    words = {"python": [sys.executable], "torchrun": [sys.executable, *TORCHRUN[1:]]}
    words["ours"] = [sys.executable, "-m", "megavrc.distributed.torchrun", *TORCHRUN[3:]]
    words["mpirun"] = [*map(str, MPIRUN), sys.executable]
    stem = f"stop-{name}-{number}"
    config = write_config(world, world / "tokens", stem, 100_000)
    command = [*words[name], PRETRAIN, f"--config={config}"]
    run = world / stem
    process = subprocess.Popen(
        command, env=environment(), cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + 120
        while len(metrics(run)) < 3:
            assert time.monotonic() < end and process.poll() is None, "it does not train"
            time.sleep(0.1)
        if number == signal.SIGINT:  # Ctrl-C reaches all processes of a terminal
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        code = process.returncode
    finally:
        process.kill()
    assert code == exit_code and (name == "torchrun" or "Traceback" not in said), said
    latest = (run / "checkpoints" / "latest").read_text()
    assert (
        int(latest.removeprefix("step-")) == metrics(run)[-1]["step"] and not (run / "complete.json").exists()
    )
