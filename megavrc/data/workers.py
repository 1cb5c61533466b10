"""Processes that read ahead. One that dies is replaced and its work done again: the batches stay the same.

Not torch's DataLoader, which raises wherever the training happens to be when a worker dies, cannot go on after that,
and hands batches over through /dev/shm, which containers keep small. Here a worker holds at most one finished batch,
which waits in its pipe.
"""

import copyreg
import io
import logging
import multiprocessing
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np
import torch

log = logging.getLogger(__name__)

A = TypeVar("A")
R = TypeVar("R")

AHEAD = 2  # tasks given to a worker: one it does, one that waits
MAX_DEATHS = 3  # of workers without a batch in between

# As a DataLoader on Linux: nothing has to be pickled to start a worker.
_FORK = multiprocessing.get_context("fork")


class WorkerDied(RuntimeError):
    """Reading processes die again and again, whatever is done."""


def in_workers(work: Callable[[A], R], tasks: Iterator[A], count: int) -> Iterator[R]:
    """`map(work, tasks)`, done ahead of time by `count` processes; tasks and results are pickled.

    Raises:
        WorkerDied: workers died `MAX_DEATHS` times without a result in between.
        Exception: whatever `work` raised, in its place.
    """
    workers = [_Worker(work) for _ in range(count)]
    try:
        for worker in workers * AHEAD:
            worker.give(next(tasks))
        deaths = 0
        while True:
            worker = workers[0]
            try:
                result = worker.take()
            except (EOFError, OSError):
                deaths += 1
                code = worker.restart()
                if deaths == MAX_DEATHS:
                    raise WorkerDied(
                        f"data workers died {deaths} times in a row, the last with exit code {code} (-9: killed, "
                        "mostly for lack of memory); lower train.workers or train.micro_batch"
                    ) from None
                log.warning("a data worker died (exit code %s); another does its work again", code)
                continue
            deaths = 0
            worker.give(next(tasks))
            workers.append(workers.pop(0))
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        for worker in workers:
            worker.close()


class _Worker(Generic[A, R]):
    """A process, its pipe, and what it was given and has not answered."""

    def __init__(self, work: Callable[[A], R]) -> None:
        self._work = work
        self._given: deque[A] = deque()
        self._start()

    def _start(self) -> None:
        self._pipe, far = _FORK.Pipe()
        self._process = _FORK.Process(target=_serve, args=(self._work, far, self._pipe), daemon=True)
        self._process.start()
        far.close()

    def give(self, task: A) -> None:
        self._given.append(task)
        try:
            self._pipe.send(task)
        except OSError:
            pass  # it died; `take` will notice

    def take(self) -> R | BaseException:
        """The next result; EOFError or OSError if the process died."""
        result: R | BaseException = pickle.loads(self._pipe.recv_bytes())
        self._given.popleft()
        return result

    def restart(self) -> int | None:
        """A new process for the same tasks; returns the exit code of the old one."""
        self.close()
        code, given = self._process.exitcode, self._given
        self._given = deque()
        self._start()
        for task in given:
            self.give(task)
        return code

    def close(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()


def _serve(work: Callable[[Any], Any], pipe: Any, parents_end: Any) -> None:
    """In the worker: answer until the pipe closes, so also when the parent is gone."""
    parents_end.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal or a batch system to the whole group:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the parent decides what follows
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    try:
        while True:
            task = pipe.recv()
            try:
                answer = _dumps(work(task))
            except Exception as error:
                answer = _dumps(_portable(error))
            pipe.send_bytes(answer)
    except (EOFError, OSError):
        return


def _dumps(result: Any) -> memoryview:
    """Pickled, tensors as numpy arrays: torch's own way is ten times slower."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=5)
    pickler.dispatch_table = {**copyreg.dispatch_table, torch.Tensor: _reduce}
    pickler.dump(result)
    return buffer.getbuffer()


def _reduce(tensor: torch.Tensor) -> tuple[Callable[..., torch.Tensor], tuple[Any, ...]]:
    bytes = tensor.detach().flatten().view(torch.uint8).numpy()
    return _tensor, (bytes, tensor.dtype, tensor.shape)


def _tensor(bytes: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(bytes).view(dtype).view(shape)


def _portable(error: Exception) -> Exception:
    """The error, or what it says if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
