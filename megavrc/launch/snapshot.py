"""A copy of the code in the job's folder, so that later edits do not change what is queued."""

import shutil
import subprocess
from pathlib import Path

import megavrc
from megavrc.errors import UserError

FOLDERS = ("megavrc", "pretrain", "tools")  # what a job runs


def snapshot(target: Path) -> str | None:
    """Copy the code as it lies there, uncommitted edits included, to `target`.

    Returns:
        The git revision, with "-dirty" after it where files differ from it; None outside a repository.

    Raises:
        UserError: megavrc is installed without its commands.
    """
    root = Path(megavrc.__file__).parents[1]
    if not all((root / folder).is_dir() for folder in FOLDERS):
        raise UserError(f"{root}: has no {', '.join(FOLDERS)}; submit from a checkout of megavrc")
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *FOLDERS)
    if listed is None:
        for folder in FOLDERS:
            shutil.copytree(root / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))
        return None
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():  # not deleted since it was added
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
    return (_git(root, "describe", "--always", "--dirty", "--abbrev=40") or "").strip() or None


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=60)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
