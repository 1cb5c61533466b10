"""Rounding of tensors: by hand, and by what must hold for every tensor."""

from typing import Any

import pytest
import torch

from megavrc.quantization.rounding import LEVELS, round_cache, round_weight


def test_int4_by_hand() -> None:
    """Scale 7 / 7 = 1 in the first row, 14 / 7 = 2 in the second."""
    weight = torch.tensor([[7.0, -2.4, 0.6, 1.2], [14.0, -4.8, 0.9, 1.2]])
    assert round_weight(weight, "int4").tolist() == [[7, -2, 1, 1], [14, -4, 0, 2]]


def test_int3_in_groups_by_hand() -> None:
    """Groups of two: scales 3 / 3 and 0.6 / 3, so that small weights keep their own step."""
    weight = torch.tensor([[3.0, 0.4, 0.6, -0.31]])
    assert round_weight(weight, "int3").tolist() == [[3, 0, 1, 0]]
    assert torch.allclose(round_weight(weight, "int3", 2), torch.tensor([[3.0, 0, 0.6, -0.4]]))


def test_fp8_by_hand() -> None:
    """Scale 1; e4m3 has 3 bits of mantissa: 17 lies between 16 and 18 (tie to even), 300 between 288 and 320."""
    assert round_weight(torch.tensor([[448.0, 17.0, 300.0, -1.0]]), "fp8").tolist() == [[448, 16, 288, -1]]


@pytest.mark.parametrize("number_format", LEVELS)
@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_rounding_holds(number_format: str, group_size: int | None, kind: torch.dtype) -> None:
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0)).to(kind)
    weight[2] = 0
    once = round_weight(weight, number_format, group_size)
    step = weight.float().abs().amax(1, keepdim=True) / (
        16 if number_format == "fp8" else LEVELS[number_format]
    )
    assert once.dtype == kind and once.shape == weight.shape and not torch.equal(once, weight)
    assert bool(((once - weight).float().abs() <= step * 0.51 + 0.01 * weight.float().abs()).all())
    again = round_weight(once, number_format, group_size)
    assert torch.allclose(again.float(), once.float(), rtol=1e-6 if kind == torch.float32 else 0.01, atol=0)
    assert torch.allclose(round_weight(-weight, number_format, group_size), -once)
    assert once[2].abs().sum() == 0


def test_more_bits_lose_less() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    error = {f: float((round_weight(weight, f) - weight).norm()) for f in ("int8", "int4", "int3")}
    assert error["int8"] < error["int4"] / 8 and error["int4"] < error["int3"] / 2
    assert float((round_weight(weight, "int4", 16) - weight).norm()) < error["int4"]


@pytest.mark.parametrize("group_size", [5, 0, -4, 64])
def test_groups_that_do_not_divide_are_refused(group_size: int) -> None:
    with pytest.raises(ValueError, match=f"groups of {group_size} do not divide 32 inputs"):
        round_weight(torch.ones(2, 32), "int4", group_size)


@pytest.mark.parametrize("number_format", ["int5", ["int8"]])
def test_unknown_format_is_refused(number_format: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown format .*int.*: choose from int8"):
        round_weight(torch.ones(2, 4), number_format)


def test_cache_by_hand() -> None:
    """4 bits from 0 to 15 have steps of 1, from -1 to 2 of 0.2."""
    k = torch.tensor([[0.0, 15.0, 3.4, 8.6]])
    v = torch.tensor([[-1.0, 2.0, 0.05, 0.18]])
    k_4, v_4 = round_cache(k, v, 4)
    assert k_4.tolist() == [[0, 15, 3, 9]]
    assert torch.allclose(v_4, torch.tensor([[-1.0, 2.0, 0.0, 0.2]]), atol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_cached_tokens_do_not_change_when_others_come(bits: int) -> None:
    k, v = torch.randn(2, 2, 3, 10, 16, generator=torch.Generator().manual_seed(0))
    whole, part = round_cache(k, v, bits, 8), round_cache(k[..., :4, :], v[..., :4, :], bits, 8)
    for all_tokens, first, exact in zip(whole, part, (k, v), strict=True):
        assert torch.equal(all_tokens[..., :4, :], first)
        assert (
            0
            < float((all_tokens - exact).abs().max())
            <= float(exact.max() - exact.min()) / (2**bits - 1) / 2
        )
    again = round_cache(*whole, bits, 8)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(again, whole, strict=True))


def test_cache_refuses_other_bits() -> None:
    with pytest.raises(ValueError, match="choose 8 or 4"):
        round_cache(torch.ones(1, 4), torch.ones(1, 4), 3)
