"""Methods on one layer's weight: by algebra and by their papers' promises."""

import pytest
import torch
from torch import Tensor

from megavrc.quantization.gptq import round_gptq
from megavrc.quantization.layers import statistics_of
from megavrc.quantization.rounding import round_weight
from megavrc.quantization.scaling import awq_scale, hadamard, rotate_hadamard, round_scaled, smoothing_scale
from megavrc.quantization.sparsity import zero_smallest, zero_wanda


def layer(inputs: int = 32, outputs: int = 24, rows: int = 200) -> tuple[Tensor, Tensor]:
    """A weight, and correlated inputs [rows, inputs] of which two are far larger than the others."""
    draw = torch.Generator().manual_seed(1)
    mix = torch.randn(6, inputs, generator=draw)
    x = torch.randn(rows, 6, generator=draw) @ mix + 0.1 * torch.randn(rows, inputs, generator=draw)
    x[:, [3, 17]] *= 30
    return torch.randn(outputs, inputs, generator=draw), x


def test_statistics_are_those_of_all_rows() -> None:
    weight, x = layer()
    found = statistics_of(x[:50].view(5, 10, -1))
    found.add(x[50:])
    assert found.rows == 200
    assert torch.allclose(found.mean, x.abs().mean(0)) and torch.allclose(found.largest_I, x.abs().amax(0))
    assert torch.allclose(found.norm, x.norm(dim=0), rtol=1e-4)
    assert found.error(weight) == pytest.approx(float((x @ weight.T).square().sum()), rel=1e-4)


def test_smoothing_by_hand() -> None:
    """sqrt(16 / 4) = 2 and sqrt(1 / 4) = 0.5; all strength on the activations is their maximum."""
    weight, inputs = (
        torch.tensor([[4.0, -4.0], [1.0, 2.0]]),
        statistics_of(torch.tensor([[16.0, 0.5], [-2.0, -1.0]])),
    )
    assert smoothing_scale(weight, inputs).tolist() == [2, 0.5]
    assert smoothing_scale(weight, inputs, strength=1).tolist() == [16, 1]


def test_smoothing_makes_rounded_activations_better() -> None:
    weight, x = layer()
    scale = smoothing_scale(weight, statistics_of(x))
    exact = x @ weight.T
    plain = round_weight(x, "int8") @ round_weight(weight, "int8").T
    smooth = round_weight(x / scale, "int8") @ round_weight(weight * scale, "int8").T
    assert float((smooth - exact).norm()) < 0.7 * float((plain - exact).norm())


def test_scale_of_one_is_round_to_nearest() -> None:
    weight, _ = layer()
    assert torch.equal(round_scaled(weight, torch.ones(32), "int4", 8), round_weight(weight, "int4", 8))


def test_awq_with_even_inputs_is_round_to_nearest() -> None:
    """No input is larger than another, so no scale differs from one."""
    weight, _ = layer()
    signs = statistics_of(torch.eye(32))
    assert torch.allclose(awq_scale(weight, signs, "int4"), torch.ones(32))


@pytest.mark.parametrize("group_size", [None, 8])
def test_awq_and_gptq_beat_rounding_to_nearest(group_size: int | None) -> None:
    weight, x = layer()
    inputs = statistics_of(x)
    plain = inputs.error(round_weight(weight, "int4", group_size) - weight)
    scale = awq_scale(weight, inputs, "int4", group_size)
    assert inputs.error(round_scaled(weight, scale, "int4", group_size) - weight) < 0.7 * plain
    assert inputs.error(round_gptq(weight, inputs, "int4", group_size) - weight) < 0.5 * plain


def test_gptq_of_unrelated_inputs_is_round_to_nearest() -> None:
    """A diagonal Gram matrix leaves nothing that another column could make up for."""
    weight, _ = layer()
    rounded = round_gptq(weight, statistics_of(torch.diag(torch.rand(32) + 0.5)), "int4", 8)
    assert torch.allclose(rounded, round_weight(weight, "int4", 8), atol=1e-6)


def test_gptq_by_hand() -> None:
    """Two inputs that are always equal: what rounding 3.4 to 3 loses goes to the other, 6.6 + 0.4 = 7 (scale 1)."""
    weight, inputs = torch.tensor([[3.4, 7.0, 2.3]]), statistics_of(torch.tensor([[1.0, 0, 1], [0, 1, 0]]))
    rounded = round_gptq(weight, inputs, "int4", damping=1e-6)
    assert torch.allclose(rounded, torch.tensor([[3.0, 7, 3]]), atol=1e-4)
    assert round_weight(weight, "int4").tolist() == [[3, 7, 2]]


def test_gptq_gives_up_weights_of_inputs_that_are_always_zero() -> None:
    weight, x = layer()
    x[:, 5] = 0
    rounded = round_gptq(weight, statistics_of(x), "int8")
    assert bool(rounded.isfinite().all()) and rounded[:, 5].abs().sum() == 0


@pytest.mark.parametrize("width", [1, 32, 24, 7])
def test_rotation_leaves_the_product(width: int) -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, width, generator=draw), torch.randn(3, width, generator=draw)
    assert torch.allclose(rotate_hadamard(x) @ rotate_hadamard(weight).T, x @ weight.T, atol=1e-5)
    assert torch.allclose(rotate_hadamard(rotate_hadamard(x)), x, atol=1e-5)
    assert width % 8 or not torch.allclose(rotate_hadamard(x), x)


def test_rotation_by_hand() -> None:
    assert torch.allclose(rotate_hadamard(torch.tensor([[3.0, 1.0]])), torch.tensor([[4.0, 2.0]]) / 2**0.5)
    with pytest.raises(ValueError, match="6 is no power of two"):
        hadamard(6)


def test_rotation_spreads_an_outlier() -> None:
    _, x = layer()
    plain, rotated = round_weight(x, "int4"), rotate_hadamard(round_weight(rotate_hadamard(x), "int4"))
    quiet = [i for i in range(32) if i not in (3, 17)]
    assert float((rotated - x)[:, quiet].norm()) < float((plain - x)[:, quiet].norm())


def test_sparsity_by_hand() -> None:
    """|w| ||x||: input 0 is ten times larger, so its small weight stays in Wanda."""
    weight = torch.tensor([[0.5, 2.0, -3.0, 1.0], [4.0, -5.0, 6.0, 7.0]])
    inputs = statistics_of(torch.tensor([[10.0, 1, 1, 1]]))
    assert zero_smallest(weight, 0.5).tolist() == [[0, 0, 0, 0], [4, -5, 6, 7]]
    assert zero_wanda(weight, inputs, 0.5).tolist() == [[0.5, 0, -3, 0], [4, 0, 0, 7]]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.99])
def test_sparsity_is_exact(share: float) -> None:
    weight, x = layer()
    weight[0] = 1  # equal weights are ties
    wanda = zero_wanda(weight, statistics_of(x), share)
    assert (wanda == 0).sum(1).tolist() == [round(share * 32)] * 24
    sparse = zero_smallest(weight, share)
    assert int((sparse == 0).sum()) == round(share * 32 * 24)
    assert torch.equal(zero_smallest(sparse, share), sparse) and torch.equal(
        sparse[sparse != 0], weight[sparse != 0]
    )


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan")])
def test_other_shares_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="cannot be zero: choose from 0 to below 1"):
        zero_smallest(torch.ones(2, 4), share)
