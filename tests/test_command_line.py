"""Words as people type them: texts, lists, names of options and commands; what is wrong is said in plain words."""

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import copy2, copytree
from typing import Any, Literal

import pytest

from megavrc import command_line
from megavrc.config import CONFIGS, load_config, run_command
from megavrc.errors import UserError
from megavrc.training.tasks.vrc_config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [
    "#sunset",
    "~",
    "null",
    "&x",
    "- a list",
    "yes",
    "1e3",
    "[3]",
    '{"a": 1}',
    "a: b",
    "!x",
    "*",
    "-5",
    '"q"',
    " x ",
    "",
]


class Seen(Exception):
    """What a command was called with."""


def see(
    out: Path = Path("."),
    second: Path | None = None,
    prompt: list[str] | str | None = None,
    names: list[str] | None = None,
    name: str = "",
    maybe: str | None = None,
    label: list[int] | int | None = None,
    classes: list[int | str] | int | str | None = None,
    other: list[str | int] | str | int | None = None,
    sizes: list[float] | None = None,
    kinds: list[Literal["a", "b"]] | None = None,
    pairs: list[tuple[int, int]] | None = None,
    count: int = 1,
    loud: bool = False,
    keys: list[str] | None = None,
) -> None:
    """See."""
    raise Seen(dict(locals()))


def seen(*words: str) -> dict[str, Any]:
    with pytest.raises(Seen) as found:
        run_command(see, list(words))
    return found.value.args[0]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_text(text: str) -> None:
    for option in ("name", "maybe"):
        assert seen(f"--{option}={text}")[option] == text
        assert seen(f"--{option}", text)[option] == text
    assert seen("--prompt", text)["prompt"] == [text]
    assert seen("--prompt", text, "b")["prompt"] == [text, "b"]
    assert seen("--second", text)["second"] == Path(text)


def test_lists_are_words() -> None:
    assert seen("--prompt", "a red square", "a blue circle")["prompt"] == ["a red square", "a blue circle"]
    assert seen("--prompt", "A", "--count", "2", "--prompt", "B")["prompt"] == ["A", "B"]
    assert seen("--label", "3", "7")["label"] == [3, 7]
    assert seen("--label", "3")["label"] == 3
    assert seen("--label", "-3", "-7")["label"] == [-3, -7]
    assert seen("--classes", "3", "null", "- a", "bike", "007", "-2") == {
        **seen(),
        "classes": [3, "null", "- a", "bike", "007", -2],
    }
    assert seen("--other", "3", "bike")["other"] == [3, "bike"]  # Python takes one union for the other
    assert seen("--sizes", "3", "1e-2")["sizes"] == [3, 0.01]
    assert seen("--kinds", "a", "b")["kinds"] == ["a", "b"]
    assert list(map(tuple, seen("--pairs", "[8,12]", "[8,32]")["pairs"])) == [(8, 12), (8, 32)]
    assert seen("--keys", "loss")["keys"] == ["loss"]
    assert load_config(
        RunConfig, ["--config", "ucf101_video", "--optimizer.betas", "0.8", "0.9"]
    ).optimizer.betas == (0.8, 0.9)


def test_old_spellings_of_lists_warn_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "_warned", set())
    for _ in range(2):
        assert seen("--label=[3, 7]")["label"] == [3, 7]
    assert seen("--classes=[3, 7]")["classes"] == [3, 7]
    assert seen('--prompt=["a", "b"]')["prompt"] == ["a", "b"]
    assert seen("--names", "[en]")["names"] == ["en"]
    assert seen("--kinds=[a,b]")["kinds"] == ["a", "b"]
    assert seen("--label=2", "--label=[3, 7]")["label"] == [3, 7]  # the whole list: the last one counts
    assert list(map(tuple, seen("--pairs=[8,12]", "--pairs=[8,32]")["pairs"])) == [(8, 12), (8, 32)]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert (
        lines[0]
        == "warning: --label [3, 7]: write the values as words, one after another; megavrc 2.0 drops this spelling"
    )


def test_first_words_are_the_paths() -> None:
    found = seen("a", "b", "--count", "3", "--loud")
    assert (found["out"], found["second"], found["count"], found["loud"]) == (Path("a"), Path("b"), 3, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cuont", "3"], "unknown option --cuont (did you mean --count?)"),
        (["--count", "x"], "--count: expected an integer, got 'x'"),
        (["--count"], "--count: a value is missing: an integer"),
        (["--count", "1", "2"], "--count: takes one value, got 1 2"),
        (["--loud", "maybe"], "--loud: expected true or false, got 'maybe'"),
        (["--label", "x"], "--label: expected a list of integers or an integer, got 'x'"),
        (["--label", "3", "x"], "--label: expected a list of integers or an integer, got '3 x'"),
        (["--sizes", "big"], "--sizes: expected a list of numbers, got 'big'"),
        (["--kinds", "a", "c"], "--kinds: expected a list of values, each one of a, b, got 'a c'"),
        (["--pairs", "8"], "--pairs: expected a list of values, each 2 integers, got '8'"),
        (["a", "b", "c"], "c: expected an option, which begins with --"),
        (["--", "x"], "nothing can follow `--` here"),
    ],
)
def test_mistakes_in_plain_words(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(see, words) == 2
    assert capsys.readouterr().err == f"error: {said} (see --help)\n"


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def wait() -> None:
        """Wait."""
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        assert run_command(wait, []) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_types_of_a_configuration_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train: {steps: many}")
    (tmp_path / "b.yaml").write_text("train: 5\nmodel: {condition: text}")
    (tmp_path / "c.yaml").write_text("data: {blend: [3]}")
    for words, said in (
        (["--config", str(tmp_path / "a.yaml")], "train.steps: expected an integer, got 'many'"),
        (
            ["--config", str(tmp_path / "b.yaml")],
            "train: expected `key: value` lines below it, got 5; model.condition: expected `key: value` lines",
        ),
        (
            ["--config", str(tmp_path / "c.yaml")],
            "c.yaml: data.blend.0: expected `key: value` lines below it, got 3",
        ),
        (["--config", "ucf101_video", "--train", "5"], "--train: holds keys of its own: --train.KEY VALUE"),
        (
            ["--config", "ucf101_video", "--train.stepps", "3"],
            "unknown option --train.stepps (did you mean --train.steps?)",
        ),
        (
            ["--config", "ucf101_video", "--train.zero", "7"],
            "--train.zero: expected one of 0, 1, 2, 3, got '7'",
        ),
        (
            ["--config", "ucf101_video", "--optimizer.betas", "x"],
            "--optimizer.betas: expected 2 numbers, got 'x'",
        ),
    ):
        with pytest.raises(UserError) as error:
            load_config(RunConfig, words)
        assert said in str(error.value) and "class" not in str(error.value)


def training(*words: str, gpus: int = 1) -> None:
    """Hand on."""
    raise Seen((words, gpus))


@pytest.mark.parametrize("before", [["--"], []])
def test_words_of_another_command_line(before: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    theirs = ["--config", "C.yaml", "--train.micro_batch", "2", "--data.path=x"]
    with pytest.raises(Seen) as found:
        run_command(training, ["--gpus", "8", *before, *theirs])
    assert found.value.args[0] == (tuple(theirs), 8)
    assert run_command(training, ["--gpsu", "8"]) == 2
    assert "did you mean --gpus?" in capsys.readouterr().err


def test_help_has_the_options_that_everyone_needs_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(see, ["--help"]) == 0
    text = capsys.readouterr().out
    assert text.index("--out") < text.index("more options") < text.index("--loud")
    assert "--label N .." in text and "Union" not in text and "None" not in text
    with pytest.raises(SystemExit):
        load_config(RunConfig, ["--help"], ["config", "train.steps"])
    text = capsys.readouterr().out
    assert (
        text.index("--config")
        < text.index("--train.steps")
        < min(text.index("\nmodel:"), text.index("\ntrain:"))
    )


def test_shipped_configurations_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    by_path = load_config(RunConfig, ["--config", str(CONFIGS / "video_1.2b.yaml")])
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert load_config(RunConfig, ["--config", "video_1.2b"]) == by_path
    assert load_config(RunConfig, ["--config=video_1.2b.yaml"]) == by_path
    assert capsys.readouterr().err == ""
    for name in ("video", "pretrain/configs/video_1.2b.yaml"):
        assert load_config(RunConfig, ["--config", name]) == by_path
        assert capsys.readouterr().err == f"{name}: taken from the package, configuration video_1.2b\n"
    assert load_config(RunConfig, ["--config=video_1.2b", "--config=24gb"]).model.preset == "l"
    ucf = load_config(RunConfig, ["--config", "ucf101"])
    assert ucf == load_config(RunConfig, ["--config", "ucf101_video"])
    assert capsys.readouterr().err == "ucf101: read as ucf101_video.yaml\n"
    for name, said in (
        ("ucf", "ucf101_image, ucf101_video"),
        ("vidoe_1.2b", "did you mean video_1.2b"),
        ("x/none.yaml", "no such"),
    ):
        with pytest.raises(UserError, match=said):
            load_config(RunConfig, ["--config", name])


HEAVY = "torch jsonargparse yaml numpy transformers deepspeed av".split()


def run_megavrc(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300, **options)


def test_the_overview_imports_nothing_heavy() -> None:
    code = "import sys; import megavrc.__main__ as m; print(m.overview()); "
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    done = run_megavrc("-c", code, cwd=ROOT)
    assert done.stdout.endswith("\n[]\n") and "pretrain_vrc" in done.stdout


def test_commands_by_name() -> None:
    done = run_megavrc("-m", "megavrc", "generat", cwd=ROOT)
    assert (done.returncode, done.stderr) == (2, "error: unknown command generat (did you mean generate?)\n")
    assert run_megavrc("-m", "megavrc", "make-shapes", "--help", cwd=ROOT).stdout.startswith(
        "usage: megavrc make_shapes"
    )


@pytest.mark.slow
def test_an_installed_wheel_in_an_empty_folder(tmp_path: Path) -> None:
    source, target, empty = tmp_path / "source", tmp_path / "target", tmp_path / "empty"
    empty.mkdir()
    copytree(ROOT / "megavrc", source / "megavrc")
    for name in ("setup.py", "pyproject.toml", "README.md", "requirements.txt", "LICENSE"):
        copy2(ROOT / name, source)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    done = run_megavrc("-c", build, cwd=source)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(target)
    entries = next(target.glob("*.dist-info")) / "entry_points.txt"
    assert "megavrc = megavrc.__main__:main" in entries.read_text()
    shipped = {path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml")}
    assert {
        path.relative_to(target / "megavrc/configs") for path in (target / "megavrc/configs").rglob("*.yaml")
    } == shipped
    environment = {**os.environ, "PYTHONPATH": str(target)}
    for words, said in (
        (["plan_run", "--config", "ucf101", "--gpus", "8", "--train.micro_batch", "2"], "throughput"),
        (["plan_run", "--config=pretrain/configs/ucf101_video.yaml"], "throughput"),
        (["submit_slurm", "render", "--gpus=1", "--", "pretrain_vrc", "--config=ucf101_video"], "srun"),
    ):
        done = run_megavrc("-m", "megavrc", *words, cwd=empty, env=environment)
        assert done.returncode == 0 and said in done.stdout, done.stderr
    done = run_megavrc("-m", "megavrc", "demo", cwd=empty, env=environment)
    assert done.returncode == 2 and f"error: {target}: is no checkout" in done.stderr
    assert list(empty.iterdir()) == []
