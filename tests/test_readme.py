"""What the pages say exists: commands, subcommands, options, links, tests; and nothing is left out of the tables."""

import contextlib
import dataclasses
import functools
import io
import re
import runpy
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import programs_of

from megavrc.__main__ import COMMANDS, main
from megavrc.training.tasks.tokenizer_config import TokenizerRunConfig
from megavrc.training.tasks.vrc_config import RunConfig
from megavrc.user_files import USER_FILES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS_PAGE = (ROOT / "docs" / "commands.md").read_text()
DOCS = sorted((ROOT / "docs").glob("*.md"))
FOLDERS = sorted(page for parent in ("benchmarks", "examples") for page in (ROOT / parent).rglob("README.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *FOLDERS, *DOCS]

BY_THE_WAY = {
    "commands.md",
    "options.md",
    "licences.md",
    "scenes.md",
    "gameplay.md",
}  # pages that no aim begins with
ENTRIES = {name: entry for group in COMMANDS.values() for name, entry in group.items()}
# rows like: | `megavrc x` | what it does |, and | `megavrc x one` | .. |
ROWS = re.findall(r"^\| `megavrc (\w+) ?([^`]*)` \|", COMMANDS_PAGE, re.MULTILINE)
SUBCOMMANDS = {name: [word for found, word in ROWS if found == name and word] for name, _ in ROWS}
SCRIPT = rf"((?<!/)\b(?:tools|pretrain|examples|benchmarks)/(?:study/)?\w+\.py\b|\bmegavrc (?:{'|'.join(ENTRIES)})\b)"


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_know_the_options_that_pages_give_them(page: Path) -> None:
    unknown = []
    for command, words in commands(page):
        assert command in ENTRIES or (ROOT / command).is_file(), command
        several = SUBCOMMANDS.get(command) or "/study/" in command
        subcommand = re.match(r" ([a-z][a-z0-9-]*)|", words)[1] if several else None
        for option in re.findall(r"(?<=\s--)[a-z][\w.-]*", f" {words}"):
            if "--" + option.replace("-", "_") not in known_options(command, subcommand or ""):
                unknown.append(f"{command} {subcommand or ''} --{option}")
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_name_commands_that_exist(page: Path) -> None:
    named = re.findall(r"(?:`|^    )megavrc ([a-z_]+)", page.read_text(), re.MULTILINE)
    assert set(named) <= set(ENTRIES)


def test_tables_name_every_command() -> None:
    assert [name for name, word in ROWS if not word] == list(ENTRIES)
    groups = {
        name: re.findall(r"`(\w+)`", words)
        for name, words in re.findall(r"^\| (.+?) \| (`.+) \|", README, re.M)
    }
    assert {name: groups.get(name) for name in COMMANDS} == {
        name: list(found) for name, found in COMMANDS.items()
    }


def test_tables_that_the_code_knows_are_those_of_the_code() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs" / "figures")
        made = runpy.run_path(str(ROOT / "docs" / "figures" / "tables.py"))["pages"]()
    assert {"commands.md", "exit_codes.md", "llmc.md", "options.md", "vlm_hosts.md"} <= {
        page.name for page in made
    }
    for page, text in made.items():
        assert page.read_text() == text, f"{page.name}: python docs/figures/draw.py writes it"


def test_the_readme_names_every_extra() -> None:
    packaging = (ROOT / "setup.py").read_text().partition("extras_require")[2]
    extras = re.findall(r'^        "(\w+)": ', packaging, re.MULTILINE)
    line = README.partition("Extras: ")[2].partition("as in")[0]
    assert len(extras) > 5 and set(re.findall(r"`(\w+)`", line)) == set(extras)


def test_the_page_of_licences_names_every_file_that_users_bring() -> None:
    page = (ROOT / "docs" / "licences.md").read_text()
    assert [variable for variable, _ in USER_FILES.values() if f"`{variable}`" not in page] == []


@pytest.mark.parametrize("config", [RunConfig, TokenizerRunConfig])
def test_the_options_page_has_every_part_of_a_configuration(config: type) -> None:
    page = (ROOT / "docs" / "options.md").read_text()
    kinds = typing.get_type_hints(config)
    parts = [name for name, kind in kinds.items() if dataclasses.is_dataclass(kind)]
    assert len(parts) > 4 and [name for name in parts if f"| `{name}." not in page] == []


def test_the_list_of_pages_has_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    aims, _, pages = index.partition("## All pages")
    for text in (aims, pages):
        named = set(re.findall(r"\]\((\w+\.md)\)", text))
        assert {page.name for page in DOCS} - named <= (
            {"README.md"} if text is pages else {"README.md", *BY_THE_WAY}
        )


def test_what_the_readme_claims_has_a_test() -> None:
    section = README.partition("## What it does that others do not")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 10
    assert [row for row in rows if not re.search(r"\]\(tests/\w+/?\w+\.py\)", row)] == []


def test_scripts_are_entries_of_the_same_table() -> None:
    """Each runs the command of its name; what has no script is reached by `megavrc` alone."""
    scripts = [path for folder in ("tools", "pretrain") for path in (ROOT / folder).glob("*.py")]
    for path in scripts:
        assert f'main("{path.stem}")' in path.read_text() and path.read_text().count("\n") < 16, path
    assert {path.stem for path in scripts} == set(ENTRIES) - {"demo"}


@pytest.mark.parametrize("command", ENTRIES)
def test_help(command: str) -> None:
    text = help_text(command)
    subcommands = re.findall(r"^  (\S+) +\S", text, re.MULTILINE) if "SUBCOMMAND" in text else []
    assert subcommands == SUBCOMMANDS[command]


@pytest.mark.parametrize(
    "command", sorted(set(ENTRIES) - {"doctor"})
)  # which has the standard library's parser
def test_help_says_every_option_in_a_sentence(command: str) -> None:
    for subcommand in re.findall(r"^  (\S+) +\S", help_text(command), re.MULTILINE):
        text = help_text(command, "" if subcommand.startswith("--") else subcommand)
        assert str(ROOT) not in text, "a place on this machine"
        for option, rest in re.findall(r"^  (--[\w.]+)(.*(?:\n {30}.*)*)", text, re.MULTILINE):
            assert re.search(r"(  |^ {30})\S[^.]+.*\.$", rest, re.DOTALL | re.MULTILINE), option
    if command.startswith("pretrain"):
        assert help_text(command).partition("more options")[0].count("\n  --") == 10


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([\w-]+)", "".join(page.read_text() for page in PAGES)))
    assert named and named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)|src=\"([^\"]+)\"", page.read_text())
    local = [a or b for a, b in links if not (a or b).startswith("http")]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_into_a_page_lead_to_a_heading(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text())
    assert [
        f"{path}#{anchor}"
        for path, anchor in links
        if not path.startswith("http") and anchor not in anchors(page.parent / path if path else page)
    ] == []


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_example_of_the_model_page_runs() -> None:
    exec(programs_of(ROOT / "docs" / "model.md")[0], {})
