"""LLMC+'s hosts: vision-language models of transformers, with fewer visual tokens.

with reduce(model, "divprune", keep=0.25):
    model.generate(**inputs, max_new_tokens=20)
"""

from megavrc.vlm.hosts import VisualTokens, calibrated, reduce

__all__ = ["VisualTokens", "calibrated", "reduce"]
