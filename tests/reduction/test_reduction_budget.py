"""The budget: one definition for methods before and inside the LLM."""

from megavrc.reduction import (
    layer_counts,
    layer_weighted,
)


def test_layer_weighted_tokens_of_a_published_setting() -> None:
    """PyramidDrop issue 4: 576 tokens in two layers and 144 in thirty are 171 a layer, not 144."""
    counts = layer_counts({2: 144}, 576, 32)
    assert sum(counts) / 32 == (2 * 576 + 30 * 144) / 32 == 171
    assert layer_weighted(counts, 576) == 171 / 576
