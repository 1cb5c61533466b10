"""The run folder: whose it is, where training stands in it, and how a run starts, resumes and ends there.

config.yaml run.json metrics.jsonl tensorboard/ checkpoints/ lease/ previews/ complete.json (of a finished run only)
"""

import contextlib
import copy
import dataclasses
import json
import logging
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch.distributed as dist

import megavrc
from megavrc.checkpoint import (
    Checkpoint,
    Lease,
    Retention,
    newest_good,
    open_unverified,
    read_record,
    write_record,
)
from megavrc.config import drop_retired, dump_yaml, to_dict
from megavrc.distributed import Rank, main_rank_decides, same_error_on_all_ranks
from megavrc.errors import UserError
from megavrc.files import DENIED, PASSING, check_fields, patiently, read_lines_of_json, write_json
from megavrc.hardware import revision
from megavrc.training.config import BaseRunConfig, TrainConfig
from megavrc.training.saving import Saver, check_space
from megavrc.training.state import TrainingState

log = logging.getLogger("megavrc")

PACKAGES = ("torch", "deepspeed", "numpy", "safetensors")


class RunFolder:
    """The folder of one run, opened by all ranks together.

    Args:
        config: of the run.
        identity: what makes it this run and no other (model, data, seed, ...); JSON.
        facts: more about the data and tokenizers for those who read checkpoints; JSON.
        rank: of this process.

    Attributes:
        checkpoint: to resume from, or None.
        finished: the configured number of steps is done already.
        start: number of this start of the run, from 1; on the main rank.

    Raises:
        UserError: the folder cannot be written or holds another run, another job is at work in it, no checkpoint in it
            is whole, or the ranks have different configurations or data.
        TransientError: the folder cannot be read now.
    """

    def __init__(
        self, config: BaseRunConfig, identity: dict[str, Any], facts: dict[str, Any], rank: Rank
    ) -> None:
        self.config, self.identity, self.facts, self.rank = config, identity, facts, rank
        self.path = Path(config.run_dir)
        self.starts: list[dict[str, Any]] = []  # of this run, on the main rank
        self.lease: Lease | None = None  # on the main rank
        self.start = 0
        _refuse_other_ranks(config, identity, rank)
        chosen = main_rank_decides(self._open, rank)  # which verifies it for all
        try:
            with same_error_on_all_ranks(rank):
                self.checkpoint = (
                    patiently(lambda: open_unverified(chosen), PASSING | DENIED) if chosen else None
                )
        except BaseException:
            self.close()
            raise
        self.finished = (
            self.complete_file.is_file()
            and self.checkpoint is not None
            and self.checkpoint.step >= config.train.steps
        )

    @property
    def complete_file(self) -> Path:
        return self.path / "complete.json"

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def store(self) -> Path:
        return self.path / "checkpoints"

    def close(self) -> None:
        """Let other jobs have the folder."""
        if self.lease:
            self.lease.release()

    def _open(self) -> Path | None:
        try:
            patiently(lambda: self.path.mkdir(parents=True, exist_ok=True))
            self.lease = Lease(self.path)
        except OSError as error:
            raise UserError(f"run_dir: {self.path} cannot be written: {error.strerror}") from None
        try:
            return self._open_leased()
        except BaseException:
            self.lease.release()
            raise

    def _open_leased(self) -> Path | None:
        if record := read_record(self.path):
            self._refuse_another(self.path, record.get("identity") or {})
            self.starts = record["starts"]
        if found := newest_good(self.store):
            state = check_fields(found.path / "state.json", found.state, {"identity": dict | None})
            self._refuse_another(found.path, state.get("identity") or self.identity)
        if not record:
            write_record(self.path, self.identity, self.facts, [])
        self.start = 1 + max(len(self.starts), _starts_in(self.path / "metrics.jsonl"))
        return found.path if found else None

    def _refuse_another(self, where: Path, identity: dict[str, Any]) -> None:
        theirs, mine = (current_identity(self.config, found) for found in (identity, self.identity))
        if "text_features" not in theirs:  # a run of before they were part of it: whatever it trains on now
            mine.pop("text_features", None)
        differences = _sentences(theirs, mine)
        if differences:
            raise UserError(
                f"{where}: holds another run ({'; '.join(differences[:4])}); choose another run_dir, or go back to "
                "that configuration to resume it"
            )

    def record_start(self) -> None:
        """Write down that training begins now, on the main rank, and say what differs from last time.

        Only now is a finished run unfinished again: a start that is refused before leaves its complete.json.
        """
        self.complete_file.unlink(missing_ok=True)
        changed = changes(self.config, self.checkpoint.state.get("config", {})) if self.checkpoint else []
        if changed:
            log.warning("%s: differs from last time: %s", self.path, "; ".join(changed))
        dump_yaml(self.config, self.path / "config.yaml")
        start = {**_surroundings(), "world_size": self.rank.world_size, "step": self.step}
        self.starts.append({**start, "changed": changed} if changed else start)
        write_record(self.path, self.identity, self.facts, self.starts)

    def newest(self) -> Checkpoint:
        """The newest whole checkpoint (collective); there must be one."""
        return open_unverified(main_rank_decides(self._newest, self.rank))

    def _newest(self) -> Path:
        found = newest_good(self.store)
        if found is None:
            raise UserError(f"{self.store}: no checkpoint to go back to")
        return found.path

    def saver(self, state: TrainingState, validates: bool) -> Saver:
        """The writer of this run's checkpoints, made after a look at the disk (collective). Raises UserError."""
        train = self.config.train
        retention = Retention(train.keep, train.keep_every, train.keep_best)
        most = most_checkpoints(train, validates)
        main_rank_decides(lambda: check_space(self.store, state, most), self.rank)
        saver = Saver(self.store, state, self.rank, train.async_save, self._check_lease, retention.apply)
        saver.before = self.checkpoint.step if self.checkpoint else None
        return saver

    def describe(self, progress: dict[str, Any]) -> dict[str, Any]:
        """Content of a checkpoint's state.json."""
        return {
            **progress,
            "identity": self.identity,
            "facts": self.facts,
            "config": to_dict(self.config),
            "world_size": self.rank.world_size,
        }

    def check_ours(self) -> None:
        """Refuse to go on when another job has taken the run over (collective): before anything is written."""
        with same_error_on_all_ranks(self.rank), contextlib.suppress(OSError):  # of a drive with hiccups
            self._check_lease()

    def _check_lease(self) -> None:
        if self.lease:
            self.lease.check()

    def complete(self, summary: dict[str, Any]) -> None:
        """Mark the run as finished; on the main rank."""
        write_json(self.complete_file, {"time": time.time(), **summary})


def _refuse_other_ranks(config: BaseRunConfig, identity: dict[str, Any], rank: Rank) -> None:
    """UserError on all ranks if not all have what the main rank has (collective)."""
    mine = {"configuration": config.shared(), "identity": identity}
    everyones: list[dict[str, Any]] = [{}] * rank.world_size
    dist.all_gather_object(everyones, mine)
    different = [number for number, theirs in enumerate(everyones) if theirs != everyones[0]]
    if different:
        first = _sentences(everyones[different[0]], everyones[0])
        raise UserError(
            f"rank{'s' * (len(different) > 1)} {', '.join(map(str, different))} would train another run than rank 0 "
            f"({'; '.join(first[:4])}); all nodes must see the same configuration file and the same datasets"
        )


def current_identity(config: BaseRunConfig, identity: dict[str, Any]) -> dict[str, Any]:
    """The identity of a run that an older version may have started: without the fields that are no more, and with
    those that were not there yet at their defaults.

    Sections of it that have the name of one of the configuration's (`model`, `objective`) hold that one's fields.
    """
    found = copy.deepcopy(identity)
    for field in dataclasses.fields(config):
        section = getattr(config, field.name)
        if dataclasses.is_dataclass(section) and isinstance(found.get(field.name), dict):
            drop_retired(type(section), found[field.name])
            fields = {item.name: item.default for item in dataclasses.fields(section)}
            if found[field.name].keys() <= fields.keys():  # `data` is another one's
                added = fields.keys() - found[field.name].keys()
                found[field.name] |= {name: fields[name] for name in added}
    return found


def changes(config: BaseRunConfig, before: dict[str, Any]) -> list[str]:
    """Differences of a configuration from the one of a checkpoint, a key each; not where it lies, nor new keys."""
    before, now = copy.deepcopy(before), to_dict(config)
    drop_retired(type(config), before)
    found = [(key, old, new) for key, old, new in _differences(before, now, "") if key != "run_dir"]
    return [f"{key} {_shown(old)}, now {_shown(new)}" for key, old, new in found if old is not None]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _starts_in(metrics: Path) -> int:
    """The number of the newest start that has written metrics; run.json, which counts them, may have been lost."""
    with contextlib.suppress(OSError):  # none, or it cannot be read now: training does not need it
        lines = read_lines_of_json(metrics)
        return max((line["start"] for line in lines if isinstance(line.get("start"), int)), default=0)
    return 0


def _sentences(theirs: Any, mine: Any) -> list[str]:
    return [f"{key}: {old!r} there, {new!r} here" for key, old, new in _differences(theirs, mine, "")]


def _differences(theirs: Any, mine: Any, key: str) -> list[tuple[str, Any, Any]]:
    """Keys whose values differ, with both."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        names = sorted(theirs.keys() | mine.keys())
        nested = [
            _differences(theirs.get(name), mine.get(name), f"{key}.{name}".lstrip(".")) for name in names
        ]
        return [difference for part in nested for difference in part]
    return [] if theirs == mine else [(key, theirs, mine)]


def _surroundings() -> dict[str, Any]:
    """When, with what code and on what this process runs."""
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "host": platform.node(),
        "python": platform.python_version(),
        "command": sys.argv,
        "git": revision(),
        "versions": {"megavrc": megavrc.__version__} | {name: metadata.version(name) for name in PACKAGES},
    }


def most_checkpoints(train: TrainConfig, validates: bool) -> int:
    """Checkpoints of a run that are there at once at most, with the one that is being written."""
    first = 0 if train.spike_threshold else train.save_every  # at 0, to have where to go back to
    steps = [*range(first, train.steps, train.save_every), train.steps]
    return Retention(train.keep, train.keep_every, train.keep_best and validates).most(steps)
