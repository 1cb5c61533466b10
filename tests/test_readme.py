"""What the README says exists: its commands, their subcommands, its links; and no command is left out of it."""

import re
import subprocess
import sys
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
