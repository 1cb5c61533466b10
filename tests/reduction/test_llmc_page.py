"""docs/llmc.md: its programs run."""

from collections.abc import Iterator

import pytest
import torch
from programs import DOCS, programs_of

from megavrc.reduction import METHODS, Tokens, reduce_tokens

PROGRAMS = programs_of(DOCS / "llmc.md")


@pytest.fixture
def methods_afterwards() -> Iterator[None]:
    """The registry is left as it was."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


def test_the_first_program_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(PROGRAMS[0], {})
    assert capsys.readouterr().out.startswith("torch.Size([784, 64])")


def test_a_method_is_added_in_fifteen_lines(methods_afterwards: None) -> None:
    """The page's method runs through the same door, frame by frame, merges all, and meets its budget."""
    program = next(program for program in PROGRAMS if "@register" in program)
    assert len(program.split("@register")[1].splitlines()) <= 15
    exec(program, {"__name__": "added"})
    x = torch.tensor([[1.0, 0], [3, 0], [0, 2], [0, 0.5]]).repeat(2, 1)
    left = reduce_tokens(Tokens(x, (2, 2, 2)), "norm", 4)
    assert left.index.tolist() == [1, 2, 5, 6]
    torch.testing.assert_close(left.features, torch.tensor([[2.0, 0], [0, 1.25]]).repeat(2, 1))
    assert METHODS["norm"].causal and "power 2.0" in METHODS["norm"].describe()
