"""Worlds of forked ranks: a program that has imported torch starts one in a fraction of a second."""

import os
import pickle
import sys
import traceback
from collections.abc import Callable
from typing import Any

from ports import free_port


def fork_world(
    ranks: int, function: Callable[..., Any], *arguments: Any, fault: str = ""
) -> tuple[list[int], list[Any]]:
    """Run `function(rank, *arguments)` on gloo ranks, each a process.

    Args:
        fault: MEGAVRC_FAULT of these processes.

    Returns:
        Exit codes (negative: the signal that killed it), and what the function returned on each rank (None: nothing).
    """
    port = free_port()
    children = []
    for rank in range(ranks):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.environ.update(
                RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), MEGAVRC_FAULT=fault
            )
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            os._exit(_run(writing, function, arguments))
        os.close(writing)
        children.append((child, reading))
    results = [_read(reading) for _, reading in children]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in children]
    return codes, results


def _run(writing: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    from megavrc.distributed import connect

    try:
        with connect(timeout_minutes=1) as rank:
            if rank.roll_call:  # as in training: nobody waits for who is lost
                rank.roll_call.end()
            result = function(rank, *arguments)
        with os.fdopen(writing, "wb") as file:
            pickle.dump(result, file)
        return 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _read(reading: int) -> Any:
    with os.fdopen(reading, "rb") as file:
        content = file.read()
    return pickle.loads(content) if content else None
