"""What the README says exists: its commands, their subcommands, its links; and no command is left out of it."""

import contextlib
import functools
import io
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# rows like: | `python tools/x.py {one,two}` | what it does |
ROWS = dict(
    re.findall(r"^\| `(?:python |bash )?((?:tools|pretrain)/\w+\.(?:py|sh))([^`]*)` \|", README, re.MULTILINE)
)
MODULES = re.findall(r"^\| `python -m (megavrc[\w.]*)", README, re.MULTILINE)


SCRIPT = r"(?<!/)\b((?:tools|pretrain|examples|benchmarks)/\w+\.py)\b"


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """(script, the words after it) of every command on a page; also of one that another command or launcher runs."""
    text = page.read_text().replace("\\\n", " ")
    for line in re.split(r"[`\n]| # ", text):
        parts = re.split(SCRIPT, line)
        for script, words in zip(parts[1::2], parts[2::2], strict=True):
            own, _, training = words.partition(" -- ")
            yield script, own
            yield "pretrain/pretrain_vrc.py", training


@functools.cache
def known_options(script: str, subcommand: str) -> set[str]:
    """What the command's own parser prints as help, in this process."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(sys, "argv", [script, *subcommand.split(), "--help"])
        patch.setattr(os, "_exit", sys.exit)  # how pretraining ends
        patch.syspath_prepend((ROOT / script).parent)
        patch.setenv("DS_ACCELERATOR", "cpu")  # which benchmarks/faults.py sets: gone afterwards
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    return set(re.findall(r"--[\w.]+", output.getvalue()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_know_the_options_that_pages_give_them(page: Path) -> None:
    unknown = []
    for script, words in commands(page):
        assert (ROOT / script).is_file(), script
        subcommand = re.match(r" ([a-z][a-z0-9-]*)|", words)[1] if "{" in ROWS.get(script, "") else None
        for option in re.findall(r"(?<=\s--)[a-z][\w.-]*", f" {words}"):
            if "--" + option.replace("-", "_") not in known_options(script, subcommand or ""):
                unknown.append(f"{script} {subcommand or ''} --{option}")
    assert unknown == []


def help_text(*command: str) -> str:
    run = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_table_names_every_command() -> None:
    present = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("tools/*.py", "pretrain/*.py", "pretrain/*.sh")
        for path in ROOT.glob(pattern)
    }
    assert set(ROWS) == present


@pytest.mark.parametrize("script", [script for script in ROWS if script.endswith(".py")])
def test_help(script: str) -> None:
    text = help_text(script)
    braces = re.search(r"\{([^}]*)\}", ROWS[script])
    subcommands = braces[1].split(",") if braces else []
    assert [name for name in subcommands if not re.search(rf"\b{re.escape(name)}\b", text)] == []


@pytest.mark.parametrize("module", MODULES)
def test_module_help(module: str) -> None:
    help_text("-m", module)


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
