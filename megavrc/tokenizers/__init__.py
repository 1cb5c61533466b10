"""Tokenizers: video (OmniTokenizer) and text (sentencepiece)."""

from .omnitokenizer import OmniTokenizer
from .text import TextTokenizer

__all__ = ["OmniTokenizer", "TextTokenizer"]
