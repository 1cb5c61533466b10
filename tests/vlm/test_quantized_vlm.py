"""Fewer bits for vision-language models: calibration on images and text, formats that are computed with, generation."""

import hashlib
from typing import Any

import pytest
import torch
from torch import Tensor

from megavrc.quantization.layers import Calibration
from megavrc.quantization.quantize import quantize
from megavrc.quantization.simulate import simulate_quantization
from megavrc.vlm import reduce
from megavrc.vlm.tiny import batch, prompt, tiny

TOWER = ["model.vision_tower"]


def samples(count: int) -> list[dict[str, Tensor]]:
    """Batches of two, as a processor gives them: an image and text each, padded."""
    rows = [prompt("llava", [5 + i], "image", [7, 8 + i, 9][: 2 + i % 2], seed=i) for i in range(2 * count)]
    return [batch(*rows[2 * i : 2 * i + 2]) for i in range(count)]


def hashes(module: Any) -> dict[str, str]:
    return {
        name: hashlib.sha256(value.numpy().tobytes()).hexdigest()
        for name, value in module.state_dict().items()
    }


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrated_on_images_and_text(method: str) -> None:
    """Image tokens go through the language model's layers, and the result names the data; the tower is as it was."""
    model, data = tiny("llava"), samples(2)
    tower = hashes(model.model.vision_tower)
    with torch.no_grad():
        expected = model(**data[0]).logits
    done = simulate_quantization(
        model, method, "int8", calibration=Calibration("two batches of pictures", data), skip=TOWER
    )
    rows = sum(inputs["input_ids"].numel() for inputs in data)
    assert done.calibration == f"two batches of pictures (2 samples, at most {rows} rows a layer)"
    assert hashes(model.model.vision_tower) == tower and not any(
        "vision_tower" in name for name in done.layers
    )
    assert any("multi_modal_projector" in name for name in done.layers) and "lm_head" in done.layers
    with torch.no_grad():
        error = (model(**data[0]).logits - expected).norm() / expected.norm()
    assert 0 < float(error) < 0.02


@pytest.mark.parametrize("family", ["llava", "llava_onevision", "qwen2_5_vl", "internvl"])
def test_int8_answers_with_fewer_tokens_too(family: str) -> None:
    model, inputs = tiny(family), prompt(family, [5], "image", [7, 8, 9])
    with torch.no_grad():
        expected = model(**inputs).logits
        done = quantize(model, "int8")
        error = (model(**inputs).logits - expected).norm() / expected.norm()
        assert 0 < float(error) < 0.1 and done.bytes_after < 0.35 * done.bytes_before
        with reduce(model, "divprune", keep=0.25):
            answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 3
