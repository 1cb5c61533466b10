"""What a release says of itself agrees, its archive holds what its setup reads (`make release-check` builds it), and
make installs it."""

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import yaml

import megavrc

ROOT = Path(__file__).resolve().parents[1]


def test_citation_and_changelog_name_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## \[(\d.*?)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and citation["version"] == newest[1] == megavrc.__version__
    released = None if newest[2] == "unreleased" else newest[2]
    assert str(citation.get("date-released")) == str(released), (
        "the day of the release stands in both or in none"
    )
    assert citation["license"] in (ROOT / "setup.py").read_text()


def test_the_archive_has_every_file_that_setup_reads() -> None:
    read = set(re.findall(r'ROOT / "([\w.]+\.\w+)"', (ROOT / "setup.py").read_text()))
    included = {"README.md", *(ROOT / "MANIFEST.in").read_text().split()}  # the README by default
    assert "requirements.txt" in read and read <= included


def test_make_goes_on_with_an_environment_that_has_no_pip(tmp_path: Path) -> None:
    """As a stopped `python -m venv` leaves it, and one on a system whose venv is a package of its own."""
    for name in ("Makefile", "setup.py", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    venv.create(tmp_path / ".venv")
    nothing = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    words = ["make", "venv", f"PYTHON={sys.executable}"]
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | nothing, capture_output=True, text=True)
    assert done.returncode and "No matching distribution found" in done.stderr, (
        "pip ran, and found no packages"
    )
