"""A Llama of transformers as large as our trunk: what generating with it costs is what ours is measured against."""

from collections.abc import Callable

import torch

from megavrc.model import ModelConfig


def llama_generator(
    config: ModelConfig, length: int, device: str, dtype: torch.dtype
) -> Callable[[int, int, int], None]:
    """A Llama with random weights, and transformers' own `generate` (defaults; sampling from all tokens) to run it.

    Args:
        config: layers, heads, width, SwiGLU width and vocabulary are taken from it.
        length: longest sequence.
        device, dtype: where and in what it runs.

    Returns:
        a function of (batch, prompt length, new tokens).
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=config.vocab,
        hidden_size=config.width,
        intermediate_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=length,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(shape).to(device, dtype).eval()

    def generate(batch: int, prompt: int, count: int) -> None:
        ids = torch.ones(batch, prompt, dtype=torch.long, device=device)
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            min_new_tokens=count,
            max_new_tokens=count,
        )

    return generate
