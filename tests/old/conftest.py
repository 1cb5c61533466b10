"""The archive of what 3415e13 wrote, unpacked, and a copy of it to work in."""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

ARCHIVE = Path(__file__).with_name("3415e13.tar.xz")


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive's content; not to be changed."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def expected(kept: Path) -> dict[str, Any]:
    return json.loads((kept / "expected.json").read_text())


@pytest.fixture
def old(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in, which is the working directory: the paths in it are relative, but for the plan's root."""
    copy = shutil.copytree(kept, tmp_path / "old")
    plan = json.loads((copy / "tokens/plan.json").read_text())
    places = {"root": str(copy / "data"), "tokenizer_path": str(copy / "tokenizer/model")}
    (copy / "tokens/plan.json").write_text(json.dumps(plan | places))
    monkeypatch.chdir(copy)
    return copy
