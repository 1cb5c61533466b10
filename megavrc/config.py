"""Configuration and command lines: YAML plus dotted overrides into dataclasses, functions into commands.

This file knows no component of megavrc. An unknown key is an error wherever it stands, and a user's mistake ends
in one line and exit code 2 (`UserError`), never in a traceback.
"""

import copy
import dataclasses
import difflib
import functools
import inspect
import itertools
import json
import os
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from megavrc.errors import EXIT_USER, UserError
from megavrc.files import write_atomic

T = TypeVar("T")


# --- commands --------------------------------------------------------------------------------------------------


def command(
    main: Callable[..., Any] | dict[str, Callable[..., Any]], prog: str | None = None
) -> typing.NoReturn:
    """Run a function (or, for a dictionary, one of several subcommands) as a command line program and exit.

    Options come from the signature, their help from the Google-style docstring. The exit code is the integer that
    the function returns (0 for None), 2 for a `UserError`, a wrong option, or a file that cannot be read or written.
    """
    try:
        code = run_command(main, sys.argv[1:], prog)
    except BrokenPipeError:  # `command | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def run_command(
    main: Callable[..., Any] | dict[str, Callable[..., Any]], argv: list[str], prog: str | None = None
) -> int:
    """`command` without the exit: parse `argv`, call, return the exit code."""
    try:
        function, arguments = _parse(main, argv, prog)
        return int(function(**arguments) or 0)
    except UserError as error:
        message = str(error)
    except OSError as error:
        if error.filename is None:  # a connection, a pipe: nothing that the user named
            raise
        message = f"{error.filename}: {error.strerror or error}"
    print(f"error: {_one_line(message)}", file=sys.stderr)
    return EXIT_USER


def _parse(
    main: Callable[..., Any] | dict[str, Callable[..., Any]], argv: list[str], prog: str | None
) -> tuple[Callable[..., Any], dict[str, Any]]:
    parser = _parser(prog)
    functions = list(main.values()) if isinstance(main, dict) else [main]
    argv = _bare_flags(functions, _underscores(argv))
    if isinstance(main, dict):
        subcommands = parser.add_subcommands(dest="subcommand")
        for name, function in main.items():
            child = _parser(None)
            child.description = _summary(function)
            child.add_function_arguments(function, as_group=False)
            subcommands.add_subcommand(name, child, help=_summary(function))
    else:
        parser.description = _summary(main)
        parser.add_function_arguments(main, as_group=False)
    parsed = parser.instantiate(_parse_args(parser, argv))
    if isinstance(main, dict):
        chosen = parsed.subcommand
        return main[chosen], _arguments(parsed[chosen])
    return main, _arguments(parsed)


def _arguments(parsed: Any) -> dict[str, Any]:
    """By name; the parser hides a zero-width space in names that its namespace has methods of, such as `keys`."""
    return {name.removeprefix("\u200b"): value for name, value in vars(parsed).items()}


def _underscores(argv: list[str]) -> list[str]:
    """Let `--top-k` mean `--top_k`."""

    def plain(word: str) -> str:
        name, equals, value = word.partition("=")
        return name[:2] + name[2:].replace("-", "_") + equals + value

    return [plain(word) if word.startswith("--") else word for word in argv]


def _bare_flags(functions: list[Callable[..., Any]], argv: list[str]) -> list[str]:
    """Let `--flag` alone mean `--flag=true`: the parser wants a value of every option."""
    parameters = [item for function in functions for item in inspect.signature(function).parameters.values()]
    flags = {f"--{item.name}" for item in parameters if item.annotation is bool}
    following = [*argv, "--"][1:]
    return [
        f"{word}=true" if word in flags and after.startswith("--") else word
        for word, after in zip(argv, following, strict=True)
    ]


def trailing_words(argv: list[str], option: str) -> list[str]:
    """Let the words after `--` be the value, a list, of an option: a command line within a command line."""
    if "--" not in argv:
        return argv
    at = argv.index("--")
    return [*argv[:at], f"{option}={json.dumps(argv[at + 1 :])}"]


def leading_words(argv: list[str], *options: str) -> list[str]:
    """Let the words before the first option be the values of these options, in their order."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), argv[1:]))
    named = [f"{option}={word}" for option, word in zip(options, words, strict=False)]
    return [argv[0], *named, *argv[1 + len(named) :]]


def _parser(prog: str | None) -> Any:
    import jsonargparse

    return jsonargparse.ArgumentParser(prog=prog, exit_on_error=False, allow_abbrev=False)


def _parse_args(parser: Any, argv: list[str]) -> Any:
    import argparse

    try:
        return parser.parse_args(argv)
    except argparse.ArgumentError as error:
        raise UserError(f"{_one_line(str(error))} (see --help)") from None


def _summary(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")


def _one_line(text: str) -> str:
    return " ".join(text.split())


# --- configuration files ---------------------------------------------------------------------------------------


def load_config(cls: type[T], argv: list[str] | None = None) -> T:
    """Build the dataclass `cls` from `--config FILE.yaml` and `--dotted.key value` overrides.

    Args:
        cls: a dataclass, possibly nested; its `__post_init__` may raise ValueError with all its problems joined.
        argv: the command line without the program's name (default: that of this process).

    Raises:
        UserError: a missing file, unknown keys (all of them, each with the nearest known one), a value of the wrong
            type, or what `__post_init__` found.
    """
    argv = _current_files(cls, _underscores(sys.argv[1:] if argv is None else argv))
    parser = _parser(None)
    parser.description = f"Every key of {cls.__name__} can stand in the YAML file or be given as an option."
    parser.add_argument("--config", action="config", help="YAML file; options after it override its values")
    parser.add_class_arguments(cls, as_group=False)
    for path in _config_files(argv):
        _check_keys(cls, path)
    parsed = _parse_args(parser, _without_retired(cls, argv))
    parsed.pop("config", None)
    try:
        built = parser.instantiate(parsed)
        return cls(**vars(built))
    except ValueError as error:
        where = ", ".join(str(path) for path in _config_files(argv)) or "options"
        raise UserError(f"{where}: {error}") from None


def _current_files(cls: type, argv: list[str]) -> list[str]:
    """Let `--config` name a shipped file that has become options of another one: `retired_files` of the class."""
    retired: dict[str, list[str]] = getattr(cls, "retired_files", {})
    words: list[str] = []
    for word, previous in zip(argv, ["", *argv], strict=False):
        prefix = "--config=" if word.startswith("--config=") else ""
        path = Path(word.removeprefix(prefix))
        if not (prefix or previous == "--config") or path.is_file() or path.name not in retired:
            words.append(word)
            continue
        file, *options = retired[path.name]
        words += [f"{prefix}{path.with_name(file)}", *options]
        print(f"{path}: read as {path.with_name(file)} {' '.join(options)}", file=sys.stderr)
    return words


def _config_files(argv: list[str]) -> list[Path]:
    pairs = zip(argv, [*argv, ""][1:], strict=True)
    named = [
        value if word == "--config" else word.partition("=")[2] for word, value in pairs if _is_config(word)
    ]
    return [Path(name) for name in named]


def _is_config(word: str) -> bool:
    return word == "--config" or word.startswith("--config=")


def _check_keys(cls: type, path: Path) -> None:
    import yaml

    if not path.is_file():
        raise UserError(f"{path}: no such configuration file")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {_one_line(str(error))}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected `key: value` lines, got {type(content).__name__}")
    if replaced := drop_retired(cls, content):
        raise UserError(f"{path}: {'; '.join(replaced)}")
    unknown = list(_unknown_keys(cls, content, ""))
    if unknown:
        raise UserError(f"{path}: unknown key{'s' * (len(unknown) > 1)} {', '.join(unknown)}")


def _unknown_keys(cls: type, content: dict[str, Any], prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}
    for key, value in content.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            yield f"{prefix}{key}" + (f" (did you mean {prefix}{near[0]}?)" if near else "")
            continue
        nested = [
            hint for hint in (hints[key], *typing.get_args(hints[key])) if dataclasses.is_dataclass(hint)
        ]
        if not nested or not isinstance(value, dict):
            continue
        by_name = typing.get_origin(hints[key]) is dict  # of dataclasses, under names of the user's choice
        for name, inner in value.items() if by_name else [("", value)]:
            if isinstance(inner, dict):
                where = f"{prefix}{key}.{name}." if by_name else f"{prefix}{key}."
                yield from _unknown_keys(typing.cast(type, nested[0]), inner, where)


# --- what configurations once held -----------------------------------------------------------------------------


def retired_fields(cls: type, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Fields that a dataclass, or one inside it, had once: (dotted name, value that says nothing, what replaced it).

    They stand in the table `retired` of a class: {dotted name: (value, what replaced it)}.
    """
    for name, (nothing, instead) in getattr(cls, "retired", {}).items():
        yield prefix + name, nothing, instead
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from retired_fields(hints[field.name], f"{prefix}{field.name}.")


def drop_retired(cls: type, content: dict[str, Any]) -> list[str]:
    """Remove retired fields that say nothing from what an older version wrote.

    Returns:
        What replaced each of those that do say something; they stay.
    """
    replaced = []
    for name, nothing, instead in retired_fields(cls):
        *path, key = name.split(".")
        inner: Any = content
        for part in path:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or key not in inner:
            continue
        if inner[key] == nothing:
            del inner[key]
        else:
            replaced.append(f"{name}: {inner[key]!r} is no longer possible: {instead}")
    return replaced


def _without_retired(cls: type, argv: list[str]) -> list[str]:
    """A command line without retired options; a file that holds such fields becomes its content without them."""
    import yaml

    retired = {name for name, *_ in retired_fields(cls)}
    words: list[str] = []
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.removeprefix("--").partition("=")
        if name != "config" and name not in retired:
            words.append(word)
            continue
        value = value if equals else next(rest, "")
        if name == "config":
            before = yaml.safe_load(Path(value).read_text())
            drop_retired(cls, content := copy.deepcopy(before))
            words.append(f"--config={value if content == before else json.dumps(content)}")
        else:
            nested = functools.reduce(
                lambda inner, part: {part: inner}, name.split(".")[::-1], yaml.safe_load(value)
            )
            if replaced := drop_retired(cls, nested):
                raise UserError(f"--{replaced[0]}")
    return words


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON types (tuples become lists, paths become strings)."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def dump_yaml(config: Any, path: str | Path) -> None:
    """Write the resolved configuration, readable again by `load_config`."""
    import yaml

    write_atomic(path, yaml.safe_dump(to_dict(config), sort_keys=False).encode())
