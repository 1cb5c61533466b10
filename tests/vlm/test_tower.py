"""What the vision tower says of tokens, and reduction inside it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from megavrc.reduction import METHODS
from megavrc.vlm import reduce
from megavrc.vlm.hosts import refusal
from megavrc.vlm.tiny import FAMILIES, IMAGE, prompt, tiny
from megavrc.vlm.tower import encoded_with
from megavrc.vlm.visual import visuals


def looked(
    model: Any, modality: str, inputs: dict[str, Tensor], method: str
) -> tuple[list[Tensor], list[Any]]:
    """Features without separators, and what the method is told of the tower, of each image or clip."""
    with torch.no_grad():
        output, known = encoded_with(model, modality, inputs, METHODS[method], 0.5, {})
    return [item.features[item.own] for item in visuals(model, modality, output, inputs)], known


@pytest.mark.parametrize("modality", ["image", "video"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_said_of_a_token_is_said_of_its_place(family: str, modality: str) -> None:
    """Other pixels in one patch change the features and the tower's keys of one and the same token most."""
    if modality == "video" and family in ("llava", "internvl"):
        return  # frames come as images
    model = tiny(family)
    inputs = prompt(family, modality, modality)
    name = {"image": "pixel_values", "video": "pixel_values_videos"}[modality]
    name = "pixel_values_images" if "pixel_values_images" in inputs and modality == "image" else name
    features, known = looked(model, modality, inputs, "visionzip")
    draw = torch.Generator().manual_seed(3)
    hit = set()
    for _ in range(3):
        changed = inputs[name].clone()
        if family.startswith("qwen"):
            changed[torch.randint(len(changed), (1,), generator=draw)] *= -8
        else:
            flat = changed.view(-1, *changed.shape[-3:])
            frame, y, x = (int(torch.randint(high, (1,), generator=draw)) for high in (len(flat), 2, 8))
            y += 3  # in the middle, where no tile is cropped
            flat[frame, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] *= -8
        after, told = looked(model, modality, {**inputs, name: changed}, "visionzip")
        moved = torch.cat([(new - old).norm(dim=-1) for new, old in zip(after, features, strict=True)])
        keys = torch.cat(
            [(new["keys"] - old["keys"]).norm(dim=-1) for new, old in zip(told, known, strict=True)]
        )
        assert int(moved.argmax()) == int(keys.argmax())
        hit.add(int(moved.argmax()))
    assert len(hit) > 1


@pytest.mark.parametrize("family", ["llava", "internvl", "llava_onevision"])
def test_scores_are_those_of_the_towers_attention(family: str) -> None:
    """As its own eager attention returns it, where tokens of tower and LLM are the same or four become one."""
    model, inputs = tiny(family), prompt(family, "image" if family != "llava_onevision" else "video")
    told = {}
    for method in ("vispruner", "hiprune"):
        told |= looked(model, "video" if family == "llava_onevision" else "image", inputs, method)[1][0]
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")
    pixels = next(value for name, value in inputs.items() if name.startswith("pixel"))
    with torch.no_grad():
        layers = tower(pixels.reshape(-1, 3, 32, 32), output_attentions=True).attentions
    first = int(family != "llava_onevision")
    used, middle = (layers[number].mean(1) for number in (1 if family == "llava" else 2, 1))
    expected = {"attention": used[:, first:, first:].mean(1), "middle": middle[:, first:, first:].mean(1)}
    if first:
        expected["cls"] = used[:, 0, 1:]
    for name, score in expected.items():
        grid = score.view(-1, 8, 8)
        pooled = grid if family == "llava" else torch.nn.functional.avg_pool2d(grid, 2)
        torch.testing.assert_close(told[name], pooled.flatten(), atol=1e-6, rtol=1e-5)


def test_tokens_that_are_the_same_may_merge_unseen() -> None:
    """ToMe: with proportional attention one token of size 2 is as good as two, so a blank image loses nothing."""
    model, inputs = tiny("llava"), prompt("llava", [5], "image", [7])
    inputs["pixel_values"] = torch.ones_like(inputs["pixel_values"])
    with torch.no_grad():
        model.model.vision_tower.embeddings.position_embedding.weight.zero_()
        whole, _ = encoded_with(model, "image", inputs, METHODS["tome"], 1.0, {})
        left, known = encoded_with(model, "image", inputs, METHODS["tome"], 0.5, {})
    index = known[0]["left"]
    assert len(index) == 32
    torch.testing.assert_close(left.pooler_output[0][index], whole.pooler_output[0][index])


def test_frames_of_a_clip_share_the_budget_in_the_tower() -> None:
    """77 of 256 tokens: 19 of three frames and 20 of one; the CLS tokens of frames stay and are not counted."""
    model, inputs = tiny("video_llava"), prompt("video_llava", [5], "video", [7])
    for method in ("tome", "mustdrop"):
        keep = 0.4 if method == "tome" else 0.3
        count = round(keep * 256)
        with torch.no_grad(), reduce(model, method, keep=keep) as seen:
            assert model(**inputs).logits.shape[1] == 2 + 4 + count
        assert seen.layers == [count] * 3 and seen.unreduced == 256
        with torch.no_grad(), reduce(model, method, keep=1.0):
            whole = model(**inputs).logits
        assert torch.equal(whole, model(**inputs).logits)


def test_what_a_tower_cannot_give_is_said() -> None:
    reasons = {
        ("llava", "fastervlm", "siglip_vision_model"): "it needs a CLS token, which the tower has not",
        ("llava", "visionzip", "siglip_vision_model"): "",
        ("llava", "visionzip", "pixtral"): "this host knows no tower pixtral",
        ("llava", "divprune", "pixtral"): "",
        (
            "llava",
            "tome",
            "siglip_vision_model",
        ): "it acts in the layers of a CLIP tower, not of siglip_vision_model",
        (
            "qwen2_5_vl",
            "tome",
            "",
        ): "it acts in the vision tower, whose tokens are pooled, packed or merged as a grid afterwards",
    }
    for (family, method, tower), reason in reasons.items():
        assert refusal(family, METHODS[method], tower) == reason


def test_a_cls_token_among_the_features_stays() -> None:
    """LLaVA that selects the `full` features: 65 placeholders, the first for CLS, which no method sees."""
    model = tiny("llava")
    model.config.vision_feature_select_strategy = "full"
    inputs = prompt("llava", [5], "image", [7])
    ids = torch.tensor([[5, *[IMAGE] * 65, 7]])
    for method in ("pool", "visionzip", "tome", "fastv"):
        with torch.no_grad(), reduce(model, method, keep=0.5) as seen:
            left = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits.shape[1]
        assert seen.unreduced == 64 and left == 2 + 1 + seen.layers[-1], method
