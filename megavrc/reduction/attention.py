"""Methods that keep what attention points at: in the tower, or inside the LLM."""

from . import order, select
from .method import register
from .tokens import Reduction, Tokens


@register(
    "FasterVLM", "2412.01818v1", needs=("cls",), kind="spatial", scope="frame",
)  # fmt: skip
def fastervlm(tokens: Tokens, count: int) -> Reduction:
    """The tokens that CLS attends to most."""
    return order.kept(tokens, select.top(tokens.known("cls"), count))


@register(
    "FastV", "2403.06764", place="llm", layers=(2 / 32,), needs=("last_row",), kind="spatial", guided=True,
    follows="the code: attention of the last prompt token (paper: mean of all attention that a token receives)",
)  # fmt: skip
def fastv(tokens: Tokens, count: int) -> Reduction:
    """The tokens that the last prompt token attends to most, in the layer before."""
    return order.kept(tokens, select.top(tokens.known("last_row"), count))
