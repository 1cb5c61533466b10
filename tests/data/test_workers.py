"""Reading processes: the same batches, clear errors, no hang, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch

from megavrc.data.shards import DataError
from megavrc.data.workers import MAX_DEATHS, WorkerDied, in_workers

ROOT = Path(__file__).resolve().parents[2]


def square(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


def first(results: Iterator[Any], number: int) -> list[Any]:
    return list(islice(results, number))


def test_results_come_in_order_from_other_processes() -> None:
    results = first(in_workers(square, count(), 3), 30)
    assert [result for result, _ in results] == [n**2 for n in range(30)]
    assert len({pid for _, pid in results} - {os.getpid()}) == 3


def test_large_results_pass_and_no_worker_is_ahead_without_bound(tmp_path: Path) -> None:
    def work(number: int) -> torch.Tensor:
        (tmp_path / str(number)).touch()
        return torch.full((1_000_000,), number)

    results = in_workers(work, count(), 2)
    assert [int(tensor[-1]) for tensor in islice(results, 5)] == list(range(5))
    time.sleep(0.3)
    assert len(list(tmp_path.iterdir())) <= 5 + 2 * 2
    results.close()


def test_all_kinds_of_tensors_come_out_as_they_were() -> None:
    kinds = [torch.int64, torch.uint8, torch.bool, torch.float32, torch.bfloat16]
    tensors = [torch.arange(12).view(3, 4).to(kind) for kind in kinds]
    tensors += [torch.tensor(2.5), torch.empty(0, 3), torch.arange(12).view(3, 4).T]
    results = in_workers(lambda task: {"x": (tensors, [task, "y"])}, count(), 1)
    found, rest = next(results)["x"]
    results.close()
    assert rest == [0, "y"] and [tensor.dtype for tensor in found] == [tensor.dtype for tensor in tensors]
    assert all(torch.equal(a, b) for a, b in zip(found, tensors, strict=True))
    found[0][0] = 7


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    results = in_workers(square, count(), 2)
    found = first(results, 5)
    os.kill(found[-1][1], number)
    found += first(results, 10)
    os.kill(found[-1][1], number)
    found += first(results, 10)
    results.close()
    assert [result for result, _ in found] == [n**2 for n in range(25)]
    assert caplog.text.count(f"a data worker died (exit code {-number})") == 2


def test_a_worker_killed_at_its_work_is_replaced(tmp_path: Path) -> None:
    """As by the kernel, for want of memory."""

    def work(task: int) -> int:
        if task == 3 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    assert first(in_workers(work, count(), 2), 8) == list(range(8))
    assert (tmp_path / "died").exists()


def test_workers_that_always_die_are_an_error_and_no_hang() -> None:
    def work(task: int) -> int:
        if task == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    results = in_workers(work, count(), 2)
    assert first(results, 3) == [0, 1, 2]
    with pytest.raises(WorkerDied, match=rf"died {MAX_DEATHS} times .* exit code -9 .* lower train.workers"):
        next(results)


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"of {one} and {two}")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (lambda: DataError("shard x: sample y"), DataError, "^shard x: sample y$"),
        (lambda: OSError(5, "i/o"), OSError, "i/o"),
        (lambda: Unpicklable(1, 2), RuntimeError, "Unpicklable: of 1 and 2"),
    ],
)
def test_an_error_comes_out_as_it_was(
    error: Callable[[], Exception], kind: type[Exception], words: str
) -> None:
    def work(task: int) -> int:
        if task == 2:
            raise error()
        return task

    results = in_workers(work, count(), 2)
    assert first(results, 2) == [0, 1]
    with pytest.raises(kind, match=words):
        next(results)


KILLED = """
import itertools, sys, time, os
from megavrc.data.workers import in_workers
results = in_workers(lambda n: os.getpid(), itertools.count(), 3)
print(*{next(results) for _ in range(3)}, flush=True)
time.sleep(600)
"""


def test_workers_go_with_a_killed_parent() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", KILLED],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 3
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "workers stayed"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
