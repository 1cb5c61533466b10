"""Faults on demand, so that tests can break a run exactly where it hurts.

    MEGAVRC_FAULT=point:rank:step:action[,point:rank:step:action ..]

The point is a name that the code passes through (`fault.point("before_rename", step)`); rank and step are numbers, or
`*` for any. Actions: `kill` (SIGKILL to itself), `stop` (SIGSTOP: hangs), `exit:CODE`, `raise` (FaultError),
`full` (OSError, no space left), `sleep:SECONDS`. Any other action is handed to the code at the point, which knows what
to do with it, as in `gradient:1:5:nan`. A fault acts whenever its point is passed; unset, a point costs next to
nothing.
"""

import errno
import functools
import os
import signal
import time

from megavrc.errors import UserError


class FaultError(RuntimeError):
    """Raised by the action `raise`."""


def point(name: str, step: int) -> str:
    """Pass the point `name` at an optimiser step: suffer the fault set for it, if any.

    Returns:
        The action, if it is one that the caller must carry out, else "".
    """
    text = os.environ.get("MEGAVRC_FAULT")
    if not text:
        return ""
    rank = os.environ.get("RANK", "0")
    for where, which, when, action in _parse(text):
        if where == name and which in ("*", rank) and when in ("*", str(step)):
            return _act(name, step, action)
    return ""


@functools.cache
def _parse(text: str) -> list[tuple[str, str, str, str]]:
    faults = []
    for entry in text.split(","):
        parts = entry.strip().split(":", 3)
        numbers = [part == "*" or part.isdecimal() for part in parts[1:3]]
        if len(parts) < 4 or not all(numbers) or not parts[3]:
            raise UserError(f"MEGAVRC_FAULT: {entry!r} is not point:rank:step:action")
        faults.append((parts[0], parts[1], parts[2], parts[3]))
    return faults


def _act(name: str, step: int, action: str) -> str:
    kind, _, value = action.partition(":")
    match kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "exit":
            os._exit(int(value))
        case "raise":
            raise FaultError(f"injected at {name}, step {step}")
        case "full":
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (injected at {name}, step {step})")
        case "sleep":
            time.sleep(float(value))
        case _:
            return action
    return ""
