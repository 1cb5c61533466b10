"""Run by test_roll_call.py: three ranks of which one is lost before training begins (or none is). Times are a tenth of
the real ones. Writes how they end: exit code and what they say, as JSON.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch.distributed as dist
from ports import free_port

from megavrc.distributed import AbsentRank, connect, env, fault, roll_call

roll_call.BEAT, roll_call.SILENT, env.ASK = 0.3, 4.0, 4.0


def take_part() -> int:
    """One rank; its exit code."""
    try:
        if os.environ["RANK"] == "1":
            fault.point("never", 0)
        with connect(join_minutes=0.15) as rank:
            fault.point("data", 0)
            dist.barrier()
            assert rank.roll_call
            rank.roll_call.end()
            time.sleep(6.0)  # of training, without heartbeats of this kind
            dist.barrier()
        return 0
    except AbsentRank as error:
        print(f"error: {error}", file=sys.stderr)
        return 85
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def start(name: str, root: Path) -> list[int]:
    """The ranks' process numbers."""
    port, children = str(free_port()), []
    for rank in range(3):
        child = os.fork()
        if child == 0:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE="3",
                MEGAVRC_FAULT=name if ":" in name else "",
            )
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            log = os.open(root / f"{name}.{rank}", os.O_WRONLY | os.O_CREAT)
            for stream in (1, 2):
                os.dup2(log, stream)
            os._exit(take_part())
        children.append(child)
    return children


def ends(name: str, root: Path, children: list[int]) -> list[list[object]]:
    """Of each rank, the exit code and what it said; of a stopped one, once all others have ended."""
    stopped = int(name.split(":")[1]) if name.endswith("stop") else -1
    codes = {child: os.waitpid(child, 0)[1] for rank, child in enumerate(children) if rank != stopped}
    if stopped >= 0:
        os.kill(children[stopped], 9)
        codes[children[stopped]] = os.waitpid(children[stopped], 0)[1]
    texts = [(root / f"{name}.{rank}").read_text() for rank in range(3)]
    return [
        [os.waitstatus_to_exitcode(codes[child]), text] for child, text in zip(children, texts, strict=True)
    ]


if __name__ == "__main__":
    root = Path(sys.argv[-1])
    worlds = {name: start(name, root) for name in sys.argv[1:-1]}
    results = {name: ends(name, root, children) for name, children in worlds.items()}
    (root / "results.json").write_text(json.dumps(results))
