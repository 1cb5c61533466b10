"""Simulated quantization of whole modules: what changes, what does not, what the result says."""

import copy
import hashlib
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from megavrc.model import VRC, ConditionConfig, ModelConfig
from megavrc.quantization.layers import Calibration
from megavrc.quantization.quantize import quantize
from megavrc.quantization.rounding import round_weight
from megavrc.quantization.simulate import (
    PRUNERS,
    QUANTIZERS,
    Simulation,
    simulate_quantization,
    simulate_sparsity,
)


class Reader(nn.Module):
    """An embedding whose weight the last layer shares, two layers between them, and a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 16)
        self.body = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.5), nn.Linear(32, 16))
        self.tied = nn.Linear(16, 20, bias=False)
        self.tied.weight = self.embed.weight
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        state = self.body(self.embed(ids))
        return torch.cat([self.tied(state), self.head(state)], -1)


IDS = torch.arange(40).view(4, 10) % 20
DATA = Calibration("four rows of ids", [IDS[:2], (IDS[2:3],), {"ids": IDS[3:]}])


def hashes(model: nn.Module) -> dict[str, str]:
    return {
        name: hashlib.sha256(value.numpy().tobytes()).hexdigest()
        for name, value in model.state_dict().items()
    }


def changed(before: Mapping[str, str], model: nn.Module) -> set[str]:
    return {name for name, value in hashes(model).items() if value != before[name]}


def simulate(model: nn.Module, method: str, **options: object) -> Simulation:
    data = {"calibration": DATA} if (QUANTIZERS | PRUNERS)[method] else {}
    if method in PRUNERS:
        return simulate_sparsity(model, method, 0.5, **data, **options)  # type: ignore[arg-type]
    format_ = {"activations": "int8"} if method == "smoothquant" else {}
    return simulate_quantization(model, method, "int4", **format_, **data, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [*QUANTIZERS, *PRUNERS])
def test_skipped_and_tied_weights_are_untouched(method: str) -> None:
    model = Reader().train()
    before = hashes(model)
    done = simulate(model, method, skip=["head"])
    assert changed(before, model) == {"body.0.weight", "body.3.weight"}
    assert (
        done.layers == ("body.0", "body.3") and done.simulated and model.training and model.body[2].training
    )
    named = "four rows of ids (3 samples, at most 40 rows a layer)"
    assert done.calibration == (named if (QUANTIZERS | PRUNERS)[method] else None)
    copy.deepcopy(model).eval()(IDS)


def test_methods_differ() -> None:
    """Each changes the module in a way of its own."""
    results = []
    for method in [*QUANTIZERS, *PRUNERS]:
        model = Reader()
        simulate(model, method)
        results.append(tuple(sorted(hashes(model).items())))
    assert len(set(results)) == len(results)


def test_weights_are_those_of_the_pure_function_and_bits_are_counted() -> None:
    model, exact = Reader(), Reader()
    done = simulate_quantization(model, "rtn", "int4", group_size=8)
    assert torch.equal(model.head.weight, round_weight(exact.head.weight, "int4", 8))
    assert done.bits == 4 + 16 / 8 and done.group_size == 8 and done.weights == "int4"
    assert done.layers == ("body.0", "body.3", "head")


@pytest.mark.parametrize("method", ["rtn", "hadamard", "smoothquant", "awq"])
def test_rounded_activations_change_the_output_a_little(method: str) -> None:
    model = Reader().eval().requires_grad_(False)
    exact = model(IDS)
    data = DATA if QUANTIZERS[method] else None
    simulate_quantization(model, method, "int8", activations="int8", calibration=data)
    weights_only = copy.deepcopy(model)
    for module in weights_only.modules():
        module._forward_pre_hooks.clear()
    error = float((model(IDS) - exact).norm() / exact.norm())
    assert 0 < float((weights_only(IDS) - exact).norm() / exact.norm()) < error < 0.03


def test_calibration_leaves_no_hooks_and_half_precision_stays() -> None:
    model = Reader().to(torch.bfloat16)
    simulate_quantization(model, "gptq", "int8", calibration=DATA)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.head.weight.dtype == torch.bfloat16 and bool(model(IDS).isfinite().all())


def test_calibrated_methods_lose_less_than_rounding_to_nearest() -> None:
    """On the layer that is fitted: its output on the calibration inputs (four bits)."""
    torch.manual_seed(0)
    x = torch.randn(100, 4) @ torch.randn(4, 16) + 0.05 * torch.randn(100, 16)
    x[:, 3] *= 20
    layer, errors = nn.Linear(16, 8), {}
    for method in ("rtn", "awq", "gptq"):
        model = copy.deepcopy(layer)
        data = Calibration("rows", [x]) if QUANTIZERS[method] else None
        simulate_quantization(model, method, "int4", calibration=data)
        errors[method] = float((model(x) - layer(x)).detach().norm())
    assert errors["awq"] < errors["rtn"] and errors["gptq"] < errors["rtn"]


def test_the_generator_is_a_module_like_any_other() -> None:
    torch.manual_seed(0)
    model = VRC(ModelConfig(preset="debug", condition=ConditionConfig(vocab=100)))
    before = hashes(model)
    done = simulate_quantization(model, "rtn", "int8", skip="head")
    assert changed(before, model) == {f"{name}.weight" for name in done.layers} and "head" not in done.layers


class Idle(Reader):
    def forward(self, ids: Tensor) -> Tensor:
        return self.body(self.embed(ids))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: simulate_quantization(m, "rtn", "int4", group_size=5),
            "body.0: groups of 5 do not divide 16",
        ),
        (
            lambda m: simulate_quantization(m, "rtn", "int4", group_size=32),
            "body.0: groups of 32 do not divide 16",
        ),
        (lambda m: simulate_quantization(m, "rtn", "int5"), "unknown format 'int5'"),
        (lambda m: simulate_quantization(m, "rtn", "int8", activations="bf16"), "unknown format 'bf16'"),
        (lambda m: simulate_quantization(m, "rtn", ["int4"]), r"unknown format \['int4'\]"),
        (lambda m: simulate_quantization(m, "rtn", "int4", activations=[]), r"unknown format \[\]"),
        (lambda m: simulate_quantization(m, ["rtn"], "int4"), r"unknown method \['rtn'\]"),
        (lambda m: simulate_quantization(m, "quip", "int4"), "unknown method 'quip': choose from rtn"),
        (
            lambda m: simulate_quantization(m, "gptq", "int4"),
            "gptq is fitted on inputs: give calibration data",
        ),
        (lambda m: simulate_quantization(m, "rtn", "int4", calibration=DATA), "rtn uses no calibration data"),
        (
            lambda m: simulate_quantization(m, "smoothquant", "int8", calibration=DATA),
            "in which format activations",
        ),
        (
            lambda m: simulate_quantization(m, "rtn", "int4", skip=["lm_head"]),
            "no module is called lm_head; .* head",
        ),
        (lambda m: simulate_quantization(m, "rtn", "int4", skip=["body", "head"]), "no linear layer is left"),
        (
            lambda m: simulate_quantization(m, "awq", "int4", calibration=DATA),
            "no sample .* through head: skip it",
        ),
        (lambda m: simulate_sparsity(m, "wanda", 0.5), "wanda is fitted on inputs"),
        (lambda m: simulate_sparsity(m, "magnitude", 1.5), "cannot be zero"),
        (lambda m: simulate_sparsity(m, "magnitude", "0.5"), "a share of '0.5'"),
        (lambda m: simulate_quantization(m, "rtn", "int4", group_size="16"), "body.0: groups of '16' do not"),
        (lambda m: simulate_quantization(m, "awq", "int4", calibration=[IDS]), r"is Calibration\(.*not list"),
        (lambda m: simulate_quantization(None, "rtn", "int4"), "expected a module of torch, not NoneType"),
        (lambda m: Calibration(" ", [IDS]), "needs a name"),
        (lambda m: Calibration(None, [IDS]), "needs a name, not None"),
        (lambda m: Calibration("nothing", []), "at least one sample"),
        (lambda m: Calibration("a stream", iter([IDS])), "at least one sample, in a list"),
        (lambda m: Calibration("one mapping", {"ids": IDS}), "at least one sample, in a list"),
        (lambda m: Calibration("one tensor", IDS), "at least one sample, in a list"),
        (
            lambda m: simulate_quantization(m, "gptq", "int4", calibration=Calibration("no rows", [IDS[:0]])),
            "no sample of 'no rows' goes through body.0",
        ),
    ],
)
def test_mistakes_are_refused_and_change_nothing(call, message: str) -> None:  # type: ignore[no-untyped-def]
    model = Idle()
    before = hashes(model)
    with pytest.raises(ValueError, match=message):
        call(model)
    assert changed(before, model) == set() and not any(m._forward_pre_hooks for m in model.modules())


def test_samples_without_rows_are_left_out() -> None:
    results = []
    for samples in ([IDS], (IDS[:0], IDS, IDS[:0])):
        model = Reader()
        simulate_quantization(model, "awq", "int4", calibration=Calibration("rows", samples))
        results.append(hashes(model))
    assert results[0] == results[1]


class Named(nn.Module):
    """A layer that is called by the name of its input."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(input=x)


@pytest.mark.parametrize("method", ["rtn", "smoothquant", "hadamard"])
def test_a_layer_that_is_called_by_name_is_a_layer_like_any_other(method: str) -> None:
    torch.manual_seed(0)
    by_place, x = nn.Sequential(nn.Linear(16, 8)), torch.randn(10, 16)
    by_name = Named(copy.deepcopy(by_place[0]))
    exact = by_place(x)
    data = Calibration("rows", [x]) if QUANTIZERS[method] else None
    for model in (by_place, by_name):
        simulate_quantization(model, method, "int4", activations="int4", calibration=data)
    assert torch.equal(by_name(x), by_place(x)) and not torch.equal(by_name(x), exact)


class PackedLinear(nn.Linear):
    """A layer whose weight is packed in bytes, as bitsandbytes keeps it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features)
        packed = torch.zeros(layer.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)


def test_weights_and_inputs_that_no_format_rounds_are_refused() -> None:
    model = Reader()
    model.get_parameter("body.3.weight").data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"weight of body\.3 is not finite"):
        simulate_quantization(model, "rtn", "int8")
    model.body[3] = PackedLinear(model.body[3])
    with pytest.raises(ValueError, match=r"weight of body\.3 is uint8: it is in fewer bits already"):
        simulate_quantization(model, "rtn", "int8")
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    quantize(model, "int8", skip=["0"])
    with pytest.raises(ValueError, match="weight of 1 is int8: it is in fewer bits already"):
        simulate_quantization(model, "rtn", "int4")
    assert simulate_quantization(model, "rtn", "int4", skip=["1"]).bits == pytest.approx(4, abs=1)
    layer = nn.Linear(4, 2)
    with pytest.raises(ValueError, match="inputs that are not finite"):
        simulate_quantization(
            layer, "gptq", "int8", calibration=Calibration("bad", [torch.full((2, 4), torch.inf)])
        )


def test_inputs_that_torch_gives_to_no_layer_are_refused() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2), "head": nn.Linear(16, 3)})
    before = hashes(model)
    told = r"attention.out_proj: torch's MultiheadAttention .* never calls it.*: skip it"
    with pytest.raises(ValueError, match=told):
        simulate_quantization(model, "rtn", "int8", activations="int8")
    assert changed(before, model) == set()
    own = simulate_quantization(model, "rtn", "int8", activations="int8", skip=["attention.out_proj"])
    assert own.layers == ("head",)
    assert simulate_quantization(model, "rtn", "int8").layers == ("attention.out_proj", "head")
