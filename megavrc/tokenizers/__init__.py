"""Tokenizers: video (OmniTokenizer) and text (sentencepiece)."""

from typing import TYPE_CHECKING, Any

from .text import TextTokenizer

if TYPE_CHECKING:
    from .omnitokenizer import OmniTokenizer

__all__ = ["OmniTokenizer", "TextTokenizer"]


def __getattr__(name: str) -> Any:
    """OmniTokenizer when it is asked for: it takes torch, which text does without, seconds to import."""
    if name != "OmniTokenizer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .omnitokenizer import OmniTokenizer

    return OmniTokenizer
