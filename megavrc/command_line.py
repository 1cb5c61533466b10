"""Text that people type and read: words into values of options, mistakes into one line, help.

jsonargparse knows the types. But it reads every word as YAML (`#sunset` is nothing, `- a` a list), wants one word an
option, and speaks of unions where a value is wrong. So words are grouped here and handed on in the one spelling that
loses nothing, `--name=value`, and what it says of a value is said anew.
"""

import argparse
import dataclasses
import difflib
import itertools
import json
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from megavrc.errors import UserError

DROPS_OLD_SPELLINGS = "2.0"  # docs/formats.md: what 0.x takes, 1.x takes
FIRST = 10  # options that help puts first where there are many more
WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    dict: "a mapping",
}
PLURALS = {int: "integers", float: "numbers", str: "texts", Path: "paths"}
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH", bool: "", dict: "{..}"}
COLUMN, WIDTH = 30, 110  # of help: where the sentences begin, where lines end

_warned: set[str] = set()


class Options:
    """The options of a function or of a dataclass, as a parser of jsonargparse has them.

    Args:
        parser: with all options added.
        places: options whose values may also stand first, in this order, without their names.
        open_end: whether another command line may follow: options that this one does not know, and all after `--`.
    """

    def __init__(self, parser: Any, places: Sequence[str] = (), open_end: bool = False) -> None:
        self.parser, self.places, self.open_end = parser, places, open_end
        self.actions = {name: action for action in parser._actions for name in action.option_strings}

    def parse(self, argv: list[str]) -> tuple[Any, list[str]]:
        """Values by name, and the words of the other command line.

        Raises:
            UserError: an option or a value that is wrong, and what would be right.
        """
        given, rest = self._group(argv)
        words, read = [], {}  # for the parser; read here, because it would read something else
        for name, values in given:
            action: Any = self.actions.get(name)
            kinds = _kinds(action)
            value = _value(name, values, kinds)
            if kinds in ([str], [Path]) and _hint(action) != kinds[0]:  # beside None, which `null` would mean
                read[action.dest] = kinds[0](value)
            elif {int, str} <= set(_members(_list(kinds))):  # it tries either first, whatever it met first
                read[action.dest] = [_integer_or_text(word) for word in json.loads(value or "")]
            else:
                words.append(name if value is None else f"{name}={value}")
        try:
            parsed = self.parser.parse_args(words)
        except argparse.ArgumentError as error:
            raise UserError(f"{self._plain(one_line(str(error)), dict(given))} (see --help)") from None
        for name, content in read.items():
            parsed[name] = content
        return parsed, rest

    def _group(self, argv: list[str]) -> tuple[list[tuple[str, list[str]]], list[str]]:
        """Options, each with its values, those of a list that is given twice together; and the other command line."""
        end = argv.index("--") if "--" in argv else len(argv)
        if end < len(argv) and not self.open_end:
            raise UserError("nothing can follow `--` here (see --help)")
        first = list(itertools.takewhile(_is_value, argv[:end]))
        if len(first) > len(self.places):
            raise UserError(
                f"{first[len(self.places)]}: expected an option, which begins with -- (see --help)"
            )
        given = [(f"--{place}", [word]) for place, word in zip(self.places, first, strict=False)]
        rest: list[str] = []
        target: list[str] = []  # the values of the option that stands before a word
        for word in argv[len(first) : end]:
            if _is_value(word):
                target.append(word)
                continue
            name, equals, value = word.partition("=")
            name = f"--{name[2:].replace('-', '_')}"
            if self.open_end and not self._known(name) and not self._near(name):
                rest.append(word)
                target = rest
                continue
            if not self._known(name):
                raise UserError(f"unknown option {name}{self._near(name)} (see --help)")
            earlier = [
                values for other, values in given if other == name and _list(_kinds(self.actions.get(name)))
            ]
            target = earlier[0] if earlier else []
            if not earlier:
                given.append((name, target))
            if equals:
                kinds = _kinds(self.actions.get(name))
                of_lists = typing.get_origin(_list(kinds)) in (list, tuple)
                if target and not of_lists and _spelled_as_list(value, _list(kinds), str in kinds):
                    target.clear()  # the old spelling is the whole list: given again, the last one counts
                target.append(value)
        return given, rest + argv[end + 1 :]

    def _known(self, name: str) -> bool:
        """Whether it is an option, or a key inside one that is a mapping (`--deepspeed.key`)."""
        outer = [option for option in self.actions if name.startswith(f"{option}.")]
        return name in self.actions or any(_kinds(self.actions[option]) for option in outer)

    def _near(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.actions, n=1, cutoff=0.75)
        return f" (did you mean {near[0]}?)" if near else ""

    def _plain(self, message: str, given: dict[str, list[str]]) -> str:
        """What the parser says, in plain words."""
        if found := re.match(r"the following arguments are required: (.*)", message):
            return f"required: {found[1]}"
        if found := re.match(r"Parser key \"([^\"]+)\": Unable to load config", message):
            return f"--{found[1]}: holds keys of its own: --{found[1]}.KEY VALUE"
        found = re.match(r"Parser key \"\u200b?([^\"]+)\": .*?(?:[Gg]ot value|Given value): (.*)", message)
        action = found and self.actions.get(f"--{found[1]}")
        if not found or not _kinds(action):
            return message
        values = given.get(f"--{found[1]}")
        got = " ".join(values) if values else found[2].partition(" Subclass types expect")[0]
        where = f"--{found[1]}" if values else found[1]
        return f"{where}: expected {describe(_kinds(action))}, got {got!r}"


def _is_value(word: str) -> bool:
    return not re.match(r"--[A-Za-z]|-h$", word)


def _integer_or_text(word: str | int) -> str | int:
    return int(word) if re.fullmatch(r"0|-?[1-9][0-9]*", str(word)) else word


def one_line(text: str) -> str:
    return " ".join(text.split())


# --- types -----------------------------------------------------------------------------------------------------


def _hint(action: Any) -> Any:
    return getattr(action, "_typehint", None)


def _kinds(action: Any) -> list[Any]:
    """What an option takes besides nothing; empty for options of the parser's own, such as --config."""
    return _members(_hint(action)) if action is not None else []


def _members(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(hint) for member in _members(part)]
    return [] if hint in (None, type(None)) else [hint]


def _list(kinds: list[Any]) -> Any:
    """The type of the items, where a list or a tuple is possible; else None."""
    lists = [kind for kind in kinds if typing.get_origin(kind) in (list, tuple)]
    return typing.get_args(lists[0])[0] if lists else None


def _is_text(kind: Any) -> bool:
    texts = not {str, Path}.isdisjoint(_members(kind))  # numbers too, perhaps: `int | str`
    return texts or all(isinstance(choice, str) for choice in typing.get_args(kind) or [0])


def describe(kinds: list[Any]) -> str:
    """Types in plain words."""
    said = []
    for kind in kinds:
        origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
        if origin is typing.Literal:
            said.append(f"one of {', '.join(map(str, inner))}")
        elif origin in (list, tuple):
            many = PLURALS.get(inner[0]) or f"values, each {describe(_members(inner[0]))}"
            said.append(
                f"{len(inner)} {many}" if origin is tuple and ... not in inner else f"a list of {many}"
            )
        elif origin is dict and int in inner[:1]:
            said.append("a mapping with integers as keys")
        else:
            said.append(WORDS.get(origin, "a mapping of its keys"))
    return " or ".join(dict.fromkeys(said))


def _value(name: str, values: list[str], kinds: list[Any]) -> str | None:
    """The values of an option as the one word that the parser reads as them; None where it stands alone."""
    item = _list(kinds)
    for text in values:
        if text != text.encode(errors="replace").decode():  # bytes that the terminal sent
            raise UserError(f"{name}: {text!a} is no UTF-8; rename the file, or set the terminal to UTF-8")
    if not values:
        if kinds and kinds != [bool]:
            raise UserError(f"{name}: a value is missing: {describe(kinds)} (see --help)")
        return "true" if kinds else None
    if item is None:
        if len(values) > 1:
            raise UserError(f"{name}: takes one value, got {' '.join(values)} (see --help)")
        return values[0]
    if len(values) == 1 and (old := _spelled_as_list(values[0], item, str in kinds)):
        if typing.get_origin(item) not in (list, tuple, dict):
            _deprecated(f"{name} {values[0]}", "write the values as words, one after another")
        return old
    if len(values) == 1 and len(kinds) > 1 and not _is_text(item):
        return values[0]  # one, where one or a list is possible
    return json.dumps(values) if _is_text(item) else f"[{', '.join(values)}]"


def _spelled_as_list(word: str, item: Any, free: bool) -> str:
    """The word, if it is a list in itself: of JSON, or where no text can be meant (`free`), of YAML."""
    try:
        content = json.loads(word)
    except ValueError:
        return word if not free and word[:1] + word[-1:] == "[]" else ""
    if not isinstance(content, list):
        return ""
    wanted: Any = (list, dict)
    if _is_text(item):
        wanted = (str, int) if int in _members(item) else str
    elif item in (int, float):
        wanted = (int, float)
    return word if all(isinstance(element, wanted) for element in content) else ""


def _deprecated(spelling: str, instead: str) -> None:
    if spelling not in _warned:
        _warned.add(spelling)
        print(
            f"warning: {spelling}: {instead}; megavrc {DROPS_OLD_SPELLINGS} drops this spelling",
            file=sys.stderr,
        )


# --- values of files ---------------------------------------------------------------------------------------------


def keys_of(hint: Any) -> dict[str, Any]:
    """The keys of a dataclass, perhaps beside None, with their types; none for another type."""
    keys: dict[str, Any] = {}
    for kind in filter(dataclasses.is_dataclass, _members(hint)):
        hints = typing.get_type_hints(kind)
        keys |= {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return keys


def walk(hint: Any, value: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every value inside one, then itself: (dotted name, type, value). Unknown keys are left out."""
    for part in _inside(hint, value, name):
        yield from walk(part[1], part[2], part[0])
    yield name, hint, value


def _inside(hint: Any, value: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    prefix = f"{name}." if name else ""
    for kind in _members(hint):
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if isinstance(value, dict):
            known = dict.fromkeys(value, inner[1]) if origin is dict else keys_of(kind)
            yield from ((f"{prefix}{key}", known[key], item) for key, item in value.items() if key in known)
        elif isinstance(value, list) and origin in (list, tuple):
            yield from ((f"{prefix}{number}", inner[0], item) for number, item in enumerate(value))


def no_value(hint: Any, value: Any) -> str:
    """What is wrong with a line of a file that has no value, or no section below it; "" where nothing is."""
    if dataclasses.is_dataclass(hint) and not isinstance(value, dict):
        return f"expected `key: value` lines below it, got {value!r}"
    if value is None and hint is not Any and type(None) not in typing.get_args(hint):
        return "has no value; give one, or leave the line out"
    return ""


def wrong_values(hint: Any, value: Any, name: str = "") -> list[str]:
    """The innermost values of a file that their types do not take, one sentence each."""
    if inner := [
        said for part in _inside(hint, value, name) for said in wrong_values(part[1], part[2], part[0])
    ]:
        return inner
    if keys_of(hint) and isinstance(value, dict):  # what it lacks, an option may give
        return []
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        parser.parse_object({"value": value})
    except argparse.ArgumentError as error:
        lacks = re.search("arguments are required: (.*)", str(error))
        return [
            f"{name}: an item lacks {lacks[1]}"
            if lacks
            else f"{name}: expected {describe(_members(hint))}, got {value!r}"
        ]
    return []


# --- help ------------------------------------------------------------------------------------------------------


def help_text(prog: str, summary: str, options: Options, first: Iterable[str] = ()) -> str:
    """The text that `--help` prints: usage, summary, options in their order.

    Args:
        prog: the command.
        summary: what it does.
        options: of which each has a sentence, its kind and its default.
        first: names of those that everyone needs, where options come in sections (`train.steps`).
    """
    shown = {
        name: action
        for name, action in options.actions.items()
        if name.startswith("--")
        and name[-1] != "+"
        and not name.endswith(".help")  # the parser's own, of the keys of a list's items
        and (_kinds(action) or name in ("--config", "--print_config"))
    }
    sections: dict[str, list[str]] = {"options": [f"--{name}" for name in first if f"--{name}" in shown]}
    many = len(shown) > FIRST + 2
    for number, name in enumerate(shown):
        if name in sections["options"]:
            continue
        section = name[2:].rpartition(".")[0] if first else ""
        more = many and (first or number >= FIRST)
        sections.setdefault(section or ("more options" if more else "options"), []).append(name)
    places = "".join(f" [{place.upper()}]" for place in options.places)
    lines = [f"usage: {prog}{places} [options]{' [-- other options]' if options.open_end else ''}", ""]
    lines += textwrap.wrap(one_line(summary), WIDTH)
    for section, names in sections.items():
        lines += ["", f"{section}:"]
        for name in names:
            lines += _option_lines(name, shown[name])
    return "\n".join(lines)


def _option_lines(name: str, action: Any) -> list[str]:
    kinds = _kinds(action)
    item = _list(kinds)
    kind = kinds[0] if item is None and kinds else item
    value = METAVARS.get(kind, "VALUE") if kinds else "FILE" * (name == "--config")
    if typing.get_origin(kind) is typing.Literal:
        value = f"{{{','.join(map(str, typing.get_args(kind)))}}}"
    default = None if action.default == argparse.SUPPRESS else action.default
    if kind is bool and default:
        value = "{true,false}"
    head = f"  {name} {value}{' ..' if item is not None else ''}".rstrip()
    sentence = one_line(action.help or "").replace("%%", "%").rstrip(".")
    if re.match(r"[A-Za-z-]+,?( |$)", sentence):  # and not a value that is to be typed, such as `int8`
        sentence = sentence[:1].upper() + sentence[1:]
    if action.required:
        sentence += " (required)"
    elif default is not False and default not in (None, "", [], {}, ()) and "(default" not in sentence:
        sentence += f" (default: {_typed(default)})"
    lines = textwrap.wrap(f"{sentence}." if sentence else "", WIDTH - COLUMN) or [""]
    if len(head) > COLUMN - 2:
        return [head, *(f"{'':{COLUMN}}{line}" for line in lines)]
    return [f"{head:{COLUMN}}{lines[0]}".rstrip(), *(f"{'':{COLUMN}}{line}" for line in lines[1:])]


def _typed(value: Any) -> str:
    """A value as one types it."""
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
