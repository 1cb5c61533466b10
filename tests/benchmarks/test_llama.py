"""The Llama that generation is measured against."""

import pytest
import torch

from megavrc.benchmarks.llama import llama_generator
from megavrc.model import VRC, ConditionConfig, ModelConfig


def test_it_is_as_large_as_our_trunk_and_makes_the_tokens_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    config = ModelConfig(condition=ConditionConfig(kind="class", classes=3), layers=2, width=64, vocab=50)
    seen = []
    original = LlamaForCausalLM.generate

    def generate(self, *arguments, **options):
        seen.append((self, original(self, *arguments, **options)))
        return seen[-1][1]

    monkeypatch.setattr(LlamaForCausalLM, "generate", generate)
    llama_generator(config, 40, "cpu", torch.float32)(3, 5, 7)
    llama, ids = seen[0]
    assert ids.shape == (3, 12)
    counts = VRC(config).parameter_counts()
    assert sum(p.numel() for p in llama.parameters()) == counts["body"] + counts["tokens"] + counts["head"]
