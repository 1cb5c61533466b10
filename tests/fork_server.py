"""Run by forked.py: forks a process for each program that it is asked for, so that what all import is imported once."""

import contextlib
import json
import os
import runpy
import socket
import sys
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed.ops.op_builder.all_ops
import torch.utils.tensorboard  # noqa: F401

import megavrc.training.entry  # noqa: F401
from megavrc.model.quick_start import nothing_compiled

with nothing_compiled():  # as the engine imports it
    import deepspeed.runtime.zero.muon.original_muon
assert deepspeed.ops.__compatible_ops__  # looks at compilers, once


def asked_for(channel: socket.socket) -> dict[str, Any]:
    """Words, environment and folder of a program: returns in a fork for each, never in the server itself.

    A third process waits for the program; it writes its number and its exit code, four bytes each.
    """
    while True:
        content, files, _, _ = socket.recv_fds(channel, 2**20, 3)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass  # so that their time counts as that of the tests
        if not content:
            os._exit(0)
        if os.fork() == 0:
            break
        for file in files:
            os.close(file)
    channel.close()
    *streams, said = files
    if program := os.fork():
        os.write(said, program.to_bytes(4, "little"))
        code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        os.write(said, code.to_bytes(4, "little", signed=True))
        os._exit(0)
    os.close(said)
    for file, stream in zip(streams, (1, 2), strict=True):
        os.dup2(file, stream)
        os.close(file)
    return json.loads(content)


if __name__ == "__main__":
    program = asked_for(socket.socket(fileno=int(sys.argv[1])))
    os.environ.clear()
    os.environ.update(program["environment"])
    os.chdir(program["cwd"])
    sys.argv = program["words"]
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [os.path.dirname(os.path.abspath(sys.argv[0])), *filter(None, paths)]
    runpy.run_path(sys.argv[0], run_name="__main__")
