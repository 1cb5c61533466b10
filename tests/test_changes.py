"""The examples of CONTRIBUTING.md apply to this code, and the tests that they bring pass."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHANGES = sorted((ROOT / "docs" / "changes").glob("*.patch"))
# The fast tests that they add.
ADDED = "maxpool or (chunks and not gradients) or darkening or hmdb51 or captions_change or largest"


def apply(change: Path, folder: Path, *options: str) -> str:
    """What `git apply` has against it."""
    words = ["git", "apply", *options, str(change)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of package and tests with all changes."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    copy = tmp_path_factory.mktemp("changed")
    for name in ("megavrc", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "old"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for change in CHANGES:
        if not apply(change, copy, "--check", "--reverse"):
            continue  # somebody took it: `git am`
        assert not (error := apply(change, copy)), f"{change.name}: {error}"
    return copy


def test_examples_of_changes_pass_their_tests(changed: Path) -> None:
    files = ["model/test_compressor.py", "model/test_attention.py", "evaluation/test_drift.py"]
    files += [
        "tokenization/test_datasets.py",
        "model/test_condition.py",
        "reduction/test_reduction_methods.py",
    ]
    words = [
        "-m",
        "pytest",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-k",
        ADDED,
        *(f"tests/{file}" for file in files),
    ]
    environment = os.environ | {"PYTHONPATH": str(changed)}
    done = subprocess.run(
        [sys.executable, *words], cwd=changed, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert not done.returncode, done.stdout[-3000:]
    assert "passed" in done.stdout and "failed" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("check", ["ruff check .", "ruff format --check .", "mypy"])
def test_examples_of_changes_pass_the_checks(changed: Path, check: str) -> None:
    words = [sys.executable, "-m", *check.split()]
    done = subprocess.run(words, cwd=changed, capture_output=True, text=True)
    assert not done.returncode, done.stdout[-3000:] + done.stderr


def test_examples_of_changes_are_small_and_named() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(CHANGES) == 6
    for change in CHANGES:
        lines = change.read_text().splitlines()
        assert len([line for line in lines if line.startswith(("+", "-"))]) < 60, change.name
        assert f"docs/changes/{change.name}" in page
