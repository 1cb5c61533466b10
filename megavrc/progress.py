"""The progress of a long loop: a bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
_QUIET = ContextVar("quiet", default=False)

PROGRESS_SECONDS = 5.0  # between plain progress lines when the output is not a terminal


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Loops inside say nothing: they are part of something that has a line of its own."""
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


def progress(
    iterable: Iterable[T],
    label: str,
    total: int | None = None,
    note: Callable[[], str] = str,
    units: Callable[[T], int] = lambda item: 1,
) -> Iterator[T]:
    """Pass `iterable` through, showing how far it is: a bar on a terminal, otherwise a line every few seconds.

    `note` says what else is worth knowing, such as a rate; `units` how much of the total an item is, perhaps 0.
    """
    if _QUIET.get():
        yield from iterable
        return
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # type: ignore[arg-type]

    def noted(text: str) -> str:
        return ", ".join(filter(None, (text, note())))

    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total)
            for item in iterable:
                yield item
                bar.update(task, advance=units(item), description=noted(label))
        return
    start = last = time.monotonic()
    count = 0
    for item in iterable:
        yield item
        count += units(item)
        now = time.monotonic()
        if now - last >= PROGRESS_SECONDS:
            last = now
            left = f", {(now - start) / count * (total - count):.0f} s left" if total and count else ""
            line = noted(f"{label}: {count}/{total or '?'}")
            print(f"{line}{left}", file=sys.stderr, flush=True)
    print(f"{label}: {count} done in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
