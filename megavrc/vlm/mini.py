"""The mini-VLM: two families of transformers at a size that learns on a CPU, one for pictures and one for clips.

A picture goes into LLaVA with a CLIP tower (64 tokens), a clip of 8 frames into LLaVA-OneVision with a SigLIP tower (16
tokens a frame, 128 in all, and a newline). A folder of it is one of transformers (config.json, model.safetensors).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from megavrc.errors import UserError
from megavrc.pretrained import whole_model
from megavrc.video.shapes import DIRECTIONS
from megavrc.vlm.questions import (
    COLOURS,
    COUNTS,
    DIGITS,
    FRAMES,
    PLACES,
    SIZE,
    TIMES,
    TYPES,
    Kind,
    Question,
)

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "mini_vlm"
"""Where the trained ones are: a folder for each kind, committed."""

PATCH, WIDTH, HEADS, LAYERS, TOWER_LAYERS = 8, 96, 4, 6, 2
EARLY = 2
"""Layers of the LLM that learn to see motion, before the training."""
TOWER_WIDTH: dict[Kind, int] = {"image": 96, "video": 64}
WORD_SIZE: dict[Kind, float] = {"image": 0.5, "video": 1.0}
"""Root mean square of a word at first."""
VISUAL: dict[Kind, int] = {"image": (SIZE // PATCH) ** 2, "video": FRAMES * (SIZE // PATCH // 2) ** 2 + 1}
"""Placeholders of one picture or clip, a clip's newline among them."""

WORDS = tuple(
    dict.fromkeys(
        ("<pad>", "<start>", "<image>", "<video>", "?", *TYPES["image"], *TYPES["video"])
        + ("shapes", *PLACES, *COLOURS, *DIRECTIONS, *DIGITS, *COUNTS, *TIMES)
    )
)
IDS = {word: number for number, word in enumerate(WORDS)}


def configuration(kind: Kind) -> Any:
    """The configuration of transformers for pictures or for clips."""
    text = {
        "vocab_size": len(WORDS),
        "hidden_size": WIDTH,
        "intermediate_size": 160,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "bos_token_id": IDS["<start>"],
        "eos_token_id": None,
        "pad_token_id": IDS["<pad>"],
    }
    vision = {
        "hidden_size": TOWER_WIDTH[kind],
        "intermediate_size": 2 * TOWER_WIDTH[kind],
        "num_hidden_layers": TOWER_LAYERS,
        "num_attention_heads": HEADS,
        "image_size": SIZE,
        "patch_size": PATCH,
    }
    if kind == "image":
        return transformers.LlavaConfig(
            vision_config={"model_type": "clip_vision_model", **vision},
            text_config={"model_type": "llama", **text},
            vision_feature_layer=-1,
            image_token_index=IDS["<image>"],
        )
    return transformers.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **vision},
        text_config={"model_type": "qwen2", **text},
        vision_feature_layer=-1,
        image_grid_pinpoints=[[SIZE, SIZE]],
        image_token_index=IDS["<image>"],
        video_token_index=IDS["<video>"],
    )


def new_mini(kind: Kind) -> Any:
    """A model with random weights, larger than transformers' own, with which so few steps would learn nothing.

    Queries begin equal to keys, and outputs as the transpose of values, so that attention looks for what is alike and
    hands it on (mimetic initialization, arXiv 2305.09828). For clips they are orthogonal, so that nothing is lost,
    and sharper in the layers that find the same colour a frame earlier.
    """
    model = transformers.AutoModelForImageTextToText.from_config(configuration(kind))
    for name, weight in model.named_parameters():
        if "embed" in name and "patch" not in name:
            nn.init.normal_(weight, 0, 1.0 if "position" in name else WORD_SIZE[kind])
        elif weight.ndim >= 2:
            nn.init.normal_(weight, 0, weight[0].numel() ** -0.5)
        if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight")):
            weight.data /= LAYERS**0.5
    for number, layer in enumerate(model.model.language_model.layers):
        attention = layer.self_attn
        if kind == "video":
            nn.init.orthogonal_(attention.q_proj.weight, 1.5 if number < EARLY else 1.0)
            nn.init.orthogonal_(attention.v_proj.weight)
        attention.k_proj.weight.data.copy_(attention.q_proj.weight)
        attention.o_proj.weight.data.copy_(attention.v_proj.weight.T / LAYERS**0.5)
    nn.init.zeros_(model.lm_head.weight)
    return model


def mini_folder(folder: str | Path, kind: Kind) -> Path:
    """The folder of the mini-VLM of a kind: one of its name, or that of the run that trained it."""
    path = Path(folder) / kind
    return path / "model" if (path / "model").is_dir() else path


def trained_kinds(folder: str | Path) -> list[Kind]:
    """The kinds that a folder has a trained one of."""
    return [kind for kind in TYPES if (mini_folder(folder, kind) / "model.safetensors").is_file()]


def load_mini(folder: str | Path, kind: Kind) -> Any:
    """A trained one in float32, from a folder that holds a folder for each kind."""
    path = mini_folder(folder, kind)
    if kind not in trained_kinds(folder):
        raise UserError(f"{path}: no mini-VLM; `make vlm` trains it")
    return whole_model(path, "mini-VLM", torch.float32, transformers.AutoModelForImageTextToText).eval()


def pixels(frames: Sequence[NDArray[np.uint8]]) -> Tensor:
    """[B, T, 3, H, W] in -1 to 1, of uint8 [T, H, W, 3] each."""
    return torch.from_numpy(np.stack(frames)).permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def pixel_inputs(pixels_BTCHW: Tensor) -> dict[str, Tensor]:
    """The pixels under the name that the model has for them."""
    if pixels_BTCHW.shape[1] == 1:
        return {"pixel_values": pixels_BTCHW[:, 0]}
    return {"pixel_values_videos": pixels_BTCHW}


def visual_grid(model: Any, pixels_BTCHW: Tensor) -> Tensor:
    """[B, T, h, w, D]: what the LLM is given of pictures (8 x 8 tokens) or clips (4 x 4 a frame)."""
    shown = pixel_inputs(pixels_BTCHW)
    encode = model.model.get_image_features if "pixel_values" in shown else model.model.get_video_features
    side = SIZE // PATCH // (1 if "pixel_values" in shown else 2)
    tokens = torch.stack(list(encode(**shown).pooler_output))
    frames = pixels_BTCHW.shape[1]
    return tokens[:, : frames * side**2].reshape(-1, frames, side, side, tokens.shape[-1])


def dialogue(kind: Kind, questions: Sequence[Question]) -> list[int]:
    """Ids of a conversation: start, placeholders, then each question and its answer."""
    words = [word for question in questions for word in (*question.text.split(), question.answer)]
    return [IDS[word] for word in ["<start>", *[f"<{kind}>"] * VISUAL[kind], *words]]
