"""Processes that decode videos for one encoder. One that hangs or dies costs its video, not the job."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from megavrc.tokenization.cut import Cuts, cut
from megavrc.tokenization.sampling import ClipSettings
from megavrc.video.errors import VideoError, stage
from megavrc.video.manifest import Entry

Result = Cuts | VideoError


class Decoders:
    """A pool of decoding processes, each with a thread that waits for it. Use as a context manager.

    Args:
        processes: how many.
        seconds: wall time that a video may take.
    """

    def __init__(self, processes: int, seconds: float) -> None:
        # A server that has imported this module forks the processes: they start in milliseconds, and do not inherit
        # the threads and files of the encoder.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._seconds, self._ahead = seconds, 2 * processes
        self._threads = ThreadPoolExecutor(processes)
        self._idle: list[_Decoder] = []
        self._all: set[_Decoder] = set()
        self._lock = threading.Lock()
        self._closed = False

    def cut(self, settings: ClipSettings, videos: Iterable[tuple[Path, Entry]]) -> Iterator[Result]:
        """Cut videos; the results come in the order of the videos, whichever process was first."""
        pending: deque[Future[Result]] = deque()
        for path, entry in videos:
            pending.append(self._threads.submit(self._cut, settings, path, entry))
            if len(pending) > self._ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _cut(self, settings: ClipSettings, path: Path, entry: Entry) -> Result:
        for _ in range(2):  # a process may die for a reason of its own: the video has a second chance
            decoder = self._take()
            try:
                decoder.wait()
                decoder.connection.send((settings, path, entry))
                if not decoder.connection.poll(self._seconds):
                    self._end(decoder)
                    return VideoError(path, "timeout", f"not decoded within {self._seconds:g} s")
                result: Result = decoder.connection.recv()
            except (EOFError, OSError):
                code = self._end(decoder)
                continue
            with self._lock:
                self._idle.append(decoder)
            return result
        return VideoError(path, "crash", f"the decoding process died twice (exit code {code})")

    def _take(self) -> "_Decoder":
        with self._lock:
            if self._closed:
                raise RuntimeError("the decoders are closed")
            if self._idle:
                return self._idle.pop()
            decoder = _Decoder(self._context)
            self._all.add(decoder)
            return decoder

    def _end(self, decoder: "_Decoder") -> int | None:
        with self._lock:
            self._all.discard(decoder)
        return decoder.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
            running = list(self._all)
        for decoder in running:
            decoder.process.kill()  # its thread then finds the connection at its end
        self._threads.shutdown(cancel_futures=True)
        for decoder in running:
            decoder.kill()


class _Decoder:
    """One process and the connection to it."""

    def __init__(self, context: Any) -> None:
        self.connection, far = context.Pipe()
        self.process = context.Process(target=serve_decoder, args=(far,), daemon=True)
        self.process.start()
        far.close()
        self._ready = False

    def wait(self) -> None:
        """Until the process has started; EOFError if it died."""
        if not self._ready:
            self._ready = self.connection.recv()

    def kill(self) -> int | None:
        """End the process and return its exit code, None if even SIGKILL has to wait (for a drive that hangs)."""
        self.process.kill()
        self.process.join(1)
        self.connection.close()
        return self.process.exitcode


def serve_decoder(connection: Connection) -> None:
    """The loop of a decoding process: one video at a time, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the encoder decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        connection.send(True)
        while True:
            connection.send(_result(*connection.recv()))
    except (EOFError, ConnectionError):
        pass


def _end_with_parent() -> None:
    """Also when the job was killed while this process waits for a file."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _result(settings: ClipSettings, path: Path, entry: Entry) -> Result:
    try:
        return cut(settings, path, entry)
    except VideoError as error:
        return error
    except (
        Exception
    ) as error:  # one strange file must not end a job of millions, and stays as strange as it is
        return VideoError(path, stage(error, "decode"), f"{type(error).__name__}: {error}")
