"""Token reduction inside the LLM: hooks on its layers, on the eight families at tiny size."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megavrc.errors import UserError
from megavrc.reduction import METHODS, Reduction, Tokens, order, register
from megavrc.vlm import reduce
from megavrc.vlm.tiny import FAMILIES, IMAGE, TEXT, batch, prompt, tiny

INNER = [name for name, method in METHODS.items() if method.place == "llm"]


def parts(family: str) -> list[Any]:
    return [[5], "image", [6], *([] if family == "llava" else ["video"]), [7, 8, 9]]


def answer(model: Any, inputs: dict[str, Tensor], **options: Any) -> Any:
    return model.generate(**inputs, max_new_tokens=3, do_sample=False, **options)


def hooks_and_attention(model: Any) -> tuple[int, list[str]]:
    modules = list(model.modules())
    count = sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in modules)
    return count, [
        part.config._attn_implementation for part in modules if hasattr(part, "set_attn_implementation")
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_inside_the_llm_of_a_family(family: str) -> None:
    """Keep 1 is the model itself; cached equals uncached with both policies; a ragged batch equals its rows."""
    model, inputs, other = (
        tiny(family),
        prompt(family, *parts(family)),
        prompt(family, "image", [9, 8], seed=1),
    )
    with torch.no_grad():
        logits, whole = model(**inputs).logits, answer(model, inputs)
        before = hooks_and_attention(model)
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
    assert hooks_and_attention(model) == before


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
        whole = model(**inputs, output_attentions=True)
        with reduce(model, "fastv", keep=1.0):
            assert torch.equal(
                model(**inputs).logits, whole.logits
            )  # eager attention is that of transformers
    weights = whole.attentions[layer - 1]
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
        with pytest.raises(UserError, match="leave out prefill_chunk_size"):
            answer(model, inputs, prefill_chunk_size=8)
        with pytest.raises(UserError, match="this one has no words"):
            model(**prompt("llava", "image"))
    with pytest.raises(ValueError, match="fastv acts from layer 1 of 3 on"), reduce(model, "fastv", keep=0.2):
        pass
    model.model.language_model.config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    with pytest.raises(UserError, match="see a sliding window"), reduce(model, "fastv", keep=0.5):
        pass
    del model.model.language_model.config.layer_types
    model.model.language_model.config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match="flex_attention cannot be listened to"):
        with reduce(model, "fastv", keep=0.5):
            pass


@pytest.mark.parametrize("method", ["fastv", "visionzip", "tome", "divprune"])
def test_an_exception_leaves_nothing_behind(method: str) -> None:
    """NaN is found in a hook inside the LLM, after the tower, in a hook inside it, and before the LLM."""
    model, inputs = tiny("llava"), prompt("llava", [5], "image", [7])
    model(**inputs)  # transformers puts hooks of its own at the first call, for good
    before = hooks_and_attention(model)
    inputs["pixel_values"][0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="holds NaN"), reduce(model, method, keep=0.75):
        answer(model, inputs)
    assert hooks_and_attention(model) == before and "generate" not in vars(model)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_rows_with_and_without_pictures(family: str) -> None:
    """Each row is as if alone, padded on either side; the last one has two pictures. With beams and samples.

    Answers are the same with padding on either side, and where the mask is left to `generate`.
    """
    model = tiny(family)
    rows = [
        prompt(family, [5, 6, 7, 8]),
        prompt(family, [4], "image", [9]),
        prompt(family, "image", [3], "image", [7]),
    ]
    both = batch(*rows)
    right = {**both}
    for name in {"input_ids", "attention_mask", "mm_token_type_ids"}.intersection(both):
        right[name] = torch.stack(
            [
                value.roll(-int((~shown.bool()).sum()))
                for value, shown in zip(both[name], both["attention_mask"], strict=True)
            ]
        )
    without_mask = {name: value for name, value in both.items() if name != "attention_mask"}
    longest = prompt(family, [5] * 300)  # nothing of it is cut
    for method in ("visionzip", "fastv"):
        with torch.no_grad(), reduce(model, method, keep=0.75):
            alone = [model(**row).logits[0] for row in rows]
            for padded in (both, right):
                for found, one in zip(model(**padded).logits, alone, strict=True):
                    torch.testing.assert_close(found[-len(one) :], one, atol=2e-5, rtol=1e-4)
            told: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True, "pad_token_id": 0}
            said = [
                torch.stack(answer(model, padded, **told).logits) for padded in (both, right, without_mask)
            ]
            for other in said[1:]:
                torch.testing.assert_close(other, said[0], atol=2e-5, rtol=1e-4)
            mixed = model(**batch(rows[1], longest)).logits[0]
            torch.testing.assert_close(mixed[-len(alone[1]) :], alone[1], atol=2e-5, rtol=1e-4)
            beams = answer(model, both, num_beams=2, num_return_sequences=2)
            assert torch.equal(
                beams, answer(model, both, num_beams=2, num_return_sequences=2, use_cache=False)
            )


@pytest.mark.parametrize("layer", [1, 2, 3, 4])
def test_a_cut_before_any_layer(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mask, cache and positions are cut together: a padded batch, a second turn, eager and sdpa agree at each layer."""
    monkeypatch.setitem(TEXT, "num_hidden_layers", 5)
    monkeypatch.setitem(METHODS, "fastv", replace(METHODS["fastv"], layers=(layer,), depth=5))
    model = tiny("qwen2_vl")
    inputs = batch(prompt("qwen2_vl", [5], "image", [6]), prompt("qwen2_vl", [9, 9], "video", [5, 4], seed=2))
    del inputs["mm_token_type_ids"]
    answers = []
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        with torch.no_grad(), reduce(model, "fastv", keep=0.9, positions="renumbered", selection="frozen"):
            first = answer(model, inputs, return_dict_in_generate=True)
            lengths = [first.past_key_values.get_seq_length(number) for number in range(5)]
            assert len(set(lengths[:layer])) == len(set(lengths[layer:])) == 1 and lengths[0] > lengths[-1]
            ids = torch.cat([first.sequences, torch.tensor([[30, 31], [32, 33]])], 1)
            mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 5), value=1)
            second = {"input_ids": ids, "attention_mask": mask}
            answers += [
                answer(model, second, past_key_values=first.past_key_values),
                answer(model, {**inputs, **second}),
            ]
    assert all(torch.equal(found, answers[0]) for found in answers)


def test_a_prompt_may_end_with_its_picture() -> None:
    """Its last token may be gone at a later layer; the last one that is left looks then."""
    model, inputs = tiny("llava"), prompt("llava", [5, 6], "image")
    with torch.no_grad(), reduce(model, "pyramiddrop", keep=0.5):
        assert model(**inputs).logits.isfinite().all()


def test_a_method_inside_the_llm_may_need_no_score() -> None:
    def first(tokens: Tokens, count: int) -> Reduction:
        return order.kept(tokens, torch.arange(count))

    register("First", "baseline", place="llm", layers=(16,), kind="spatial")(first)
    try:
        model, inputs = tiny("llava"), prompt("llava", [5], "image", [6])
        with torch.no_grad(), reduce(model, "first", keep=0.75) as seen:
            model(**inputs)
        assert seen.keep < 1
    finally:
        del METHODS["first"]
