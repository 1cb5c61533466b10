"""Configuration files, overrides, commands: what is wrong is said in one line."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megavrc.config import dump_yaml, load_config, run_command
from megavrc.errors import UserError
from megavrc.files import check_fields, read_json, write_json
from megavrc.progress import progress


@dataclass
class Part:
    """A part."""

    size: int = 1

    def __post_init__(self) -> None:
        if self.size > 5:
            raise ValueError("part.size: at most 5")


@dataclass
class Whole:
    """A whole."""

    name: str
    part: Part = field(default_factory=Part)
    extra: dict[str, int] = field(default_factory=dict)


def write(path, text: str) -> list[str]:
    path.write_text(text)
    return ["--config", str(path)]


def test_files_and_overrides(tmp_path):
    argv = write(tmp_path / "a.yaml", "name: x\npart: {size: 2}\nextra: {k: 3}")
    assert load_config(Whole, argv) == Whole("x", Part(2), {"k": 3})
    assert load_config(Whole, [*argv, "--part.size", "4", "--name=y"]) == Whole("y", Part(4), {"k": 3})


def test_a_dumped_configuration_loads_again(tmp_path):
    config = Whole("x", Part(3), {"k": 1})
    dump_yaml(config, tmp_path / "b.yaml")
    assert load_config(Whole, ["--config", str(tmp_path / "b.yaml")]) == config


@pytest.mark.parametrize(
    "text, argv, said",
    [
        ("name: x\npart: {sze: 2}\nnme: 1", [], r"unknown keys part\.sze \(did you mean part\.size\?\), nme"),
        ("name: x\npart: {size: 9}", [], r"a\.yaml: part\.size: at most 5"),
        ("name: x\npart: {size: big}", [], r"part\.size.*big"),
        ("part: {size: 2}", [], "required: name"),
        ("name: x", ["--part.sise", "2"], "sise"),
        ("name: [", [], r"a\.yaml: not valid YAML"),
        ("name: x\npart: {size: 2, size: 3}", [], r"a\.yaml: not valid YAML: size stands twice .* line 2"),
        ("name: x\nextra:\n  k: 1\nname: y", [], r"a\.yaml: not valid YAML: name stands twice .* line 4"),
        ("- name", [], r"a\.yaml: expected `key: value` lines"),
    ],
)
def test_mistakes_are_named(tmp_path, text, argv, said):
    with pytest.raises(UserError, match=said) as error:
        load_config(Whole, [*write(tmp_path / "a.yaml", text), *argv])
    assert "\n" not in str(error.value)


@dataclass
class Loose:
    """What may be empty, lists, mappings."""

    note: str | None = None
    part: Part | None = None
    rate: float = 1.0
    any: dict[str, Any] = field(default_factory=dict)
    blend: list[Whole] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)
    steps: dict[int, int | list[int]] = field(default_factory=dict)
    sizes: tuple[int, int] = (1, 2)


@pytest.mark.parametrize(
    "text, said",
    [
        ("rate:", "rate: has no value; give one, or leave the line out"),
        ("rate: ~", "rate: has no value"),
        ("rate: #3", "rate: has no value"),
        ("blend:", "blend: has no value"),
        ("parts: {v: {size: }}", "parts.v.size: has no value"),
        ("part: {size: }", "part.size: has no value"),
        ("blend: [{name: x}, {name: }]", "blend.1.name: has no value"),
        ("steps: {3: [1, ~]}", "steps.3.1: has no value"),
        ("sizes: [1, ~]", "sizes.1: has no value"),
        ("parts: {v: }", "parts.v: expected `key: value` lines below it, got None"),
    ],
)
def test_empty_values_are_refused_where_nothing_is_no_value(tmp_path, text, said):
    with pytest.raises(UserError) as error:
        load_config(Loose, write(tmp_path / "a.yaml", text))
    assert str(error.value).startswith(f"{tmp_path}/a.yaml: {said}")


def test_empty_values_stay_where_nothing_is_a_value(tmp_path):
    argv = write(tmp_path / "a.yaml", "note:\npart: ~\nany: {a: , b: [~]}")
    assert load_config(Loose, argv) == Loose(any={"a": None, "b": [None]})


@pytest.mark.parametrize(
    "text, said",
    [
        ("part: {sze: 2}", "unknown key part.sze (did you mean part.size?)"),
        ("blend: [{name: x, nme: 2}]", "unknown key blend.0.nme (did you mean blend.0.name?)"),
        ("blend: [x]", "blend.0: expected `key: value` lines below it, got 'x'"),
        ("blend: [{part: {size: 2}}]", "blend: an item lacks name"),
        ("blend: x", "blend: expected a list of values, each a mapping of its keys, got 'x'"),
        ("parts: {v: {size: many}}", "parts.v.size: expected an integer, got 'many'"),
        ("parts: {v: x}", "parts.v: expected `key: value` lines below it, got 'x'"),
        ("steps: {0: nine}", "steps.0: expected an integer or a list of integers, got 'nine'"),
        ("steps: {0: [9, x]}", "steps.0.1: expected an integer, got 'x'"),
        ("steps: {x: 9}", "steps: expected a mapping with integers as keys, got {'x': 9}"),
        ("sizes: [1]", "sizes: expected 2 integers, got [1]"),
        ("rate: much", "rate: expected a number, got 'much'"),
    ],
)
def test_wrong_values_are_named_with_their_file_and_place(tmp_path, text, said):
    argv = write(tmp_path / "a.yaml", text)
    good = write(tmp_path / "b.yaml", "rate: 1e-4\nsteps: {0: 9}")
    with pytest.raises(UserError) as error:
        load_config(Loose, [*good, *argv])
    assert str(error.value) == f"{tmp_path}/a.yaml: {said}"


def test_a_wrong_option_is_not_blamed_on_the_file(tmp_path):
    argv = write(tmp_path / "a.yaml", "rate: 1e-4\nparts: {1: {size: 2}}")
    with pytest.raises(UserError, match=r"^--rate: expected a number, got 'much'"):
        load_config(Loose, [*argv, "--rate=much"])


@pytest.mark.parametrize(
    "text, said",
    [
        ("name: x\npart: {size: 010}", "010 would be read as 8; .* line 2"),
        ("name: x\npart: {size: -0_3}", "-0_3 would be read as -3; "),
        ("name: x\npart: {size: 12:30}", "12:30 would be read as 750; "),
        ("name: x\nextra: {k: 1:30.5}", "1:30.5 would be read as 90.5; "),
        ("name: 0123", "0123 would be read as 83; write no leading zero and no colon, or quote it as text"),
    ],
)
def test_numbers_that_yaml_reads_as_others_are_refused(tmp_path, text, said):
    with pytest.raises(UserError, match=rf"a\.yaml: not valid YAML: {said}"):
        load_config(Whole, write(tmp_path / "a.yaml", text))


def test_plain_numbers_and_quoted_ones_are_read(tmp_path):
    argv = write(tmp_path / "a.yaml", "name: '0123'\npart: {size: 0}\nextra: {a: 0x10, b: -1_000, c: 100}")
    assert load_config(Whole, argv) == Whole("0123", Part(0), {"a": 16, "b": -1000, "c": 100})


@pytest.mark.parametrize("argv", [["--config"], ["--config="], ["--config", ""], ["--config", "--name=x"]])
def test_a_configuration_without_a_name_is_a_missing_value(argv):
    with pytest.raises(UserError, match=r"^--config: a value is missing"):
        load_config(Whole, argv)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.yaml: no such configuration file"):
        load_config(Whole, ["--config", str(tmp_path / "nothing.yaml")])


def add(left: int, right: int = 2) -> int:
    """Add numbers.

    Args:
        left: the first
        right: the second
    """
    if left < 0:
        raise UserError("--left: negative\nnumbers are not added")
    return left + right


def test_commands(capsys):
    assert run_command(add, ["--left", "1"]) == 3
    assert run_command({"add": add}, ["add", "--left", "1", "--right=4"]) == 5
    assert run_command(add, ["--left", "-1"]) == 2
    assert capsys.readouterr().err == "error: --left: negative numbers are not added\n"
    assert run_command(add, ["--left", "1", "--rigt", "4"]) == 2
    assert "rigt" in capsys.readouterr().err


@contextmanager
def full_disk() -> Iterator[None]:
    """No file grows beyond 10 bytes: like a full disk, this fails in `write`, which names no file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_files_that_cannot_be_written(tmp_path, capsys):
    """One line that names the file; whatever concerns no file keeps its traceback."""

    def make(out: Path) -> None:
        """Make."""
        out.mkdir(exist_ok=True)

    def fill(out: Path) -> None:
        """Fill."""
        with full_disk():
            write_json(out, "more than ten bytes")

    def talk() -> None:
        """Talk to nobody."""
        reader, writer = os.pipe()
        os.close(reader)
        os.write(writer, b"?")

    write_json(tmp_path / "file", 1)
    for main, out, reason in (
        (make, tmp_path / "file", "File exists"),
        (make, tmp_path / "none" / "out", "No such file or directory"),
        (fill, tmp_path / "full.json", "File too large"),
    ):
        assert run_command(main, ["--out", str(out)]) == 2
        assert capsys.readouterr().err == f"error: {out}: {reason}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(BrokenPipeError):
        run_command(talk, [])


def test_help_into_a_pipe_that_has_read_enough(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(SystemExit) as end:
            load_config(Whole, ["--help"])
    assert end.value.code == 0


def flag(loud: bool = False, times: int = 1) -> int:
    """Say so."""
    return times * (2 if loud else 1)


def test_a_flag_needs_no_value():
    assert run_command(flag, ["--loud"]) == 2
    assert run_command(flag, ["--loud", "--times=3"]) == 6
    assert run_command({"flag": flag}, ["flag", "--times", "3", "--loud", "false"]) == 3


def dashed(first_frame: int = 0) -> int:
    """Give it back."""
    return first_frame


def test_dashes_are_underscores():
    assert run_command(dashed, ["--first-frame", "3"]) == 3
    assert run_command(dashed, ["--first-frame=-4"]) == -4


def too_much(size: int) -> int:
    return int(np.zeros((size, size, size, size)).sum())


def too_much_for_torch(size: int) -> int:
    return int(torch.zeros(size, size, size, size).sum())


@pytest.mark.parametrize("function", [too_much, too_much_for_torch])
def test_a_memory_that_is_too_small_is_one_line(function, capsys):
    assert run_command(function, ["--size=20000"]) == 2
    said = capsys.readouterr().err
    assert "the memory does not suffice" in said and said.count("\n") == 1


def test_other_errors_of_torch_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a bug"):
        run_command(buggy, [])


def buggy() -> int:
    raise RuntimeError("a bug")


FIELDS = {
    "name": str,
    "count": int,
    "share": float,
    "shape": list[int],
    "note": str | None,
    "files": dict[str, int],
}
WHOLE = {"name": "a", "count": 3, "share": 1, "shape": [1, 2], "files": {"x": 1}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 5}, "name is 5, expected str"),
        ({"count": True}, "count is True, expected int"),
        ({"count": 3.0}, "count is 3.0, expected int"),
        ({"share": "x"}, "share is 'x', expected float"),
        ({"shape": [1, "x"]}, r"shape is \[1, 'x'\], expected list\[int\]"),
        ({"note": 5}, r"note is 5, expected str \| None"),
        ({"files": {"x": None}}, "files is .* expected dict"),
    ],
)
def test_fields_are_checked_by_name(change, said):
    assert check_fields("a.json", WHOLE, FIELDS) == WHOLE
    with pytest.raises(UserError, match=f"a.json: {said}"):
        check_fields("a.json", WHOLE | change, FIELDS)
    with pytest.raises(UserError, match="name is missing"):
        check_fields("a.json", {}, FIELDS)
    with pytest.raises(UserError, match=r"expected an object, got \[\]"):
        check_fields("a.json", [], FIELDS)


def test_json_files_are_written_whole(tmp_path):
    path = tmp_path / "sub" / "a.json"
    write_json(path, {"a": [1, "ü"]})
    assert read_json(path) == {"a": [1, "ü"]}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]
    path.write_text("{")
    with pytest.raises(UserError, match=r"a\.json: not valid JSON"):
        read_json(path)


def test_progress_passes_everything_through(capsys):
    assert list(progress(range(5), "counting")) == list(range(5))
    assert "counting: 5 done" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_says_more_on_request(terminal, capsys, monkeypatch):
    monkeypatch.setattr("megavrc.progress.PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    assert list(progress(range(3), "clips", note=lambda: "7.5 clips/s")) == [0, 1, 2]
    printed = capsys.readouterr().err
    assert ("clips, 7.5 clips/s" if terminal else "clips: 2/3, 7.5 clips/s, 0 s left") in printed
