"""A copy of the code in the job's folder, so that later edits do not change what is queued."""

import shutil
import subprocess
from pathlib import Path

import megavrc

FOLDERS = ("megavrc", "pretrain", "tools")  # what a job runs
ENTRIES = (
    "pretrain/pretrain_vrc.py",
    "pretrain/pretrain_tokenizer.py",
    "tools/tokenize_videos.py",
    "tools/submit_slurm.py",
)
ENTRY = """from megavrc.__main__ import main

if __name__ == "__main__":
    main("{name}")
"""


def snapshot(target: Path) -> str | None:
    """Copy the code as it lies there, uncommitted edits included, to `target`.

    Of an installed package, without a checkout, the package is copied, and the scripts that jobs start are written
    beside it.

    Returns:
        The git revision, with "-dirty" after it where files differ from it; None outside a repository.
    """
    root = Path(megavrc.__file__).parents[1]
    if not all((root / folder).is_dir() for folder in FOLDERS[1:]):
        shutil.copytree(root / "megavrc", target / "megavrc", ignore=shutil.ignore_patterns("__pycache__"))
        for entry in ENTRIES:
            (target / entry).parent.mkdir(exist_ok=True)
            (target / entry).write_text(ENTRY.format(name=Path(entry).stem))
        return None
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
