"""Start-up: torch's compiler is imported when something is compiled, and not by the way.

Its import takes 1.0 s of every process that loads a model, that of DeepSpeed's unused optimizer 1.8 s of every rank
(CPU seconds, torch 2.13, DeepSpeed 0.19). A test loads a folder, another starts an engine, and looks.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar
from unittest.mock import patch

import torch
from torch import nn

F = TypeVar("F", bound=Callable[..., object])

DRAWN_ON = "cpu"  # on the meta device, where weights are loaded, drawing random numbers imports the compiler


def embedding(rows: int, width: int) -> nn.Embedding:
    """nn.Embedding, but on the meta device without its random draw."""
    weight = torch.empty(rows, width)
    if not weight.is_meta:
        nn.init.normal_(weight)
    return nn.Embedding.from_pretrained(weight, freeze=False)


def never_traced(function: F) -> F:
    """A function whose result is a constant of what is compiled: `torch.compiler.assume_constant_result`."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@contextlib.contextmanager
def nothing_compiled() -> Iterator[None]:
    """Import files that compile functions when read, without compiling them."""
    with patch.object(torch, "compile", lambda function: function):
        yield
