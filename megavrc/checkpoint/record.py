"""run.json: which run a folder holds, each of its starts, and the format of the files beside it."""

from pathlib import Path
from typing import Any

from megavrc.files import check_format, read_json, write_json

FORMAT = 1  # of run.json, complete.json, metrics.jsonl, audit.jsonl and heartbeats/: docs/formats.md
RECORD = "run.json"


def write_record(
    run_dir: Path, identity: dict[str, Any], facts: dict[str, Any], starts: list[dict[str, Any]]
) -> None:
    """Write run.json: what makes it this run and no other, facts about its data, and every start."""
    write_json(run_dir / RECORD, {"format": FORMAT, "identity": identity, "facts": facts, "starts": starts})


def read_record(run_dir: Path) -> dict[str, Any] | None:
    """The content of run.json, None where there is none; UserError for one of a newer format."""
    path = run_dir / RECORD
    if not path.is_file():
        return None
    content: dict[str, Any] = read_json(path)
    check_format(path, content.get("format"), FORMAT)
    return content
