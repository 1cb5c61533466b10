"""run.json: which run a folder holds, each of its starts, and the format of the files beside it."""

import os
from pathlib import Path
from typing import Any

from megavrc.files import check_fields, check_format, patiently, read_json, write_json

FORMAT = 1  # of run.json, complete.json, metrics.jsonl, audit.jsonl and heartbeats/: docs/formats.md
RECORD = "run.json"


def write_record(
    run_dir: Path, identity: dict[str, Any], facts: dict[str, Any], starts: list[dict[str, Any]]
) -> None:
    """Write run.json: what makes it this run and no other, facts about its data, and every start."""
    write_json(run_dir / RECORD, {"format": FORMAT, "identity": identity, "facts": facts, "starts": starts})


def read_record(run_dir: Path) -> dict[str, Any] | None:
    """The content of run.json, None where there is none.

    Raises:
        UserError: it is of a newer format, or damaged.
        TransientError: the file system fails in a way that may pass.
    """
    path = run_dir / RECORD
    if not patiently(lambda: os.path.lexists(path)):
        return None
    content = patiently(lambda: read_json(path))
    if isinstance(content, dict):
        check_format(path, content.get("format"), FORMAT)
    return check_fields(path, content, {"identity": dict | None, "starts": list[dict[str, Any]]})
