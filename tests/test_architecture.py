"""The house rules that a machine can watch: sizes, light imports, layers, no traces of the machine it was made on."""

import ast
import functools
import graphlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("megavrc", "pretrain", "tools", "examples", "benchmarks", "tests")
MAX_FILE = 400  # lines
MAX_FUNCTION = 60  # lines without the docstring, which for a command is its --help

SHARED_NAMES = {  # public names that several modules define, each with its reason; the rest mean one thing
    "attention",  # of every backend, chosen by its module; and the command that measures them
    "clip_maker",  # of a command and of the page
    "main",  # of modules that are run
    "from_hf", "generate", "render", "serve", "status", "to_hf", "train", "verify",  # a command has its own name
    "describe",  # of a checkpoint, as `checkpoint.describe`; of a command's options
    "problems",  # of a plan of memory; of a proof of a dataset: what speaks against each
    "ratios",  # of three benchmarks, each of its own cases
}  # fmt: skip

# What a released file must not name.
TRACES = re.compile(r"(?<![\w.])/(?:tmp/w|work)/|file:///|\.pyenv/")


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def statements(path: Path) -> list[ast.AST]:
    """All of a file, those inside others too."""

    def inside(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
                yield child
                yield from inside(child)

    return list(inside(ast.parse(path.read_text())))


def loaded_modules(code: str) -> set[str]:
    """The top-level modules in a fresh interpreter after `code`."""
    script = f"{code}\nimport sys; print(' '.join({{m.partition('.')[0] for m in sys.modules}}))"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_files_are_short() -> None:
    lengths = {name(path): len(path.read_text().splitlines()) for path in sources(*FOLDERS)}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_FILE} == {}


def span(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_functions_are_short() -> None:
    long = {}
    for path in sources(*FOLDERS):
        for node in statements(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = span(node) - (span(node.body[0]) if ast.get_docstring(node) else 0)
                if lines > MAX_FUNCTION:
                    long[f"{name(path)}::{node.name}"] = lines
    assert not long, f"over {MAX_FUNCTION} lines: {long}"


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports them by their base name."""
    names = [path.name for path in sources("tests") if path.name != "conftest.py"]
    assert sorted({base for base in names if names.count(base) > 1}) == []


def public_names() -> dict[str, list[str]]:
    """Top-level public classes and functions of the package: name -> the modules that define it."""
    found: dict[str, list[str]] = {}
    for path in sources("megavrc"):
        for node in statements(path):
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef)
                and node.col_offset == 0
                and not node.name.startswith("_")
            ):
                found.setdefault(node.name, []).append(name(path).removeprefix("megavrc/"))
    return found


def test_public_names_mean_one_thing() -> None:
    several = {word: modules for word, modules in public_names().items() if len(modules) > 1}
    assert {word: modules for word, modules in several.items() if word not in SHARED_NAMES} == {}


def test_importing_the_package_imports_nothing_heavy() -> None:
    before = loaded_modules("")
    added = loaded_modules("import megavrc") - before
    assert added == {"megavrc"}
    assert "torch" not in loaded_modules("from megavrc.tokenizers import TextTokenizer")


def test_generation_needs_neither_deepspeed_nor_transformers() -> None:
    loaded = loaded_modules(
        "import megavrc.generation.folder, megavrc.model, megavrc.tokenizers, megavrc.video"
    )
    assert not loaded & {"deepspeed", "transformers", "webdataset", "matplotlib", "tensorboard"}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other, whoever imports the first; empty where there are none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_modules_import_in_no_circle() -> None:
    """Imports for types and lazy ones count: what depends on what has a beginning."""
    paths = {
        name(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
        for path in sources("megavrc")
    }
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        graph[module] = set()
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in statements(path):
            if isinstance(node, ast.Import):
                graph[module] |= {alias.name for alias in node.names} & set(paths)
            elif isinstance(node, ast.ImportFrom):
                base = ".".join(filter(None, [package if node.level else "", node.module]))
                inner = {f"{base}.{alias.name}" for alias in node.names}
                graph[module] |= inner & set(paths) or {base} & set(paths)
    assert len(graph) > 200 and circle(graph) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def test_no_module_takes_private_names_of_another() -> None:
    taken = [
        f"{name(path)}: {alias.name} of {node.module}"
        for path in sources("megavrc")
        for node in statements(path)
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("megavrc"))
        for alias in node.names
        if re.match(r"_(?!_)", alias.name)
    ]
    assert taken == []


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(module, level) of every import statement, lazy ones too; level > 0 is relative."""
    for node in statements(path):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level


WRAPPERS = {"configuration_vrc.py", "modeling_vrc.py"}
OPTIONAL = {"triton", "flash_attn", "flash_attn_interface"}  # inside `try`


@pytest.mark.parametrize("path", list(sources("megavrc/model")), ids=name)
def test_model_files_are_self_contained(path: Path) -> None:
    """The converted folder carries these files as they are: torch, the standard library and each other only."""
    allowed = {"torch", *sys.stdlib_module_names, *OPTIONAL} | (
        {"transformers"} if path.name in WRAPPERS else set()
    )
    for module, level in imports(path):
        if level:
            assert level == 1 and "." not in module, f"`from {'.' * level}{module}`: only `from .x import y`"
        else:
            assert module.partition(".")[0] in allowed, f"imports {module}"


@pytest.mark.parametrize("path", list(sources("megavrc/reduction")), ids=name)
def test_reduction_is_functions_on_tensors(path: Path) -> None:
    """Torch, the standard library and each other only."""
    for module, level in imports(path):
        root = module.partition(".")[0]
        assert level == 1 or root in {"torch", *sys.stdlib_module_names}, f"imports {module}"


def test_tensorboard_stays_in_the_reporter() -> None:
    """torch.utils.tensorboard too, which the import contract cannot tell from torch."""
    users = {
        name(path) for path in sources("megavrc") for module, _ in imports(path) if "tensorboard" in module
    }
    assert users <= {"megavrc/training/reporter.py"}


def test_tracked_files_name_no_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    found = {}
    for path in (ROOT / line for line in listed.stdout.splitlines()):
        if path == Path(__file__).resolve() or not path.is_file():
            continue
        try:
            traces = TRACES.findall(path.read_text())
        except UnicodeDecodeError:  # pictures
            continue
        if traces:
            found[name(path)] = sorted(set(traces))
    assert found == {}


PLANTED = {  # file -> line that breaks the contract, and how lint-imports reports it
    "video/__init__.py": ("import megavrc.data", "megavrc.video -> megavrc.data"),
    "data/__init__.py": ("def f():\n    import megavrc.training", "megavrc.data -> megavrc.training"),
    "config.py": ("import megavrc.model", "megavrc.config -> megavrc.model"),
    "errors.py": ("import megavrc.config", "megavrc.errors -> megavrc.config"),
    "files.py": ("import megavrc.progress", "megavrc.files -> megavrc.progress"),
    "hardware.py": ("import megavrc.results", "megavrc.hardware -> megavrc.results"),
    "user_files.py": ("import megavrc.results", "megavrc.user_files -> megavrc.results"),
    "report/page.py": ("import megavrc.model", "megavrc.report.page -> megavrc.model"),
    "demo/report.py": ("import matplotlib", "megavrc.demo.report -> matplotlib"),
    "measure.py": ("import megavrc.video", "megavrc.measure -> megavrc.video"),
    "evaluation/__init__.py": ("import megavrc.data", "megavrc.evaluation -> megavrc.data"),
    "generation/__init__.py": ("import megavrc.training", "megavrc.generation -> megavrc.training"),
    "launch/__init__.py": ("import megavrc.hf", "megavrc.launch -> megavrc.hf"),
    "web/__init__.py": ("import megavrc.demo", "megavrc.web -> megavrc.demo"),
    "tokenizers/__init__.py": ("import deepspeed", "megavrc.tokenizers -> deepspeed"),
    "model/__init__.py": ("from transformers import AutoModel", "megavrc.model -> transformers"),
    "training/loop.py": (
        "from megavrc.model.modeling_vrc import x",
        "training.loop -> megavrc.model.modeling_vrc",
    ),
    "hf/__init__.py": ("import tools.generate", "megavrc.hf -> tools"),
    "checkpoint/__init__.py": ("import av", "megavrc.checkpoint -> av"),
    "distributed/__init__.py": ("import vizdoom", "megavrc.distributed -> vizdoom"),
}


def test_import_contract_notices(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "megavrc", tmp_path / "megavrc", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, (line, _) in PLANTED.items():
        with open(tmp_path / "megavrc" / file, "a") as planted:
            planted.write(f"\n{line}\n")
    lint = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    run = subprocess.run(lint, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1, run.stdout + run.stderr
    unnoticed = [report for _, report in PLANTED.values() if report not in run.stdout]
    assert unnoticed == [], run.stdout
