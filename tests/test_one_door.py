"""One way to generate: nothing but the pipeline calls the decoder. And one place that asks what a condition is."""

import ast
import re
from collections.abc import Iterator

import pytest
from test_architecture import name, sources

MODEL = "megavrc/model/"
PASSES = {
    "cache",
    "cuda_graphs",
    "decode_kernels",
    "decoder",
    "fused_step",
    "generate",
    "speculation",
}  # files
FOR_ALL = {"store_for_generation"}  # in these files
MAKERS = {"Decoder", "Sampler", "Workspace"}
CALLS = {"device_step", "push_raw", "push_segment", "raw_logits", "speculative_frame"}
SUSPECT = re.compile("|".join([r"megavrc\.model", *MAKERS, *CALLS]))  # what a breach has in its text
CALLERS = {f"{MODEL}{file}.py" for file in ("decoder", "generate", "pipeline", "speculation")}


def imported(node: ast.AST) -> Iterator[str]:
    """Dotted names that a statement imports from megavrc."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def breaches(path: str, text: str) -> list[str]:
    """What a file imports and calls that belongs to the pipeline."""
    found = []
    tree = ast.parse(text if SUSPECT.search(text) else "")
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if not path.startswith(MODEL):
            for dotted in imported(node):
                parts = dotted.split(".")
                if parts[:2] == ["megavrc", "model"] and parts[2:] and parts[2] in PASSES:
                    found += [dotted] if parts[-1] not in FOR_ALL else []
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            made = called in MAKERS - own and path != f"{MODEL}pipeline.py"
            if made or (called in CALLS and path not in CALLERS):
                found.append(f"{called}()")
    return found


def test_only_the_pipeline_calls_the_decoder() -> None:
    found = {
        name(path): breaches(name(path), path.read_text())
        for path in sources("megavrc", "pretrain", "tools", "examples", "benchmarks")
    }
    assert {path: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize(
    ("path", "line", "breach"),
    [
        ("megavrc/web/page.py", "from megavrc.model.decoder import Decoder", "megavrc.model.decoder.Decoder"),
        ("megavrc/web/page.py", "import megavrc.model.generate as g", "megavrc.model.generate"),
        ("tools/x.py", "from megavrc.model import cuda_graphs", "megavrc.model.cuda_graphs"),
        ("tools/x.py", "model.decoder.Decoder(vrc)", "Decoder()"),
        ("megavrc/benchmarks/cost.py", "sampler.decoder.push_raw(ids)", "push_raw()"),
        ("megavrc/model/modeling_vrc.py", "Sampler(decoder, settings, space)", "Sampler()"),
        ("megavrc/model/vrc.py", "decoder.raw_logits()", "raw_logits()"),
    ],
)
def test_a_second_way_to_generate_is_noticed(path: str, line: str, breach: str) -> None:
    assert breaches(path, line) == [breach]
    assert breaches(f"{MODEL}pipeline.py", line) == []


def kinds_asked(text: str) -> list[str]:
    """Comparisons of a condition's kind or text with one of their values."""
    values = {"class", "text", "learned", "features"}
    spelled = re.search(f"[\"']({'|'.join(values)})[\"']", text)
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(text if spelled else ""))
        if isinstance(node, ast.Compare)
        and getattr(node.left, "attr", getattr(node.left, "id", "")) in ("kind", "text")
        and any(isinstance(other, ast.Constant) and other.value in values for other in node.comparators)
    ]


def test_what_a_condition_is_is_asked_in_its_configuration() -> None:
    assert kinds_asked('a if config.condition.kind != "class" else b') == ["config.condition.kind != 'class'"]
    asking = {name(path) for path in sources("megavrc", "tools", "pretrain") if kinds_asked(path.read_text())}
    assert asking == {f"{MODEL}config.py"}
