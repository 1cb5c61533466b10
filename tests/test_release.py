"""What a release says of itself agrees, and its archive holds what its setup reads (`make release-check` builds it)."""

import re
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
