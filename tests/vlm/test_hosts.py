"""Token reduction before the LLM, on the eight families at tiny size."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megavrc.errors import UserError
from megavrc.reduction import METHODS
from megavrc.vlm import reduce
from megavrc.vlm.hosts import refusal
from megavrc.vlm.tiny import FAMILIES, IMAGE, batch, prompt, tiny

ROOT = Path(__file__).resolve().parents[2]


def parts(family: str) -> list[Any]:
    return [[5], "image", [6], *([] if family == "llava" else ["video"]), [7, 8, 9]]


def answer(model: Any, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    return model.generate(**inputs, max_new_tokens=3, do_sample=False, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family(family: str) -> None:
    """Keep 1 is the model itself, cached equals uncached with both policies, a ragged batch equals its rows."""
    model, inputs = tiny(family), prompt(family, *parts(family))
    with torch.no_grad():
        logits = model(**inputs).logits
        before = answer(model, inputs)
        with reduce(model, "divprune", keep=1.0):
            assert torch.equal(model(**inputs).logits, logits)
            assert torch.equal(answer(model, inputs), before)
        for positions in ("kept", "renumbered"):
            with reduce(model, "divprune", keep=0.25, positions=positions):
                cached = answer(model, inputs)
                assert torch.equal(cached, answer(model, inputs, use_cache=False)), positions
                assert torch.equal(cached[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
                short = model(**inputs).logits
                assert short.shape[1] < logits.shape[1] / 2 + 10
        other = prompt(family, "image", [9, 8], seed=1)
        with reduce(model, "divprune", keep=0.25):
            alone = model(**other).logits, model(**inputs).logits
            both = model(**batch(other, inputs)).logits
        for row, one in zip(both, alone, strict=True):
            torch.testing.assert_close(row[-one.shape[1] :], one[0], atol=2e-5, rtol=1e-4)
        assert torch.equal(model(**inputs).logits, logits)  # nothing is left behind


@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_that_is_not_refused(family: str) -> None:
    model = tiny(family)
    inputs = prompt(family, [5], "image" if family in ("llava", "internvl") else "video", [7, 8, 9])
    for name, method in METHODS.items():
        if refusal(family, method):
            with pytest.raises(UserError, match=name), reduce(model, name, keep=0.5):
                pass
        else:
            with torch.no_grad(), reduce(model, name, keep=0.75 if method.place == "llm" else 0.5):
                logits = model(**inputs).logits
            assert logits.isfinite().all() and logits.shape[1] < inputs["input_ids"].shape[1], name


def test_renumbered_positions_of_mrope_close_gaps_and_kept_ones_do_not() -> None:
    model, inputs = tiny("qwen2_5_vl"), prompt("qwen2_5_vl", [5], "image", [7, 8])
    seen: list[Tensor] = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    with torch.no_grad():
        for positions in ("kept", "renumbered"):
            with reduce(model, "strided", keep=0.25, positions=positions):
                model(**inputs)
    hook.remove()
    kept, renumbered = (rows[1:, 0] for rows in seen)
    assert kept[:, -1].tolist() == [8, 8, 8]  # 5, start, an image of 4 x 4 from 2 on, end, 7, 8
    assert renumbered.unique().tolist() == list(range(int(renumbered.max()) + 1))
    assert int(renumbered.max()) < 8


def test_an_exception_leaves_nothing_and_wrong_inputs_are_refused() -> None:
    model, inputs = tiny("llava"), prompt("llava", [5], "image", [7])
    with pytest.raises(RuntimeError, match="stop"), reduce(model, "divprune", keep=0.5):
        raise RuntimeError("stop")
    assert "generate" not in vars(model) and not model._forward_pre_hooks
    missing = {**inputs, "input_ids": inputs["input_ids"].clone()}
    missing["input_ids"][0, 1] = 9
    assert missing["input_ids"].eq(IMAGE).sum() == 63
    with reduce(model, "divprune", keep=0.5):
        with pytest.raises(UserError, match="63 image_token_id placeholders for 64"):
            model.generate(**missing)
        with pytest.raises(UserError, match="already"), reduce(model, "pool", keep=0.5):
            pass

    class Older(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: Tensor) -> Any: ...

    model.__class__ = Older
    with pytest.raises(UserError, match="Older takes no mm_encoder_outputs"), reduce(model, "pool", keep=0.5):
        pass
    model.config.model_type = "other"
    with pytest.raises(UserError, match="no such family"), reduce(model, "pool", keep=0.5):
        pass


def test_the_table_of_hosts_is_that_of_the_code() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "figures" / "hosts.py"))["page"]()
    assert (ROOT / "docs" / "llmc.md").read_text() == page, "python docs/figures/hosts.py writes it"
