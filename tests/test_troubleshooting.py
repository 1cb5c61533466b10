"""docs/troubleshooting.md: every line that it explains is one of the code."""

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
LINES = re.findall(r"^\| `(.+?)` \| ", PAGE, re.MULTILINE)


def plain(text: str) -> str:
    """A message with `..` for each value; a value that follows another is one."""
    return re.sub(r"(\.\.)+", "..", re.sub(r"%[sd]", "..", text))


@functools.cache
def messages() -> frozenset[str]:
    """All texts of the code."""
    found = set()
    for path in (ROOT / "megavrc").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else ".." for part in node.values)
                found.add(plain("".join(parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(plain(node.value))
    return frozenset(found)


def test_every_line_is_one_of_the_code() -> None:
    known = messages()
    unknown = [line for line in LINES if not any(plain(line) in message for message in known)]
    assert unknown == [] and len(LINES) > 40


def test_a_line_that_the_code_does_not_say_is_noticed() -> None:
    assert not any("no such manifest; make another with" in message for message in messages())
    assert any("no such manifest; make one with megavrc prepare_dataset" in message for message in messages())


def test_lines_can_be_told_apart() -> None:
    """Enough words of each to search for."""
    assert [line for line in LINES if len(re.sub(r"\.\.|\W", "", line)) < 10] == []
