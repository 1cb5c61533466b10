"""Run by test_agreement.py: worlds of two ranks of which one is unlike the other; reported as JSON."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forks import fork_world
from toy import toy_config

from megavrc.data.mirror import NetworkError
from megavrc.distributed import Rank, same_error_on_all_ranks
from megavrc.errors import UserError
from megavrc.model import ConditionConfig, ModelConfig
from megavrc.training.run_folder import RunFolder
from megavrc.training.tasks.vrc_config import RunConfig, TokenDataConfig


def told(work: Callable[[], Any]) -> str:
    try:
        work()
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def meets(rank: Rank, errors: dict[int, Exception]) -> str:
    """What a rank is told when ranks meet these errors."""

    def work() -> None:
        with same_error_on_all_ranks(rank):
            if rank.rank in errors:
                raise errors[rank.rank]

    return told(work)


def opens(rank: Rank, root: Path, change: Callable[[RunConfig, dict[str, Any]], Any]) -> list[Any]:
    """What a rank is told when rank 1 opens a run with a change, and whether anything was written."""
    data = TokenDataConfig(path="tokens")  # of which a part is a machine's own
    model = ModelConfig(condition=ConditionConfig(kind="class", classes=2))
    config = RunConfig(**vars(toy_config(root)), data=data, stage="video", model=model)
    identity = {"data": {"0": {"samples": 12}}}
    if not rank.main:
        change(config, identity)
    return [told(lambda: RunFolder(config, identity, {}, rank).close()), (root / "run.json").exists()]


def main() -> None:
    root = Path(sys.argv[1])
    cases: dict[str, tuple[Any, ...]] = {
        "nothing": (meets, {}),
        "one": (meets, {1: NetworkError("no answer")}),
        "both": (meets, {0: UserError("here"), 1: UserError("there")}),
        "traceback": (meets, {1: KeyError("a bug")}),
        "data": (opens, root / "data", lambda config, identity: identity["data"]["0"].update(samples=11)),
        "steps": (opens, root / "steps", lambda config, identity: setattr(config.train, "steps", 7)),
        "cache": (opens, root / "cache", lambda config, identity: setattr(config.data, "cache_dir", "/mine")),
    }
    results = {name: fork_world(2, *case) for name, case in cases.items()}
    (root / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
