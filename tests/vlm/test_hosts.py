"""Token reduction before the LLM, on the eight families at tiny size."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from megavrc.errors import UserError
from megavrc.reduction import METHODS, find_method
from megavrc.vlm import calibrated, reduce
from megavrc.vlm.hosts import refusal
from megavrc.vlm.tiny import END, FAMILIES, IMAGE, START, VIDEO, batch, prompt, tiny


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
    """Each `yes` of the table, 15 a family at least, at one budget: within 1% or one token a layer of what was asked.

    The other cells are refused early with a reason. Where the count follows the content, it was set on other inputs.
    """
    model, keep = tiny(family), 0.75
    video = "image" if family in ("llava", "internvl") else "video"
    inputs, others = (
        prompt(family, [5], video, [7, 8, 9]),
        [prompt(family, video, seed=seed) for seed in (1, 2)],
    )
    run = 0
    for name, method in METHODS.items():
        if refusal(family, method):
            with pytest.raises(UserError, match=name), reduce(model, name, keep=keep):
                pass
            continue
        with torch.no_grad(), reduce(model, name, keep=keep, **calibrated(model, name, keep, others)) as seen:
            logits = model(**inputs).logits
        assert logits.isfinite().all() and logits.shape[1] < inputs["input_ids"].shape[1], name
        assert seen.calibrated == (name == "prumerge") and seen.unreduced > 15, name
        if not seen.calibrated:
            assert abs(seen.keep - keep) * seen.unreduced <= max(1, 0.01 * keep * seen.unreduced), str(seen)
        run += 1
    assert run >= 15


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_generates(family: str) -> None:
    """Cached equals uncached and eager equals sdpa, with pictures of each kind, in a ragged batch."""
    model = tiny(family)
    mixed = batch(prompt(family, *parts(family)), prompt(family, [9], *parts(family), [3], seed=1))
    for name, method in METHODS.items():
        if refusal(family, method):
            continue
        inputs = mixed
        if method.kind == "temporal":  # these refuse prompts with an image
            inputs = batch(prompt(family, "video", [7]), prompt(family, [9], "video", [5, 3], seed=1))
        keep = (
            0.1 if name == "cdpruner" else 0.75
        )  # no more of them than features have dimensions, else rounding picks
        options = calibrated(model, name, keep, [inputs])
        with torch.no_grad(), reduce(model, name, keep=keep, **options):
            assert torch.equal(answer(model, inputs), answer(model, inputs, use_cache=False)), name
            logits = model(**inputs).logits[:, -5:]
        model.set_attn_implementation("eager")
        with torch.no_grad(), reduce(model, name, keep=keep, **options):
            eager = model(**inputs).logits[:, -5:]
        torch.testing.assert_close(eager, logits, atol=2e-5, rtol=1e-4)
        model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("family", ["llava_onevision", "video_llava", "qwen2_5_vl", "qwen3_vl"])
def test_pictures_of_each_kind_in_any_order(family: str) -> None:
    """At keep 1 the answer is the model's own; below, each picture is reduced as if it were alone."""
    model = tiny(family)
    for order in (["video", "image"], ["image", "video"], ["video", "video", "image"]):
        inputs = prompt(family, [5], *order, [7])
        with torch.no_grad():
            whole = answer(model, inputs)
            for method in ("pool", "fastv"):
                with reduce(model, method, keep=1.0):
                    assert torch.equal(answer(model, inputs), whole), order
                with reduce(model, method, keep=0.75) as seen:
                    assert torch.equal(answer(model, inputs), answer(model, inputs, use_cache=False)), order
                alone = 0
                for kind in order:
                    with reduce(model, method, keep=0.75) as one:
                        model(**prompt(family, [5], kind, [7]))
                    alone += sum(one.layers)
                assert sum(seen.layers) == 2 * alone  # two calls of generate


@pytest.mark.parametrize("family", ["llava_onevision", "llava_next_video"])
def test_newlines_stay_in_place_and_are_not_counted(family: str) -> None:
    """An image in 2 x 2 tiles has a newline after each of its 10 rows; half of the others go, before or in the LLM."""
    model, inputs = tiny(family), prompt(family, [5], "image", [7])
    rows: list[Tensor] = []
    last = model.model.language_model.layers[-1].self_attn
    for method, keep in (("pool", 0.5), ("divprune", 0.5), ("holitom_inner", 0.75)):
        with torch.no_grad(), reduce(model, method, keep=keep) as seen:
            hook = last.register_forward_pre_hook(
                lambda _, args, kwargs: rows.append(kwargs["hidden_states"]), with_kwargs=True
            )
            model(**inputs)
            hook.remove()
        assert seen.unreduced == 224 and seen.layers[-1] == (56 if method == "holitom_inner" else 112)
        assert rows.pop().shape[1] == 2 + 10 + seen.layers[-1]
    with torch.no_grad(), reduce(model, "pool", keep=0.1):
        hook = model.model.language_model.register_forward_pre_hook(
            lambda _, args, kwargs: rows.append(kwargs["inputs_embeds"][0]), with_kwargs=True
        )
        model(**inputs)
        hook.remove()
    newline = (rows[0] == model.model.image_newline).all(-1).nonzero()[:, 0]
    assert len(newline) == 10 and len(rows[0]) == 2 + 10 + 6 + 16  # of 64 and of 160 tokens
    assert newline.diff().min() >= 1 and newline[-1] == len(rows[0]) - 2


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_lengths_count_the_prompt_as_it_was_given(method: str) -> None:
    """`max_length` and `min_length` leave room for as many new tokens as without reduction, wherever they are set."""
    model, inputs = tiny("llava"), prompt("llava", [5], "image", [7, 8])
    known = inputs["input_ids"].shape[1]
    limits = transformers.GenerationConfig(max_length=known + 4, min_length=known + 2, do_sample=False)
    model.generation_config.eos_token_id = int(model.generate(**inputs, max_new_tokens=1)[0, -1])
    with reduce(model, method, keep=0.75):
        short = model.generate(**inputs, max_length=known + 4, do_sample=False, eos_token_id=None)
        assert short.shape[1] == known + 4
        assert known + 2 <= model.generate(**inputs, generation_config=limits).shape[1] <= known + 4
        model.generation_config.max_length = known + 3
        assert model.generate(**inputs, do_sample=False, eos_token_id=None).shape[1] == known + 3
        assert answer(model, inputs, eos_token_id=None).shape[1] == known + 3  # max_new_tokens comes first


def test_tokens_are_counted_not_assumed() -> None:
    """An image of 6 x 10 patches is 3 x 5 tokens for Qwen, and a clip of 2 x 6 x 4 is 2 frames of 3 x 2."""
    model = tiny("qwen2_5_vl")
    ids = torch.tensor([[5, START, *[IMAGE] * 15, END, START, *[VIDEO] * 12, END, 7]])
    grids = {"image_grid_thw": torch.tensor([[1, 6, 10]]), "video_grid_thw": torch.tensor([[2, 6, 4]])}
    pixels = {"pixel_values": torch.randn(60, 96), "pixel_values_videos": torch.randn(48, 96)}
    for method, expected in (("visionzip", 8 + 6), ("evs", None), ("fastv", None), ("pool", 8 + 6)):
        with torch.no_grad(), reduce(model, method, keep=0.5 if method != "fastv" else 0.75) as seen:
            if method == "evs":
                with pytest.raises(ValueError, match="evs compares frames: it needs a clip, not an image"):
                    model(input_ids=ids, **grids, **pixels)
                continue
            assert model(input_ids=ids, **grids, **pixels).logits.isfinite().all()
        assert seen.unreduced == 27
        if expected:
            assert seen.layers == [expected] * 3


def test_tokens_of_the_processor_are_counted() -> None:
    """Images of one number of pixels are not of one number of tokens; keep is a share of what each has."""
    processor = transformers.Qwen2VLImageProcessor(
        patch_size=4, merge_size=2, min_pixels=2304, max_pixels=2304
    )
    images = [np.zeros(shape, np.uint8) for shape in ((50, 70, 3), (33, 90, 3), (48, 48, 3))]
    inputs = dict(processor(images=images, return_tensors="pt"))
    counts = (inputs["image_grid_thw"].prod(-1) // 4).tolist()
    assert len(set(counts)) > 1 and len(inputs["pixel_values"]) == 4 * sum(counts)
    model = tiny("qwen2_vl")
    ids = torch.tensor([[token for n in counts for token in (START, *[IMAGE] * n, END)] + [7]])
    for method in ("pool", "random"):
        with torch.no_grad(), reduce(model, method, keep=0.3) as seen:
            model(input_ids=ids, **inputs)
        assert seen.unreduced == sum(counts)
        assert seen.layers == [sum(math.floor(0.3 * n + 0.5) for n in counts)] * 3


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
    seen.clear()
    clip = prompt("qwen2_5_vl", [5], "video", [7])  # its frames are seconds apart: gaps of the model's own
    with torch.no_grad():
        hook = model.model.language_model.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["position_ids"][-3:]), with_kwargs=True
        )
        model.generate(**clip, max_new_tokens=1)
        with reduce(model, "strided", keep=1, positions="renumbered"):
            model.generate(**clip, max_new_tokens=1)
    hook.remove()
    assert torch.equal(*seen) and int(seen[0].max()) > seen[0].unique().numel()


def test_deepstack_levels_are_read_at_the_kept_places() -> None:
    """Of an image and a clip: what Qwen3-VL adds to a token after its first layers is what it would add anyway."""
    model, calls = tiny("qwen3_vl"), []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        for keep in (1.0, 0.25):
            with reduce(model, "strided", keep=keep):
                model(**prompt("qwen3_vl", [5], "image", [6], "video", [7]))
    hook.remove()
    whole, left = (call["inputs_embeds"][call["visual_pos_masks"]] for call in calls)
    place = torch.cdist(left, whole).argmin(-1)
    assert len(place) == (16 + 64) / 4 and torch.equal(whole[place], left)
    all_levels, fewer = (call["deepstack_visual_embeds"] for call in calls)
    assert len(fewer) == 2
    for level, less in zip(all_levels, fewer, strict=True):
        assert torch.equal(level[place], less)


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
        with pytest.raises(UserError, match="not features that are encoded already"):
            model(inputs_embeds=torch.zeros(1, 3, 32))
        with pytest.raises(UserError, match="already"), reduce(model, "pool", keep=0.5):
            pass

    for wrong, message in (
        ((model, "pool", "0.5"), "keep is a share .* not '0.5'"),
        ((model, find_method("pool"), 0.5), r"no method Method\(name='pool'"),
        ((model.lm_head, "pool", 0.5), "pool on Linear: no such family here: llava"),
    ):
        with pytest.raises(ValueError, match=message), reduce(wrong[0], wrong[1], keep=wrong[2]):
            pass
    with pytest.raises(ValueError, match=r"keep is a share .* not '0.5'"):
        calibrated(model, "prumerge", "0.5", [])  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match="prumerge leaves what its threshold makes of a picture: give outlier"
    ):
        with reduce(model, "prumerge", keep=0.5):
            pass

    class Older(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: Tensor) -> Any: ...

    model.__class__ = Older
    with pytest.raises(UserError, match="Older takes no mm_encoder_outputs"), reduce(model, "pool", keep=0.5):
        pass
    model.config.model_type = "other"
    with pytest.raises(UserError, match="no such family"), reduce(model, "pool", keep=0.5):
        pass
