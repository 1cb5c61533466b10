"""LLMC+'s hosts: vision-language models of transformers, with fewer visual tokens.

with reduce(model, "divprune", keep=0.25):
    model.generate(**inputs, max_new_tokens=20)
"""

from megavrc.vlm.hosts import reduce

__all__ = ["reduce"]
