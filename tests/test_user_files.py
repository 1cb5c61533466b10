"""Files that users bring: by option or variable, named in errors, hashed; every variable is read somewhere."""

from pathlib import Path

import pytest

from megavrc.config import run_command
from megavrc.errors import UserError
from megavrc.files import sha256_file
from megavrc.launch import doctor
from megavrc.tokenization.job import plan
from megavrc.tokenizers.objective import ObjectiveConfig
from megavrc.user_files import USER_FILES, place, resolve

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, _ in USER_FILES.values():
        monkeypatch.delenv(variable, raising=False)


def test_the_option_goes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    monkeypatch.setenv("MEGAVRC_I3D", str(tmp_path / "a"))
    assert resolve("i3d").path == tmp_path / "a"
    found = resolve("i3d", tmp_path / "b")
    assert (found.path, found.sha256) == (tmp_path / "b", sha256_file(tmp_path / "b"))


def test_a_folder_is_hashed_by_names_and_contents(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").write_text("x")
    one, two = (resolve("clip", tmp_path / name) for name in ("one", "two"))
    assert one.sha256 == two.sha256
    (tmp_path / "two" / "deep" / "file").rename(tmp_path / "two" / "file")
    assert resolve("clip", tmp_path / "two").sha256 != one.sha256


def test_errors_name_the_option_or_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^--i3d: needed.* MEGAVRC_I3D$"):
        resolve("i3d")
    with pytest.raises(UserError, match=r"^--file .*none: no such file"):
        resolve("i3d", tmp_path / "none", "--file")
    monkeypatch.setenv("MEGAVRC_I3D", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"^MEGAVRC_I3D .*gone: no such file"):
        resolve("i3d")


def test_the_doctor_looks_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.html").write_text("not weights")
    monkeypatch.setenv("MEGAVRC_VGG", str(tmp_path / "page.html"))
    findings = {finding.name: finding for finding in doctor.user_files({})}
    assert set(findings) == set(USER_FILES)
    assert findings["vgg"].state == "warn" and "not a PyTorch file" in findings["vgg"].advice
    assert findings["clip"].state == "note" and "MEGAVRC_CLIP" in findings["clip"].advice


def test_commands_take_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", f"--manifest={tmp_path / 'none.jsonl'}", f"--out={tmp_path / 'out'}"]
    assert run_command({"plan": plan}, words) == 2
    assert "MEGAVRC_OMNITOKENIZER" in capsys.readouterr().err
    monkeypatch.setenv("MEGAVRC_OMNITOKENIZER", str(tmp_path))
    assert run_command({"plan": plan}, words) == 2
    assert (
        "MEGAVRC_OMNITOKENIZER" not in capsys.readouterr().err
    )  # found: what is missing now is another thing
    objective = ObjectiveConfig(perceptual=1.0)
    assert any("objective.vgg" in problem for problem in objective.problems())
    monkeypatch.setenv("MEGAVRC_VGG", str(tmp_path / "vgg.pth"))
    assert place("vgg") == tmp_path / "vgg.pth"
    assert list(objective.problems()) == []
