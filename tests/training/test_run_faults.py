"""Faults of a run, injected into real ranks: who notices, what is said, what exit codes there are."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked, run_forked
from toy import toy_config
from worlds import HERE, World, environment

from megavrc.config import dump_yaml
from megavrc.data.order import Order
from megavrc.training.metrics import slow_ranks
from megavrc.training.watchdog import exit_code_of, suspects


def start(
    folder: Path, ranks: int = 2, fault: str = "", toy: dict[str, Any] | None = None, **train: Any
) -> World:
    """A run of the toy task in `folder`/run."""
    folder.mkdir(exist_ok=True)
    dump_yaml(toy_config(folder / "run", **train), folder / "config.yaml")
    env = {"TOY": json.dumps(toy or {})} | ({"MEGAVRC_FAULT": fault} if fault else {})
    return World(ranks, folder, "fault_world.py", "--config", folder / "config.yaml", **env)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / name).read_text().splitlines()]


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (folder / "run" / "checkpoints").glob("step-*"))


def test_a_killed_rank_is_named_and_the_others_end(tmp_path: Path) -> None:
    ended = start(tmp_path, 2, "backward:1:4:kill", watchdog_s=20.0).wait()
    assert ended.codes == [85, -signal.SIGKILL]
    assert "error: rank 1 " in ended.outputs[0] and "is silent" in ended.outputs[0]
    assert ended.seconds[0] - ended.seconds[1] < 30


@pytest.mark.parametrize("when", [pytest.param("make", marks=pytest.mark.slow), "read"])
def test_a_network_that_fails_one_rank_is_to_be_tried_again(tmp_path: Path, when: str) -> None:
    ended = start(tmp_path, 2, toy={"no_network": when}, watchdog_s=10.0).wait()
    assert ended.codes == [85, 85], ended.outputs
    assert "rank 1 " in ended.outputs[0] and "http://far/away: Connection reset" in ended.outputs[0]
    assert "Traceback" not in "".join(ended.outputs)


WATCHED = """
import shutil, sys, time, torch
from pathlib import Path
from megavrc.distributed import Rank
from megavrc.training.watchdog import Watchdog
folder, limit = Path(sys.argv[1]), float(sys.argv[2])
with Watchdog(folder, Rank(0, 1, 0, torch.device('cpu')), limit) as watchdog:
"""


def watched(folder: Path, limit: float, lines: str, errors: str = "err") -> Forked:
    """A program whose watchdog gives up after `limit` seconds; it prints into folder/out."""
    (folder / "watched.py").write_text(WATCHED + lines)
    with open(folder / "out", "w") as out, open(folder / errors, "w") as err:
        return Forked(folder / "watched.py", folder, limit, stdout=out, stderr=err, env=environment())


def test_a_hang_ends_without_a_folder_for_heartbeats_and_with_a_full_log(tmp_path: Path) -> None:
    lines = (
        "    shutil.rmtree(folder / 'heartbeats')\n"
        "    watchdog.at(0, 'data')\n"
        "    time.sleep(100)\n"
    )  # fmt: skip
    assert watched(tmp_path, 1.0, lines, "/dev/full").wait(60) == 85


def test_the_time_for_which_a_run_is_suspended_does_not_count_as_a_hang(tmp_path: Path) -> None:
    lines = (
        "    for step in range(10):\n"
        "        watchdog.at(step, 'data')\n"
        "        print(step, flush=True)\n"
        "        until = time.process_time() + 0.2\n"  # of work, which a suspended process does not do
        "        while time.process_time() < until:\n"
        "            pass\n"
    )
    run = watched(tmp_path, 2.0, lines)
    while not (tmp_path / "out").stat().st_size:
        assert run.wait(0.01) is None
    run.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    run.send_signal(signal.SIGCONT)
    assert run.wait(60) == 0
    assert (tmp_path / "out").read_text().split() == [str(step) for step in range(10)]


def test_a_run_that_goes_on_just_after_the_limit_stays_and_a_later_hang_ends_it(tmp_path: Path) -> None:
    lines = (
        "    watchdog.at(0, 'checkpoint')\n"
        "    time.sleep(2.5)\n"  # it gives up 1 s after the limit
        "    for step in range(20):\n"
        "        watchdog.at(step, 'forward')\n"
        "        time.sleep(0.1)\n"
        "    print('goes on', flush=True)\n"
        "    time.sleep(100)\n"
    )
    assert watched(tmp_path, 2.0, lines).wait(60) == 85
    assert (tmp_path / "out").read_text() == "goes on\n"


def test_a_full_gpu_is_one_line_and_a_mistake(tmp_path: Path) -> None:
    """And who waits for other ranks waits no shorter than the watchdog does."""
    program = tmp_path / "full.py"
    program.write_text(
        "import torch, torch.distributed as dist\n"
        "from megavrc.training.config import BaseRunConfig\n"
        "from megavrc.training.entry import pretrain\n"
        "def task(config, rank):\n"
        "    print(dist.group.WORLD._get_backend(torch.device('cpu')).options._timeout, flush=True)\n"
        "    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..')\n"
        "pretrain(BaseRunConfig, task)\n"
    )
    words = (program, f"--run_dir={tmp_path / 'run'}", "--train.watchdog_s=7200")
    ended = run_forked(*words, env=environment())
    assert (ended.returncode, ended.stdout) == (2, "2:05:00\n")
    assert ended.stderr.startswith("error: rank 0: the memory of the GPU is full (CUDA out of memory. Tried")
    assert "to allocate 2.00 GiB); lower train.micro_batch" in ended.stderr and ended.stderr.count("\n") == 1
    assert exit_code_of(torch.OutOfMemoryError("CUDA out of memory")) == 2, "so do the others"


@pytest.mark.slow
def test_an_error_of_one_rank_is_told_by_the_others(tmp_path: Path) -> None:
    ended = start(tmp_path, 2, "forward:1:4:raise", watchdog_s=20.0).wait()
    assert ended.codes == [1, 1], "it would come again, so not 85"
    assert "failed: injected at forward, step 4" in ended.outputs[0]
    assert "FaultError" in ended.outputs[1]


def test_a_spike_goes_back_and_its_data_is_left_out(tmp_path: Path) -> None:
    """Step 16 meets the bad data; the run goes back to step 15 and does not see it again."""
    settings = {"steps": 20, "save_every": 5, "spike_threshold": 8.0, "spike_window": 10}
    order = Order(37, 5)
    damaged = order.sample(16 * 8 + 1)  # another takes its place in the bad step too
    ended = start(tmp_path, 2, toy={"bad_steps": [16], "damaged": damaged}, **settings).wait()
    assert ended.codes == [0, 0], ended.outputs[0]
    [audit] = lines(tmp_path, "audit.jsonl")
    assert (audit["step"], audit["event"], audit["to"]) == (16, "went back", 15)
    assert audit["left_out_data_of_steps"] == [15, 17]
    trained = sorted(sample for rank in audit["ranks"] for sample in rank["samples"])
    nominal = [order.sample(position) for position in range(16 * 8, 17 * 8)]
    replaced = order.substitute(16 * 8 + 1, 0)
    assert trained == sorted(replaced if sample == damaged else sample for sample in nominal)
    assert [line["step"] for line in lines(tmp_path, "metrics.jsonl")] == list(range(1, 21))
    last = lines(tmp_path, "metrics.jsonl")[-1]
    times = sum(order.sample(position) == damaged for position in range(22 * 8))
    assert (last["rollbacks"], last["replaced"]) == (1, times), "counted on when the run goes back"
    state = json.loads((tmp_path / "run/checkpoints/step-00000020/state.json").read_text())
    assert (state["data_offset"], state["rollbacks"]) == (2, 1)


@pytest.mark.slow
def test_a_run_that_spikes_again_and_again_ends_as_diverged(tmp_path: Path) -> None:
    settings = {
        "steps": 40,
        "save_every": 5,
        "spike_threshold": 8.0,
        "spike_window": 10,
        "spike_rollbacks": 2,
    }
    ended = start(tmp_path, 2, toy={"bad_steps": list(range(16, 60))}, **settings).wait()
    assert ended.codes == [1, 1]
    assert "as often as train.spike_rollbacks allows" in ended.outputs[0]
    assert [line["event"] for line in lines(tmp_path, "audit.jsonl")] == ["went back", "went back", "stopped"]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["data", "forward", "backward", "update"])
def test_a_hanging_rank_is_named_with_its_stacks(tmp_path: Path, where: str) -> None:
    ended = start(tmp_path, 4, f"{where}:2:4:sleep:1000", watchdog_s=10.0, micro_batch=1).wait()
    assert ended.codes == [85] * 4
    report = "".join(ended.outputs)
    assert report.count("no progress for 10 s") == 1, "one rank reports"
    assert next(line for line in report.splitlines() if "HOLDS UP" in line).startswith("  rank 2 ")
    assert f"at step 4, {where}" in report
    assert "in _act" in report, "the stack that sleeps"


@pytest.mark.slow
def test_a_stopped_rank_is_named(tmp_path: Path) -> None:
    ended = start(tmp_path, 2, "backward:1:4:stop", watchdog_s=10.0).wait(but=(1,))
    assert ended.codes == [85, -signal.SIGKILL], "its launcher kills the stopped one"
    assert "rank 1 does not answer" in ended.outputs[0]


@pytest.mark.slow
def test_a_slow_rank_is_named_within_50_steps(tmp_path: Path) -> None:
    ended = start(tmp_path, 2, "data:1:*:sleep:0.2", steps=50, log_every=20, save_every=100).wait()
    assert ended.codes == [0, 0]
    assert "step 40: rank 1 is slow" in ended.outputs[0]
    assert "rank 0 is slow" not in ended.outputs[0]
    for line in lines(tmp_path, "metrics.jsonl"):
        assert line["rank_s"][1] > 0.2 > line["rank_s"][0]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "to"), [("SIGTERM", "one"), ("SIGUSR1", "all")])
@pytest.mark.parametrize("during", ["update", "before_commit", "validation"])
def test_signals_at_any_time_save_once_and_exit_0(tmp_path: Path, number: str, to: str, during: str) -> None:
    """Each rank pauses where the fault is set, and is sent the signal then, twice."""
    pause = f"{during}:*:6:sleep:4"
    settings: dict[str, Any] = {"steps": 400, "save_every": 6, "validate_every": 6, "async_save": False}
    world = start(tmp_path, 2, pause, {"validation": True}, **settings)
    wanted = 6 if during == "update" else 5
    while not (tmp_path / "run/metrics.jsonl").is_file() or len(lines(tmp_path, "metrics.jsonl")) < wanted:
        time.sleep(0.1)
    time.sleep(1.0)
    for _ in range(2):
        for process in world.processes if to == "all" else world.processes[1:]:
            process.send_signal(getattr(signal, number))
        time.sleep(0.2)
    ended = world.wait()
    assert ended.codes == [0, 0], ended.outputs
    assert "stopped by" in ended.outputs[0]
    assert checkpoints(tmp_path)[-1] == lines(tmp_path, "metrics.jsonl")[-1]["step"] < 400
    assert not (tmp_path / "run" / "complete.json").exists()


def test_a_time_limit_stops_like_a_signal_and_broken_metrics_do_not_stop(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("in the way")
    limits: dict[str, Any] = {"steps": 10**6, "exit_duration": 0.02, "log_every": 1000, "save_every": 10**6}
    ended = start(tmp_path, 1, **limits).wait()
    assert ended.codes == [0], ended.outputs[0]
    assert "no TensorBoard" in ended.outputs[0]
    assert "stopped by train.exit_duration" in ended.outputs[0]
    assert checkpoints(tmp_path) == [lines(tmp_path, "metrics.jsonl")[-1]["step"]]


def test_a_full_log_and_previews_that_cannot_be_written_do_not_stop(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "previews").write_text("in the way")
    dump_yaml(toy_config(tmp_path / "run", steps=4), tmp_path / "config.yaml")
    words = [HERE / "fault_world.py", "--config", tmp_path / "config.yaml"]
    with open("/dev/full", "w") as full, open(tmp_path / "err", "w") as err:
        code = Forked(*words, stdout=full, stderr=err, env=environment()).wait(300)
    said = (tmp_path / "err").read_text()
    assert code == 0 and "step 4: no preview (" in said, said
    assert [line["step"] for line in lines(tmp_path, "metrics.jsonl")] == [1, 2, 3, 4]
    assert (tmp_path / "run" / "complete.json").is_file()


def test_who_holds_up_the_others() -> None:
    def beat(
        pulses: int = 9, beats: int = 5, communicates: bool = True, state: str = "running"
    ) -> dict[str, Any]:
        return {"pulses": pulses, "beats": beats, "communicates": communicates, "state": state}

    before = {rank: beat(pulses=8) for rank in range(3)}
    assert suspects(before, {0: beat(), 1: beat(pulses=8), 2: beat()}, 3) == [1], "it no longer pulses"
    assert suspects(before, {0: beat(), 2: beat()}, 3) == [1], "it was never seen"
    assert suspects(before, {0: beat(), 1: beat(), 2: beat(beats=4)}, 3) == [2], "it is behind"
    assert suspects(before, {0: beat(communicates=False), 1: beat(), 2: beat()}, 3) == [0], (
        "others wait for it"
    )
    assert suspects(before, {rank: beat() for rank in range(3)}, 3) == [], "nothing tells"
    gave_up = {0: beat(pulses=8, state="hangs"), 1: beat(beats=4), 2: beat()}
    assert suspects(before, gave_up, 3) == [1], "who has given up already is not silent"


def test_slow_ranks_are_slow_by_a_factor_and_by_enough_to_matter() -> None:
    assert slow_ranks([1.0, 1.0, 2.0], 4.0) == {2}
    assert slow_ranks([1.0, 2.0], 4.0) == {1}
    assert slow_ranks([1.0, 1.0, 2.0], 40.0) == set(), "the step is long anyway"
