"""What samples are generated from: one class for tokens, labels and text features."""

import pytest
import torch
from models import build, generate, inputs

from megavrc.model import ClipRequest, SamplingSettings
from megavrc.model.condition import Condition


@pytest.mark.parametrize("variant", ["paper", "class", "features"])
def test_a_condition_is_cut_moved_and_made_of_plain_tensors(variant: str) -> None:
    model = build(variant)
    _, plain = inputs(model, batch=3)
    condition = Condition.of(plain)
    assert len(condition) == len(model.null_condition(3)) == 3
    assert (condition.real is not None) == model.config.condition.features
    moved = condition[1:].to("meta")
    assert len(moved) == 2
    assert all(part is None or part.is_meta for part in (moved.values, moved.real))
    expected = model.embed_condition(plain)
    assert torch.equal(model.embed_condition(condition), expected)
    torch.testing.assert_close(model.embed_condition(condition[1:]), expected[1:])


def test_a_condition_of_another_copy_of_the_class_is_taken() -> None:
    """A converted folder brings its own."""

    class Other:
        values, real = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)

    condition = Condition.of(Other())
    assert condition.values is Other.values and condition.real is Other.real


def test_another_kind_of_condition_and_unpacking_are_refused() -> None:
    for variant, other in (("paper", "features"), ("features", "paper")):
        with pytest.raises(ValueError, match="the condition of this model is"):
            build(variant).embed_condition(inputs(build(other))[1])
    with pytest.raises(TypeError):
        _values, _real = Condition(torch.zeros(2, 3))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values, real: (values, real[:, :-1]), "real has shape"),
        (lambda values, real: (values, real[:1]), "real has shape"),
        (lambda values, real: (values[:0], real[:0]), "expected one row"),
        (lambda values, real: (values * torch.nan, real), "text features that are NaN or infinite"),
        (lambda values, real: (values / 0, real), "text features that are NaN or infinite"),
    ],
)
def test_what_are_no_text_features(change, said) -> None:
    _, (values, real) = inputs(build("features"))
    with pytest.raises(ValueError, match=f"^condition: .*{said}"):
        ClipRequest.of(change(values, real), {}, seed=0)


def test_where_features_are_real_is_said_by_any_numbers() -> None:
    """And what padding holds does not matter."""
    model = build("features")
    _, (values, real) = inputs(model)
    expected = generate(model, (values, real), SamplingSettings(), [0, 1])
    for mask in (real.long(), real.float()):
        request = ClipRequest.of((values.where(real[..., None], torch.nan), mask), {}, seed=0)
        assert torch.equal(generate(model, request.condition, SamplingSettings(), [0, 1]), expected)
