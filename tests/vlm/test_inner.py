"""Token reduction inside the LLM: hooks on its layers, on the eight families at tiny size."""

from typing import Any

import pytest
import torch
from torch import Tensor

from megavrc.errors import UserError
from megavrc.reduction import METHODS
from megavrc.vlm import reduce
from megavrc.vlm.tiny import FAMILIES, IMAGE, VIDEO, batch, prompt, tiny

INNER = [name for name, method in METHODS.items() if method.place == "llm"]


def parts(family: str) -> list[Any]:
    return [[5], "image", [6], *([] if family == "llava" else ["video"]), [7, 8, 9]]


def answer(model: Any, inputs: dict[str, Tensor], **options: Any) -> Any:
    return model.generate(**inputs, max_new_tokens=3, do_sample=False, **options)


def hooks(model: Any) -> int:
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks)
        for module in model.language_model.modules()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_inside_the_llm_of_a_family(family: str) -> None:
    """Keep 1 is the model itself; cached equals uncached with both policies; a ragged batch equals its rows."""
    model, inputs, other = (
        tiny(family),
        prompt(family, *parts(family)),
        prompt(family, "image", [9, 8], seed=1),
    )
    before = hooks(model.model)
    with torch.no_grad():
        logits, whole = model(**inputs).logits, answer(model, inputs)
        for name in INNER:
            with reduce(model, name, keep=1.0):
                assert torch.equal(model(**inputs).logits, logits), name
                assert torch.equal(answer(model, inputs), whole), name
            close = name in ("pyramiddrop", "holitom_inner")
            with reduce(model, name, keep=0.75, positions="renumbered" if close else "kept") as seen:
                cached = answer(model, inputs)
                assert torch.equal(cached, answer(model, inputs, use_cache=False)), name
                alone = model(**other).logits, model(**inputs).logits
                both = model(**batch(other, inputs)).logits
            assert abs(seen.keep - 0.75) < 0.01, name
            for row, one in zip(both, alone, strict=True):
                torch.testing.assert_close(row[-one.shape[1] :], one[0], atol=2e-5, rtol=1e-4)
        assert torch.equal(model(**inputs).logits, logits)
    assert hooks(model.model) == before


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "qwen3_vl"])
def test_dropped_tokens_are_as_if_masked(family: str) -> None:
    """FastV by another way: the whole model, with keys of what it drops masked from its layer on; eager is sdpa."""
    model, inputs = tiny(family), prompt(family, [5], "image", [7, 8])
    llm = model.model.language_model
    places = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    layer = 2 if family == "qwen3_vl" else 1
    if family == "llava_onevision":  # newlines of tiles are not reduced
        features = model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
        places = places[(features.pooler_output[0] != model.model.image_newline).any(-1)]
    shown = []
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        with torch.no_grad(), reduce(model, "fastv", keep=0.75):
            shown.append(model(**inputs).logits[0, -1])
    torch.testing.assert_close(*shown, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True).attentions[layer - 1]
    count = round(((0.75 * 3) - layer) / (3 - layer) * len(places))
    left = weights[0, :, -1].mean(0)[places].topk(count).indices
    gone = places[~torch.isin(torch.arange(len(places)), left)]

    def mask(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        hidden = kwargs["attention_mask"].clone()
        hidden[..., gone] = torch.finfo(hidden.dtype).min
        return args, {**kwargs, "attention_mask": hidden}

    added = [part.register_forward_pre_hook(mask, with_kwargs=True) for part in llm.layers[layer:]]
    with torch.no_grad():
        expected = model(**inputs).logits[0, -1]
    for hook in added:
        hook.remove()
    torch.testing.assert_close(shown[0], expected, atol=1e-5, rtol=1e-4)


def test_renumbered_positions_are_those_of_a_shorter_prompt() -> None:
    """In the layers after the cut and in the answer; with M-RoPE in all three rows."""
    model, inputs = tiny("qwen2_5_vl"), prompt("qwen2_5_vl", [5], "image", [7, 8])
    llm = model.model.language_model
    cosines: dict[str, list[Tensor]] = {"kept": [], "renumbered": []}
    for policy in ("kept", "renumbered"):
        seen = cosines[policy]
        with torch.no_grad(), reduce(model, "fastv", keep=0.38, positions=policy):  # one token of 16
            hook = llm.layers[2].self_attn.register_forward_pre_hook(
                lambda _, args, kwargs, seen=seen: seen.append(kwargs["position_embeddings"][0]),
                with_kwargs=True,
            )
            answer(model, inputs)
            hook.remove()
    count_up = llm.rotary_emb(torch.zeros(1), torch.arange(20).expand(3, 1, -1))[0][0]

    def position(cosine: Tensor) -> int:
        return int((count_up - cosine).abs().sum(-1).argmin())

    kept, renumbered = cosines["kept"], cosines["renumbered"]
    assert [position(kept[0][0, column]) for column in (0, 1, 3, 4, 5)] == [
        0,
        1,
        6,
        7,
        8,
    ]  # 2 to 5 is the image
    last = position(renumbered[0][0, -1])
    assert 5 <= last < 8
    assert [position(step[0, 0]) for step in kept[1:]] == [9, 10]
    assert [position(step[0, 0]) for step in renumbered[1:]] == [last + 1, last + 2]


def test_beams_share_a_prompt_and_its_cut() -> None:
    model, inputs = tiny("qwen2_vl"), prompt("qwen2_vl", [5], "image", [7, 8])
    with torch.no_grad(), reduce(model, "pyramiddrop", keep=0.75):
        cached = answer(model, inputs, num_beams=2)
        assert torch.equal(cached, answer(model, inputs, num_beams=2, use_cache=False))


def test_what_layers_of_different_length_cannot_do_is_refused() -> None:
    model, inputs = tiny("llava"), prompt("llava", [5], "image", [7])
    with reduce(model, "fastv", keep=0.75):
        with pytest.raises(UserError, match="leave out prompt_lookup_num_tokens"):
            answer(model, inputs, prompt_lookup_num_tokens=2)
        with pytest.raises(UserError, match="fastv needs a cache that grows"):
            answer(model, inputs, cache_implementation="static")
        with pytest.raises(UserError, match="this one has no words"):
            model(**prompt("llava", "image"))
    with pytest.raises(ValueError, match="fastv acts from layer 1 of 3 on"), reduce(model, "fastv", keep=0.2):
        model(**inputs)
    model.model.language_model.config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match="flex_attention cannot be listened to"):
        with reduce(model, "fastv", keep=0.5):
            pass


def test_an_exception_inside_leaves_no_hook() -> None:
    model, inputs = tiny("qwen3_vl"), prompt("qwen3_vl", [5], "image", [7])
    before = hooks(model.model)
    inputs["input_ids"][inputs["input_ids"] == IMAGE] = VIDEO
    with pytest.raises(UserError), reduce(model, "sparsevlm", keep=0.75):
        model(**inputs)
    assert hooks(model.model) == before and "generate" not in vars(model)
    assert model.model.language_model.config._attn_implementation == "sdpa"
