"""Are the videos still those that were planned? A fingerprint of each: size, time of change, hash of head and tail.

    <out>/sources/train-000000.json     of the videos of one shard, by their path

They lie beside the plan, not in it: a job may move with its videos, and times of change then move too.
"""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from megavrc.errors import UserError
from megavrc.files import check_format, read_json, sha256_json, write_json
from megavrc.tokenization.plan import Plan, PlannedShard
from megavrc.video.pictures import pictures

FORMAT = 1
ENDS = 1 << 16  # bytes of the head and of the tail
Fingerprint = dict[str, int | str]


def fingerprint(path: Path) -> Fingerprint | None:
    """The fingerprint of a file, or of a folder of pictures; None for what cannot be read."""
    digest = hashlib.sha256()
    size, changed = 0, 0
    try:
        for file in pictures(path) if path.is_dir() else [path]:
            if not file.is_file():  # a pipe would wait for its writer
                return None
            with open(file, "rb") as content:
                state = os.fstat(content.fileno())
                digest.update(
                    f"{file.name if file != path else ''}/{state.st_size}/".encode(errors="replace")
                )
                digest.update(content.read(ENDS))
                content.seek(max(ENDS, state.st_size - ENDS))
                digest.update(content.read(ENDS))
            size, changed = size + state.st_size, max(changed, state.st_mtime_ns)
    except (OSError, ValueError):
        return None
    return {"size": size, "mtime_ns": changed, "ends_sha256": digest.hexdigest()}


def record_sources(plan: Plan, shards: list[PlannedShard]) -> None:
    """Keep the fingerprints of the videos of some shards as they are now."""
    for shard, entries in plan.sources(shards).items():
        paths = sorted({entry["path"] for entry in entries})
        found = {path: fingerprint(plan.root / path) for path in paths}
        content = {"format": FORMAT, "plan_sha256": plan.sha256, "sources": found}
        write_json(_path(plan, shard), {**content, "sha256": sha256_json(content)})


def is_recorded(plan: Plan) -> bool:
    """Whether the fingerprints of this plan lie beside it, those of all its shards."""
    return all(_path(plan, shard).is_file() and _read(plan, shard) for shard in plan.units)


def changed(plan: Plan, shards: list[PlannedShard], read: bool = True) -> dict[PlannedShard, list[str]]:
    """The videos that are others than when they were planned, by shard; those that are not at hand do not count.

    A plan that was made before fingerprints were gets a warning, and so does a time of change that alone differs: a
    copy has another.

    Args:
        read: also videos whose size and time of change are those of then; without, a drive that hangs on one of these
            does not hang here.

    Raises:
        UserError: the fingerprints were damaged or edited.
    """
    others: dict[PlannedShard, list[str]] = {}
    touched = unknown = 0
    for shard in shards:
        known = _read(plan, shard)
        unknown += known is None
        for path, then in (known or {}).items():
            if then is None or (not read and _untouched(plan.root / path, then)):
                continue
            now = fingerprint(plan.root / path)
            if now is None or then == now:
                continue
            if {**then, "mtime_ns": 0} == {**now, "mtime_ns": 0}:
                touched += 1
            else:
                others.setdefault(shard, []).append(f"{path} ({_difference(then, now)})")
    if unknown and plan.decoder:  # a plan of before that had its warning
        _warn(f"{plan.out}: the plan was made without fingerprints of its videos; changed ones go unnoticed")
    if touched:
        _warn(f"{plan.out}: {touched} videos have another time of change, but the same size, head and tail")
    return others


def _untouched(path: Path, then: Fingerprint) -> bool:
    try:
        states = [file.stat() for file in (pictures(path) if path.is_dir() else [path])]
    except (OSError, ValueError):
        return False
    times = max((state.st_mtime_ns for state in states), default=0)
    return then["size"] == sum(state.st_size for state in states) and then["mtime_ns"] == times


def words(others: dict[PlannedShard, list[str]]) -> str:
    """The number of videos that changed, and their names."""
    paths = sorted(set().union(*others.values()))
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f"{len(paths)} videos are not those that were planned: {', '.join(paths[:3])}{more}"


def _path(plan: Plan, shard: PlannedShard) -> Path:
    return plan.out / "sources" / f"{shard.split}-{shard.number:06d}.json"


def _read(plan: Plan, shard: PlannedShard) -> dict[str, Any] | None:
    """The fingerprints of a shard's videos; None where there are none of this plan."""
    path = _path(plan, shard)
    if not path.is_file():
        return None
    content = read_json(path)
    if isinstance(content, dict):
        check_format(path, content.get("format"), FORMAT)
        own = content.pop("sha256", None)
        if own == sha256_json(content):
            return dict(content["sources"]) if content["plan_sha256"] == plan.sha256 else None
    raise UserError(f"{path}: damaged or changed; delete it (changed videos of it then go unnoticed)")


def _difference(then: Fingerprint, now: Fingerprint) -> str:
    if then["size"] != now["size"]:
        return f"{then['size']} bytes then, {now['size']} now"
    return "other content"


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
