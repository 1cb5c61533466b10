"""Configuration and command lines: YAML plus dotted overrides into dataclasses, functions into commands.

This file knows no component of megavrc. An unknown key is an error wherever it stands, and a user's mistake ends
in one line and exit code 2 (`UserError`), never in a traceback.
"""

import contextlib
import copy
import dataclasses
import difflib
import functools
import importlib
import inspect
import itertools
import json
import os
import re
import sys
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from megavrc.command_line import Options, help_text, keys_of, no_value, one_line, walk, wrong_values
from megavrc.errors import EXIT_INTERRUPTED, EXIT_USER, UserError
from megavrc.files import NOT_JSON, read_text, write_atomic

T = TypeVar("T")

CONFIGS = Path(__file__).parent / "configs"  # shipped


# --- commands --------------------------------------------------------------------------------------------------

FULL = ("can't allocate memory", "out of memory")  # what torch says, on CPUs and GPUs
Function = Callable[..., Any]
Main = Function | str | Mapping[str, Any]  # a string is "module:function", imported when it is wanted


def command(main: Main, prog: str | None = None) -> typing.NoReturn:
    """Run a function (or, for a mapping, one of several subcommands) as a command line program and exit.

    Options come from the signature, in its order, their help from the Google-style docstring. Values of the first
    parameters, as far as they are paths, may stand first without their names. A function with `*words` is handed there
    the options that it does not know, and all that stands after `--`. The exit code is the integer that the function
    returns (0 for None), 2 for a `UserError`, a wrong option, or a file that cannot be read or written.
    """
    code = 1
    with closed_pipe_is_no_error():
        code = run_command(main, sys.argv[1:], prog)
    sys.exit(code)


@contextlib.contextmanager
def closed_pipe_is_no_error() -> Iterator[None]:
    """End printing quietly once the reader of the pipe has read enough, as in `command | head`."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Print warnings as one line, without their place in the source."""

    def show(message: Any, *place: Any, **more: Any) -> None:
        print(f"warning: {one_line(str(message))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@plain_warnings()
def run_command(main: Main, argv: list[str], prog: str | None = None) -> int:
    """`command` without the exit: parse `argv`, call, return the exit code."""
    try:
        return _run(main, argv, prog or Path(sys.argv[0]).name)
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.filename is None:  # a connection, a pipe: nothing that the user named
            raise
        message = f"{error.filename}: {error.strerror or error}"
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in FULL):
            raise
        message = f"the memory does not suffice for this: {str(error).splitlines()[0] if str(error) else ''}"
    print(f"error: {one_line(message)}", file=sys.stderr)
    return EXIT_USER


def wrong_seed(seed: int) -> str:
    """What is wrong with a seed; "" where all generators of random numbers take it, those of numpy and torch too."""
    return "" if 0 <= seed < 2**64 else f"seed: {seed!r:.60} is not between 0 and 2**64 - 1"


def _run(main: Main, argv: list[str], prog: str) -> int:
    main = load(main)
    if isinstance(main, Mapping):
        if argv[:1] in (["-h"], ["--help"]):
            print(f"usage: {prog} SUBCOMMAND [options]\n")
            for name, target in main.items():
                print(f"  {name:22}{one_line(_summary(load(target)))}")
            return 0
        name = find_name(argv[0] if argv else "", main, "subcommand")
        main, argv, prog = main[name], argv[1:], f"{prog} {name}"
    function = typing.cast(Function, load(main))
    options = options_of(function, prog)
    if wants_help(argv):
        print(help_text(prog, _summary(function), options))
        return 0
    parsed, words = options.parse(argv)
    values = vars(parsed)
    seed = values.get("seed")
    if isinstance(seed, int) and (wrong := wrong_seed(seed)):  # here, as some would fail after hours of work
        raise UserError(f"--{wrong}")
    # the parser hides a zero-width space in names that its namespace has methods of, such as `keys`
    return int(
        function(*words, **{name.removeprefix("\u200b"): value for name, value in values.items()}) or 0
    )


def options_of(function: Function, prog: str) -> Options:
    """The options of a command, from its function's signature."""
    parameters = inspect.signature(function).parameters.values()
    places = itertools.takewhile(
        lambda item: Path in (item.annotation, *typing.get_args(item.annotation)), parameters
    )
    open_end = any(item.kind is item.VAR_POSITIONAL for item in parameters)
    parser = _parser(prog)
    parser.add_function_arguments(function, as_group=False)
    return Options(parser, [item.name for item in places], open_end)


def load(main: Main) -> Function | Mapping[str, Any]:
    """The object that "module:name" names."""
    if isinstance(main, str):
        module, _, name = main.partition(":")
        return typing.cast(Function, getattr(importlib.import_module(module), name))
    return main


def find_name(word: str, names: Iterable[str], what: str) -> str:
    """The one of `names` that a word spells, with `-` or `_`; UserError with the nearest."""
    spelled = {name.replace("_", "-"): name for name in names}
    if (plain := word.replace("_", "-")) in spelled:
        return spelled[plain]
    near = difflib.get_close_matches(plain, spelled, n=1)
    said = f"did you mean {spelled[near[0]]}?" if near else f"one of {', '.join(names)}"
    raise UserError(f"unknown {what} {word} ({said})" if word else f"which {what}? {said}")


def wants_help(argv: list[str]) -> bool:
    """Whether the words ask for help: not those of another command line, after `--`."""
    return not {"-h", "--help"}.isdisjoint(itertools.takewhile(lambda word: word != "--", argv))


def _parser(prog: str | None) -> Any:
    import jsonargparse

    return jsonargparse.ArgumentParser(prog=prog, exit_on_error=False, allow_abbrev=False)


def _summary(of: Any) -> str:
    return (of.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")


# --- configuration files ---------------------------------------------------------------------------------------


def load_config(cls: type[T], argv: list[str] | None = None, first: Sequence[str] = (), prog: str = "") -> T:
    """Build the dataclass `cls` from `--config FILE.yaml` and `--dotted.key value` overrides.

    Args:
        cls: a dataclass, possibly nested; its `__post_init__` may raise ValueError with all its problems joined.
        argv: the command line without the program's name (default: that of this process).
        first: keys that everyone needs: `--help`, which prints all and exits, has them first, where the class has them.
        prog: name of the command, for its help.

    Raises:
        UserError: a missing file, unknown keys (all of them, each with the nearest known one), a missing value or
            one of the wrong type, or what `__post_init__` found.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(prog or None)
    parser.add_argument(
        "--config", action="config", help="YAML file, or the name of a shipped one; options override it"
    )
    parser.add_class_arguments(cls, as_group=False)
    options = Options(parser)
    options.actions["--print_config"].help = "print what files and options come to, as YAML, and exit"
    if wants_help(argv):
        summary = f"{_summary(cls)} Every key can stand in the YAML file too."
        with closed_pipe_is_no_error():
            print(help_text(parser.prog, summary, options, first), flush=True)
        sys.exit(0)
    argv, files = _find_files(cls, argv)
    contents = {path: _check_keys(cls, path) for path in files}
    try:
        parsed, _ = options.parse(_without_retired(cls, argv))
    except UserError:
        # The parser names no file, and of a value in a list or a mapping no place.
        for path, content in contents.items():
            if wrong := wrong_values(cls, content):
                raise UserError(f"{path}: {'; '.join(wrong)}") from None
        raise
    parsed.pop("config", None)
    try:
        return cls(**vars(parser.instantiate(parsed)))
    except ValueError as error:
        raise UserError(f"{', '.join(map(str, files)) or 'options'}: {error}") from None


def _find_files(cls: type, argv: list[str]) -> tuple[list[str], list[Path]]:
    """The command line with paths where it has names of configurations, and these paths.

    A file that is another name for a shipped one, or for options of it (`aliases` of the class), is replaced by them.
    """
    for word, after in zip(argv, [*argv[1:], ""], strict=True):
        if word == "--config=" or (word == "--config" and (not after or after.startswith("--"))):
            raise UserError("--config: a value is missing: a file, or the name of a shipped one (see --help)")
    aliases: dict[str, list[str]] = getattr(cls, "aliases", {})
    words: list[str] = []
    files: list[Path] = []
    for word, previous in zip(argv, ["", *argv], strict=False):
        if not word.startswith("--config=") and previous != "--config":
            words.append(word)
            continue
        name = word.removeprefix("--config=")
        file, options = name, []
        if not Path(name).is_file() and (now := aliases.get(f"{Path(name).name.removesuffix('.yaml')}.yaml")):
            file, options = str(Path(name).with_name(now[0])), now[1:]
        files.append(find_config(file))
        words += [f"{word.removesuffix(name)}{files[-1]}", *options]
        if file != name:
            print(f"{name}: read as {' '.join([file, *options])}", file=sys.stderr)
    return words, files


def find_config(name: str) -> Path:
    """The file at a path; where there is none, the shipped one of this name, or whose name alone begins so."""
    if Path(name).is_file():
        return Path(name)
    shipped = {
        path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in sorted(CONFIGS.rglob("*.yaml"))
    }
    wanted = name.rpartition("pretrain/configs/")[2].removesuffix(".yaml")
    found = [full for full in shipped if wanted in (full, full.rpartition("/")[2])]
    found = found or [full for full in shipped if full.startswith(wanted)]
    if not found:
        near = difflib.get_close_matches(wanted, shipped, n=1)
        hint = f" (did you mean {near[0]}, which is shipped?)" if near else ""
        raise UserError(f"{name}: no such configuration file{hint}")
    if len(found) > 1:
        raise UserError(
            f"{name}: no such configuration file, and of several shipped ones: {', '.join(found)}"
        )
    if name.removesuffix(".yaml") not in (found[0], found[0].rpartition("/")[2]):
        print(f"{name}: taken from the package, configuration {found[0]}", file=sys.stderr)
    return shipped[found[0]]


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises OSError; UserError for one that is damaged or holds no keys."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Of a key that stands twice, YAML's own takes the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [str(key.value) for key, _ in node.value]
            for number, (key, _) in enumerate(node.value):
                if names[number] in names[:number]:
                    said = f"{key.value} stands twice"
                    raise yaml.MarkedYAMLError(problem=said, problem_mark=key.start_mark)
            return super().construct_mapping(node, deep)

    def construct_number(loader: Any, node: Any) -> Any:
        """YAML's own takes 0100 as octal and 12:30 in base 60, which nobody means."""
        kind = node.tag.rpartition(":")[2]
        value = getattr(loader, f"construct_yaml_{kind}")(node)
        if ":" in node.value or (kind == "int" and re.match(r"[-+]?0[0-9_]", node.value)):
            said = f"{node.value} would be read as {value}; write no leading zero and no colon, or quote it as text"
            raise yaml.MarkedYAMLError(problem=said, problem_mark=node.start_mark)
        return value

    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", construct_number)
    text = read_text(path)
    try:
        content = yaml.load(text, Loader)
    except (yaml.YAMLError, *NOT_JSON) as error:
        raise UserError(f"{path}: not valid YAML: {one_line(str(error))}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected `key: value` lines, got {type(content).__name__}")
    return content


def _check_keys(cls: type, path: Path) -> dict[str, Any]:
    """The content of a file, whose keys are all known and have values; the types of these are left to the parser."""
    content = read_yaml(path)
    if replaced := drop_retired(cls, content):
        raise UserError(f"{path}: {'; '.join(replaced)}")
    inside = list(walk(cls, content))
    if wrong := [f"{name}: {said}" for name, hint, value in inside if (said := no_value(hint, value))]:
        raise UserError(f"{path}: {'; '.join(wrong)}")
    if unknown := [said for place in inside for said in _unknown_keys(*place)]:
        raise UserError(f"{path}: unknown key{'s' * (len(unknown) > 1)} {', '.join(unknown)}")
    return content


def _unknown_keys(name: str, hint: Any, value: Any) -> Iterator[str]:
    known = keys_of(hint)
    prefix = f"{name}." if name else ""
    for key in value if known and isinstance(value, dict) else ():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            yield f"{prefix}{key}" + (f" (did you mean {prefix}{near[0]}?)" if near else "")


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
        name = name.replace("-", "_")
        if name != "config" and name not in retired:
            words.append(word)
            continue
        value = value if equals else next(rest, "")
        if name == "config":
            before = yaml.safe_load(read_text(value))
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
