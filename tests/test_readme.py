"""What the README says exists: its commands, their subcommands, its links; and no command is left out of it."""

import contextlib
import functools
import io
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megavrc.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

ENTRIES = {name: entry for group in COMMANDS.values() for name, entry in group.items()}
# rows like: | `megavrc x {one,two}` | what it does |
ROWS = dict(re.findall(r"^\| `(?:megavrc |bash )([\w/.]+)([^`]*)` \|", README, re.MULTILINE))
SCRIPT = rf"((?<!/)\b(?:tools|pretrain|examples|benchmarks)/\w+\.py\b|\bmegavrc (?:{'|'.join(ENTRIES)})\b)"


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """(command, the words after it) of every command on a page; also of one that another command or launcher runs."""
    text = page.read_text().replace("\\\n", " ")
    for line in re.split(r"[`\n]| # ", text):
        parts = re.split(SCRIPT, line)
        for found, words in zip(parts[1::2], parts[2::2], strict=True):
            own, _, inner = words.partition(" -- ")
            yield name_of(found), own
            other, _, more = inner.partition(" ")
            yield (other, f" {more}") if other in ENTRIES else ("pretrain_vrc", inner)


def name_of(found: str) -> str:
    """`tools/x.py` and `megavrc x` are the command x; other scripts stay."""
    if found.startswith("megavrc "):
        return found.removeprefix("megavrc ")
    return found if found.startswith(("examples", "benchmarks")) else Path(found).stem


@functools.cache
def help_text(command: str, subcommand: str = "") -> str:
    """What the command's own parser prints as help, in this process."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setenv("DS_ACCELERATOR", "cpu")  # which benchmarks/faults.py sets: gone afterwards
        patch.setattr(sys, "argv", [command, *subcommand.split(), "--help"])
        with pytest.raises(SystemExit) as end:
            if command in ENTRIES:
                main(command)
            patch.syspath_prepend((ROOT / command).parent)
            runpy.run_path(str(ROOT / command), run_name="__main__")
    assert not end.value.code
    return output.getvalue()


def known_options(command: str, subcommand: str) -> set[str]:
    known = {"--help", *re.findall(r"--[\w.]+", help_text(command, subcommand))}
    return known | known_options("pretrain_vrc", "") if command == "plan_run" else known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_know_the_options_that_pages_give_them(page: Path) -> None:
    unknown = []
    for command, words in commands(page):
        assert command in ENTRIES or (ROOT / command).is_file(), command
        subcommand = re.match(r" ([a-z][a-z0-9-]*)|", words)[1] if "{" in ROWS.get(command, "") else None
        for option in re.findall(r"(?<=\s--)[a-z][\w.-]*", f" {words}"):
            if "--" + option.replace("-", "_") not in known_options(command, subcommand or ""):
                unknown.append(f"{command} {subcommand or ''} --{option}")
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_commands_that_exist(page: Path) -> None:
    named = re.findall(r"(?:`|^    )megavrc ([a-z_]+)", page.read_text(), re.MULTILINE)
    assert set(named) <= set(ENTRIES)


def test_table_names_every_command() -> None:
    assert set(ROWS) == {*ENTRIES, "pretrain/two_stage.sh"}


def test_scripts_are_entries_of_the_same_table() -> None:
    """Each runs the command of its name; what has no script is reached by `megavrc` alone."""
    scripts = [path for folder in ("tools", "pretrain") for path in (ROOT / folder).glob("*.py")]
    for path in scripts:
        assert f'main("{path.stem}")' in path.read_text() and path.read_text().count("\n") < 16, path
    assert {path.stem for path in scripts} == set(ENTRIES) - {"demo"}


@pytest.mark.parametrize("command", ENTRIES)
def test_help(command: str) -> None:
    text = help_text(command)
    braces = re.search(r"\{([^}]*)\}", ROWS[command])
    subcommands = re.findall(r"^  (\S+) +\S", text, re.MULTILINE) if "SUBCOMMAND" in text else []
    assert subcommands == (braces[1].split(",") if braces else [])


@pytest.mark.parametrize(
    "command", sorted(set(ENTRIES) - {"doctor"})
)  # which has the standard library's parser
def test_help_says_every_option_in_a_sentence(command: str) -> None:
    for subcommand in re.findall(r"^  (\S+) +\S", help_text(command), re.MULTILINE):
        text = help_text(command, "" if subcommand.startswith("--") else subcommand)
        for option, rest in re.findall(r"^  (--[\w.]+)(.*(?:\n {30}.*)*)", text, re.MULTILINE):
            assert re.search(r"(  |^ {30})\S[^.]+.*\.$", rest, re.DOTALL | re.MULTILINE), option
    if command.startswith("pretrain"):
        assert help_text(command).partition("more options")[0].count("\n  --") == 10


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([\w-]+)", "".join(page.read_text() for page in PAGES)))
    assert named and named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)|src=\"([^\"]+)\"", page.read_text())
    local = [a or b for a, b in links if not (a or b).startswith("http")]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_example_of_the_model_page_runs() -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/model.md").read_text(), re.DOTALL)
    assert code
    exec(code[1], {})
