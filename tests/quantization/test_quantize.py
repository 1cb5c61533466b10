"""Weights that are kept in fewer bits: what a layer computes, what changes, what stays, what is refused."""

import copy
import hashlib
import sys

import pytest
import torch
from torch import Tensor, nn

from megavrc.model import VRC, ClipRequest, ConditionConfig, ModelConfig, VideoPipeline
from megavrc.model.decoder import store_for_generation
from megavrc.quantization.int8 import Int8Linear
from megavrc.quantization.quantize import quantize, quantize_generator, stored_bytes
from megavrc.quantization.rounding import round_weight


def hashes(model: nn.Module) -> dict[str, str]:
    return {
        name: hashlib.sha256(value.numpy().tobytes()).hexdigest()
        for name, value in model.state_dict().items()
        if type(value) is Tensor and value.dtype != torch.bfloat16
    }


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.detach().double() - expected.detach().double()).norm() / expected.detach().norm())


class Block(nn.Module):
    """Attention of torch's own, whose projection is a subclass that is never called; one layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(128, 2, batch_first=True)
        self.inner = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 128, bias=False))
        self.again = self.inner[0]
        self.head = nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x)[0]
        return self.head(x + self.inner(x) + self.again(x)[..., :128])


@pytest.mark.parametrize(
    "width", [1, 5, 16, 33, 128, 200]
)  # torch's kernel takes multiples of 16, and crashes
@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_layer_is_the_product_with_rounded_weights(width: int, bias: bool) -> None:
    torch.manual_seed(width)
    layer = nn.Linear(width, 7, bias=bias)
    rounded = copy.deepcopy(layer)
    rounded.weight.data = round_weight(layer.weight.data, "int8")
    for shape in ((width,), (1, width), (3, 2, 9, width), (0, width)):
        for dtype, limit in ((torch.float32, 0.01), (torch.bfloat16, 0.02), (torch.float64, 0.01)):
            x = torch.randn(shape).to(dtype)
            got, expected = Int8Linear(layer.to(dtype))(x), rounded.to(dtype)(x)
            assert got.dtype == dtype and got.shape == expected.shape
            assert not got.numel() or relative(got, expected) < limit


def test_a_row_does_not_depend_on_the_others_and_rows_of_zeros_are_zero() -> None:
    torch.manual_seed(0)
    weight = nn.Linear(64, 50, bias=False)
    weight.weight.data[3] = 0
    layer, x = Int8Linear(weight), torch.randn(20, 64)
    assert torch.equal(layer(x), torch.cat([layer(x[i : i + 1]) for i in range(20)]))
    assert bool((layer(x)[:, 3] == 0).all())


@pytest.mark.parametrize(
    ("number_format", "package", "limit", "share"),
    [("int8", "torch", 0.02, 0.27), ("fp8", "torchao", 0.06, 0.27), ("nf4", "bitsandbytes", 0.2, 0.16)],
)
def test_a_module_in_each_format(number_format: str, package: str, limit: float, share: float) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    model, x = Block().eval().requires_grad_(False), torch.randn(2, 9, 128)
    expected, before, whole = model(x), hashes(model), copy.deepcopy(model)
    done = quantize(model, number_format, skip=["head"])  # type: ignore[arg-type]
    assert done.layers == ("inner.0", "inner.2") and (done.by, done.weights) == (package, number_format)
    assert model.again is model.inner[0] and type(model.head) is nn.Linear
    assert done.bytes_before == stored_bytes(whole.inner)
    assert done.bytes_after == stored_bytes(model.inner) < share * done.bytes_before
    assert 0 < relative(model(x), expected) < limit
    same = {name for name, value in hashes(model).items() if value == before.get(name)}
    assert {name for name in before if name.startswith(("attention", "head"))} <= same


@pytest.mark.parametrize(
    ("number_format", "skip", "message"),
    [
        ("int5", [], "unknown format 'int5': choose from int8, fp8, int4, nf4"),
        (["int8"], [], r"unknown format \['int8'\]: choose from int8"),
        ("int8", ["tail"], "no module is called tail"),
        ("int8", None, "skip: expected names of modules, not None"),
        ("int8", [1], r"skip: expected names of modules, not \[1\]"),
        ("int8", ["inner", "again", "head"], "linear layers of torch's own class"),
        ("int4", [], "int4 is for bfloat16 weights on a CUDA device; nf4 takes as little"),
        ("fp8", [], r"fp8 needs torchao: pip install 'megavrc\[int8\]'"),
        ("nf4", [], r"nf4 needs bitsandbytes: pip install 'megavrc\[quant\]'"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    number_format: str, skip: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("torchao", "bitsandbytes.nn"):
        monkeypatch.setitem(sys.modules, package, None)
    model = Block()
    before = hashes(model)
    with pytest.raises(ValueError, match=message):
        quantize(model, number_format, skip)  # type: ignore[arg-type]
    assert hashes(model) == before
    with pytest.raises(ValueError, match="give a module that holds linear layers"):
        quantize(model.head, "int8")


def test_the_generator_in_int8_makes_clips_and_keeps_all_but_trunk_and_head() -> None:
    torch.manual_seed(0)
    model = VRC(ModelConfig(preset="debug", condition=ConditionConfig(vocab=100)))
    nn.init.normal_(model.head.weight, std=0.1)
    model.eval().requires_grad_(False)
    before, condition = hashes(model), model.null_condition(2)
    ids = torch.randint(0, model.config.vocab, (2, 1 + model.config.frames, model.config.tokens_per_frame))
    ids = ids.unflatten(2, (model.config.grid, -1))
    expected = model(ids, condition, logits=True)
    done = quantize_generator(model, "int8")
    store_for_generation(model)
    assert {name.partition(".")[0] for name in done.layers} == {"trunk", "head"}
    kept = {name: value for name, value in hashes(model).items() if not name.startswith(("trunk", "head"))}
    assert kept and kept == {name: before[name] for name in kept}
    got = model(ids, condition, logits=True)
    assert 0 < relative(got.logits_first, expected.logits_first) < 0.05
    assert 0 < relative(got.logits_later, expected.logits_later) < 0.05
    one, two = (
        VideoPipeline(model).generate(ClipRequest(condition[rows], seeds), "ids")
        for rows, seeds in ((slice(0, 1), [3]), (slice(0, 2), [3, 4]))
    )
    assert one.shape == (1, 1 + model.config.frames, model.config.grid, model.config.grid)
    assert torch.equal(one[0], two[0])
