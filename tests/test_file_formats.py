"""docs/formats.md names every file format with the number in the code; a newer one is refused by name everywhere."""

import ast
import re
from pathlib import Path

import pytest

from megavrc.errors import UserError
from megavrc.files import check_format

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/formats.md").read_text()
FOLDERS = ("megavrc", "tools", "pretrain", "benchmarks")
CODE = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
NUMBER = re.compile(r'^(\w*FORMAT(?:_VERSION)?) = ("[\w -]*\d"|\d+)', re.MULTILINE)
WRITERS = {
    "write_json",
    "write_result",
    "write_atomic",
    "write_text",
    "write_bytes",
    "dump_yaml",
    "save_file",
}
BENCHMARKS = re.compile(r"(?:megavrc/)?benchmarks/\w+\.py")  # `--json` of each
SYSTEM = {"megavrc/hardware.py"}  # writes to /proc


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_page_has_the_numbers_of_the_code() -> None:
    rows = re.findall(r"^\|[^|]*\| (\S[^|,]*?)(?:,[^|]*)? \| `(\w+)` in `([\w./]+)` \|", PAGE, re.MULTILINE)
    listed = {(file, constant): number for number, constant, file in rows}
    found = {
        (name(path), constant): number.strip('"')
        for path in CODE
        for constant, number in NUMBER.findall(path.read_text())
    }
    assert listed == found


def test_the_page_names_every_module_that_writes_files() -> None:
    writing = {name(path) for path in CODE if written(path)} - SYSTEM
    assert {file for file in writing if f"`{file}`" not in PAGE and not BENCHMARKS.fullmatch(file)} == set()
    assert len(writing) > 20


def written(path: Path) -> bool:
    calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return any(getattr(call, "attr", getattr(call, "id", "")) in WRITERS for call in calls)


def test_every_module_on_the_page_exists() -> None:
    assert [
        file
        for file in re.findall(r"`((?:megavrc|tools|benchmarks)/[\w/]+\.py)`", PAGE)
        if not (ROOT / file).is_file()
    ] == []


@pytest.mark.parametrize("known", [2, "megavrc-checkpoint v2"])
def test_newer_formats_are_refused_by_name(known: int | str) -> None:
    check_format("x.json", known, known)
    kind = str(known).removesuffix("2")
    check_format("x.json", f"{kind}1", known)
    with pytest.raises(
        UserError, match=r"^x.json: made by a newer megavrc \(format 13, this one reads up to 2\)"
    ):
        check_format("x.json", f"{kind}13", known)
    for other in (0, -1, True, "", [2], {"a": 1}, 2.5, f"{kind}x", "megavrc-shards 2"):
        with pytest.raises(UserError, match=r"^x.json: format .* expected"):
            check_format("x.json", other, known)


def test_without_a_number_it_is_format_1() -> None:
    check_format("x.json", None, 1)
    check_format("x.json", None, 7)
