"""The tables of the pages that the code knows: commands, options, exit codes, token reduction.

A table stands between `<!-- made: KIND WHAT -->` and `<!-- end -->`; `python docs/figures/draw.py` writes all of them.
"""

import dataclasses
import functools
import importlib
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import docstring_parser

from megavrc.__main__ import COMMANDS
from megavrc.config import load
from megavrc.errors import EXIT_CODES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = re.compile(r"(<!-- made: (\w+) ?(\S*) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def pages() -> dict[Path, str]:
    """Every page that holds such a table, as it should be."""
    texts = {page: page.read_text() for page in PAGES}
    return {page: MARK.sub(_made, text) for page, text in texts.items() if MARK.search(text)}


def _made(found: re.Match[str]) -> str:
    from hosts import hosts  # this one and `methods` import `table`
    from llmc import benchmark, mini_vlm
    from methods import methods

    kinds = {
        "options": options,
        "commands": commands,
        "exit_codes": exit_codes,
        "methods": methods,
        "hosts": hosts,
        "benchmark": benchmark,
        "mini_vlm": mini_vlm,
    }
    return f"{found[1]}\n{kinds[found[2]](found[3])}\n\n"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# --- commands --------------------------------------------------------------------------------------------------


def commands(_: str) -> str:
    """All commands in their groups, with the first sentence of each subcommand's documentation."""
    rows = []
    for group, entries in COMMANDS.items():
        rows.append([f"**{group}**", ""])
        for name, entry in entries.items():
            rows.append([f"`megavrc {name}`", entry.help])
            run = load(entry.run) if isinstance(entry.run, str) and not entry.reads_argv else entry.run
            if isinstance(run, typing.Mapping):
                for word, target in run.items():
                    body = load(target) if isinstance(target, str) else target
                    rows.append([f"`megavrc {name} {word}`", _sentence(body)])
    return table(["command", "what it does"], rows)


def _sentence(function: Any) -> str:
    return (
        (inspect.getdoc(function) or "")
        .partition("\n\n")[0]
        .replace("\n", " ")
        .rstrip(".")
        .replace("|", "\\|")
    )


# --- options ---------------------------------------------------------------------------------------------------


def options(what: str) -> str:
    """Every key of a configuration class: `module:Class`, or `module:Class=prefix` with the keys of nested ones."""
    target, _, prefix = what.partition("=")
    module, _, name = target.partition(":")
    cls = getattr(importlib.import_module(module), name)
    return table(["key", "default", "meaning"], list(_rows(cls, prefix and f"{prefix}.")))


def _rows(cls: type, prefix: str) -> Iterator[list[str]]:
    kinds, meanings = typing.get_type_hints(cls), _meanings(cls)
    for field in dataclasses.fields(cls):
        kind = kinds[field.name]
        if dataclasses.is_dataclass(kind):
            if prefix:  # a class of its own stands in a table of its own
                yield from _rows(typing.cast(type, kind), f"{prefix}{field.name}.")
            continue
        meaning = meanings[field.name].replace("\n", " ").replace("|", "\\|").rstrip(".")
        missing = [word for word in _words(kind) if f"`{word}`" not in meaning]
        if missing:
            meaning = f"{', '.join(f'`{word}`' for word in _words(kind))}: {meaning}"
        yield [f"`{prefix}{field.name}`", _default(field), meaning]


@functools.cache
def _meanings(cls: type) -> dict[str, str]:
    """What the documentation of a class and of those that it inherits from says of each attribute."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for item in docstring_parser.parse(inspect.cleandoc(base.__doc__ or "")).params:
            found |= dict.fromkeys(re.split(r",\s*", item.arg_name), item.description or "")
    return found


def _words(kind: Any) -> list[str]:
    """The values of a choice of texts."""
    if typing.get_origin(kind) is not Literal:
        return []
    return [value for value in typing.get_args(kind) if isinstance(value, str)]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "needed"
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value in ("", [], {}) else f"`{value}`"


# --- exit codes ------------------------------------------------------------------------------------------------


def exit_codes(_: str) -> str:
    """Every exit code and what it means."""
    return table(["exit code", "meaning"], [[str(code), meaning] for code, meaning in EXIT_CODES.items()])
