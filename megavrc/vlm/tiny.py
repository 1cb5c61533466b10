"""The eight families at tiny size with random weights, and inputs for them: for tests and for the table of hosts."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

IMAGE, VIDEO, START, END = 250, 251, 252, 253  # ids of a vocabulary of 256
TEXT: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
CLIP: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 4,
}
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
INDEX = {"image_token_index": IMAGE, "video_token_index": VIDEO}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
TOWER: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
}
"""What the towers of Qwen have in common."""
QWEN = {**IDS, "vision_start_token_id": START, "vision_end_token_id": END, "tie_word_embeddings": False}


def llava() -> Any:
    """CLIP with a CLS token, 8 x 8 patches."""
    vision = {"model_type": "clip_vision_model", **CLIP}
    text = {"model_type": "llama", **TEXT}
    return transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)


def llava_next_video() -> Any:
    """CLIP; images in tiles with newlines, clips pooled 2 x 2."""
    return transformers.LlavaNextVideoConfig(
        vision_config={"model_type": "clip_vision_model", **CLIP},
        text_config={"model_type": "llama", **TEXT},
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        spatial_pool_stride=2,
        **INDEX,
    )


def llava_onevision() -> Any:
    """SigLIP; images in tiles with newlines, clips pooled 2 x 2 and ended by a newline."""
    vision = {"model_type": "siglip_vision_model", **CLIP, "vision_use_head": False}
    return transformers.LlavaOnevisionConfig(
        vision_config=vision,
        text_config={"model_type": "qwen2", **TEXT},
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        vision_feature_layer=-1,
        **INDEX,
    )


def video_llava() -> Any:
    """CLIP for images and for frames; the CLS token stays."""
    vision = {"model_type": "clip_vision_model", **CLIP}
    text = {"model_type": "llama", **TEXT}
    return transformers.VideoLlavaConfig(
        vision_config=vision, text_config=text, image_seq_length=64, video_seq_length=65, **INDEX
    )


def qwen2_vl() -> Any:
    """M-RoPE, patches merged 2 x 2."""
    vision = {**TOWER, "embed_dim": 32, "mlp_ratio": 2}
    text = {**TEXT, "rope_parameters": MROPE}
    return transformers.Qwen2VLConfig(vision_config=vision, text_config=text, **QWEN)


def qwen2_5_vl() -> Any:
    """M-RoPE in seconds, windows of attention."""
    vision = {
        **TOWER,
        "intermediate_size": 64,
        "out_hidden_size": 32,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    text = {**TEXT, "rope_parameters": MROPE}
    return transformers.Qwen2_5_VLConfig(vision_config=vision, text_config=text, **QWEN)


def qwen3_vl() -> Any:
    """M-RoPE interleaved, deepstack of two levels, frames apart."""
    vision = {
        **TOWER,
        "depth": 3,
        "intermediate_size": 64,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    text = {**TEXT, "head_dim": 8, "rope_parameters": MROPE}
    return transformers.Qwen3VLConfig(vision_config=vision, text_config=text, **QWEN)


def internvl() -> Any:
    """Pixel shuffle 2 x 2; frames of a clip are images."""
    vision = {**CLIP, "image_size": [32, 32], "patch_size": [4, 4]}
    text = {"model_type": "qwen2", **TEXT}
    return transformers.InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, image_seq_length=16
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    family.__name__: family
    for family in (
        llava,
        llava_next_video,
        llava_onevision,
        video_llava,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        internvl,
    )
}


def tiny(family: str) -> Any:
    """A model of the family with random weights, 70,000 to 140,000 parameters, always the same."""
    torch.manual_seed(0)
    return transformers.AutoModelForImageTextToText.from_config(FAMILIES[family]()).eval()


def prompt(family: str, *parts: str | list[int], seed: int = 0) -> dict[str, Tensor]:
    """Inputs for a prompt of "image"s, "video"s (four frames) and lists of text ids, as a processor gives them."""
    generator = torch.Generator().manual_seed(seed)
    pixels: dict[str, list[Tensor]] = {}
    ids: list[int] = []
    for part in parts:
        if isinstance(part, str):
            add, places = placed(family, part, generator)
            ids += places
            for name, value in add.items():
                pixels.setdefault(name, []).append(value)
        else:
            ids += part
    row = torch.tensor([ids])
    return {
        "input_ids": row,
        "attention_mask": torch.ones_like(row),
        **({"mm_token_type_ids": kinds(row)} if family.startswith("qwen") else {}),
        **{name: torch.cat(values) for name, values in pixels.items()},
    }


def kinds(ids: Tensor) -> Tensor:
    """[B, S] 0 text, 1 image, 2 video."""
    return (ids == IMAGE).int() + 2 * (ids == VIDEO).int()


def batch(*prompts: dict[str, Tensor]) -> dict[str, Tensor]:
    """One batch of prompts, padded on the left."""
    longest = max(prompt["input_ids"].shape[1] for prompt in prompts)
    found: dict[str, list[Tensor]] = {}
    for prompt in prompts:
        for name, value in prompt.items():
            if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
                value = torch.nn.functional.pad(value, (longest - value.shape[1], 0))
            found.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in found.items()}


def placed(family: str, kind: str, generator: torch.Generator) -> tuple[dict[str, Tensor], list[int]]:
    """Pixels of one image or one clip of 32 x 32, and its placeholders."""
    video = kind == "video"
    if family.startswith("qwen"):
        frames = 4 if video else 1
        name, grid = (
            ("pixel_values_videos", "video_grid_thw") if video else ("pixel_values", "image_grid_thw")
        )
        pixels = torch.randn(frames * 64, 96, generator=generator)
        frame = [START, *[VIDEO if video else IMAGE] * 16, END]
        apart = frames if family == "qwen3_vl" else 1
        places = frame * apart if apart > 1 else [START, *frame[1:-1] * frames, END]
        return {name: pixels, grid: torch.tensor([[frames, 8, 8]])}, places
    if family == "internvl" and video:
        return {"pixel_values": torch.randn(4, 3, 32, 32, generator=generator)}, [IMAGE] * 64
    if video:
        count = {"llava_next_video": 64, "llava_onevision": 65, "video_llava": 4 * 65}[family]
        return {"pixel_values_videos": torch.randn(1, 4, 3, 32, 32, generator=generator)}, [VIDEO] * count
    if family in ("llava_next_video", "llava_onevision"):  # 40 x 64 in 2 x 2 tiles, unpadded
        pixels = torch.randn(1, 5, 3, 32, 32, generator=generator)
        return {"pixel_values": pixels, "image_sizes": torch.tensor([[40, 64]])}, [IMAGE] * 234
    name = "pixel_values_images" if family == "video_llava" else "pixel_values"
    count = 16 if family == "internvl" else 64
    return {name: torch.randn(1, 3, 32, 32, generator=generator)}, [IMAGE] * count
