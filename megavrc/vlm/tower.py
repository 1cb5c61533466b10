"""The vision tower: what its attention says of each token, and methods that act in its layers.

A tower has other tokens than the LLM where several become one (pooled, shuffled, merged 2 x 2, packed from tiles): what
is known of them takes the same way, as the mean of those that become one.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megavrc.reduction import Method, Tokens, reduce_tokens, token_count, tower_schedule
from megavrc.reduction.budget import even
from megavrc.vlm.attention import Heard, listener, listening
from megavrc.vlm.visual import QWEN, TILED, encoded

USUAL = {  # family: type of its tower
    "llava": "clip_vision_model",
    "llava_next_video": "clip_vision_model",
    "llava_onevision": "siglip_vision_model",
    "video_llava": "clip_vision_model",
    **{family: f"{family}_vision" for family in QWEN},
    "internvl": "internvl_vision",
}
WITH_CLS = ("clip_vision_model", "internvl_vision")
NO_GRID_AFTER = ("llava", "video_llava")  # any number of tokens may leave the tower
FIELDS = ("cls", "attention", "middle", "keys")  # of Tokens
ROWS = 256  # of an attention matrix at a time: a large image has thousands


def fields_of(method: Method, cls: bool) -> set[str]:
    """The fields of Tokens that the method needs of a tower with or without a CLS token."""
    wanted = {need.replace("cls or attention", "cls" if cls else "attention") for need in method.needs}
    return wanted.intersection(FIELDS)


def tower_refusal(family: str, method: Method, kind: str = "") -> str:
    """Why the method cannot have what it needs of a tower of that `model_type`; empty where it can."""
    kind = kind or USUAL[family]
    cls = kind in WITH_CLS
    if method.place != "tower" and not fields_of(method, cls):
        return ""
    if kind not in USUAL.values():
        return f"this host knows no tower {kind}"
    if method.place == "tower" and family not in NO_GRID_AFTER:
        return "it acts in the vision tower, whose tokens are pooled, packed or merged as a grid afterwards"
    if method.place == "tower" and kind != "clip_vision_model":
        return f"it acts in the layers of a CLIP tower, not of {kind}"
    if "cls" in fields_of(method, cls) and not cls:
        return "it needs a CLS token, which the tower has not"
    return ""


@dataclass(frozen=True)
class Tower:
    """The vision tower of a model."""

    model: Any
    layers: list[nn.Module]
    attentions: list[nn.Module]
    output: int
    "the layer whose output is used"
    middle: int
    cls: bool


def tower_of(model: Any, modality: str) -> Tower:
    """The tower that encodes images or clips. Of Qwen2.5-VL only layers that see a whole frame are used."""
    family, config = model.config.model_type, model.config.vision_config
    if family in QWEN:
        tower = model.model.visual
        layers = list(tower.blocks)
        whole = list(getattr(config, "fullatt_block_indexes", range(len(layers))))
        middle = min(whole, key=lambda layer: abs(layer - len(layers) // 2))
        return Tower(tower, layers, [layer.attn for layer in layers], max(whole), middle, False)
    if family == "internvl":
        tower = model.model.vision_tower
        layers = list(tower.encoder.layer)
        attentions = [layer.attention for layer in layers]
    else:
        name = f"{modality}_tower" if family == "video_llava" else "vision_tower"
        tower = getattr(model.model, name)
        layers = list(tower.encoder.layers)
        attentions = [layer.self_attn for layer in layers]
    used = model.config.vision_feature_layer
    used = used[-1] if isinstance(used, list | tuple) else used
    output = len(layers) + used if used < 0 else used - 1
    return Tower(tower, layers, attentions, output, len(layers) // 2, config.model_type in WITH_CLS)


def encoded_with(
    model: Any, modality: str, inputs: dict[str, Any], method: Method, keep: float, options: dict[str, Any]
) -> tuple[Any, list[dict[str, Tensor]]]:
    """The encoder's output, and what the method needs of the tower, for each image or clip of it.

    For a method that acts in the tower, the output has zeros where tokens are gone, and `left` [K] says which are not.
    """
    if keep == 1 or not (method.place == "tower" or fields_of(method, True)) or method.place == "llm":
        return encoded(model, modality, inputs), []
    if method.place == "tower":
        return encoded_in(model, modality, inputs, method, keep, options)
    tower = tower_of(model, modality)
    scores = TowerScores(tower, fields_of(method, tower.cls))
    with scores.listened():
        output = encoded(model, modality, inputs)
    return output, scores.of_items(model, modality, inputs) if output is not None else []


class TowerScores:
    """Listens to a tower while it encodes."""

    def __init__(self, tower: Tower, wanted: set[str]) -> None:
        self.tower, self.wanted = tower, wanted
        self.heard: dict[str, list[Tensor]] = {name: [] for name in wanted}
        "[frames, n, C] a call"

    @contextmanager
    def listened(self) -> Iterator[None]:
        """Within the block the tower is listened to."""
        layers: dict[int, list[str]] = {}
        for name in self.wanted:
            layers.setdefault(self.tower.middle if name == "middle" else self.tower.output, []).append(name)
        with ExitStack() as stack:
            stack.enter_context(listening(self.tower.model))
            for layer, names in layers.items():
                stack.enter_context(listener(self.tower.attentions[layer], self.hearing(names)))
            yield

    def hearing(self, names: list[str]) -> Callable[[Heard], None]:
        """A listener for those fields."""
        first = int(self.tower.cls)

        def hear(heard: Heard) -> None:
            found: dict[str, list[Tensor]] = {name: [] for name in names}
            for frame in range(len(heard.query)):
                if "cls" in names:
                    row = torch.zeros(1, dtype=torch.int64, device=heard.query.device)
                    found["cls"].append(heard.weights(frame, row)[0, first:, None])
                for name in {"attention", "middle"}.intersection(names):
                    found[name].append(received(heard, frame, first)[:, None])
            if "keys" in names:
                found["keys"] = list(heard.key.float().mean(1)[:, first:])
            for name, parts in found.items():
                self.heard[name].append(torch.stack(parts))

        return hear

    def of_items(self, model: Any, modality: str, inputs: dict[str, Any]) -> list[dict[str, Tensor]]:
        """{field: [N] or [N, d]} for each image or clip."""
        along = 1 if model.config.model_type in QWEN else 0  # there a call a frame, of any length
        fields = {name: torch.cat(calls, along) for name, calls in self.heard.items()}
        parts = {name: on_tokens(model, modality, x, inputs) for name, x in fields.items()}
        count = len(next(iter(parts.values())))
        return [
            {name: part[item] if name == "keys" else part[item][:, 0] for name, part in parts.items()}
            for item in range(count)
        ]


def received(heard: Heard, frame: int, first: int) -> Tensor:
    """[n]: attention that each token from `first` on receives from those, mean over queries; some rows at a time."""
    count = heard.query.shape[2]
    rows = torch.arange(first, count, device=heard.query.device).split(ROWS)
    return torch.stack([heard.weights(frame, part).sum(0) for part in rows]).sum(0)[first:] / (count - first)


def on_tokens(model: Any, modality: str, x: Tensor, inputs: dict[str, Any]) -> list[Tensor]:
    """[N, C] for the tokens of each image or clip (without separators) from [frames, n, C] for those of the tower.

    Of Qwen's towers, [1, all, C].
    """
    family, config, host = model.config.model_type, model.config.vision_config, model.model
    if family in QWEN:
        grids, area = inputs[f"{modality}_grid_thw"], config.spatial_merge_size**2
        x = x[0].unflatten(0, (-1, area)).mean(1)
        return list(x[order_of_windows(model, grids)].split((grids.prod(-1) // area).tolist()))
    if family == "internvl":
        side = round(x.shape[1] ** 0.5)
        planes = x.movedim(-1, 1).reshape(-1, side, side, 1)
        shuffled = host.pixel_shuffle(planes, scale_factor=model.config.downsample_ratio)
        return list(shuffled.mean(-1).reshape(len(x), x.shape[-1], -1).movedim(1, -1))
    if modality == "video":
        if family == "llava_next_video":
            planes = x.movedim(-1, 1).unflatten(-1, (round(x.shape[1] ** 0.5), -1))
            x = F.avg_pool2d(planes, model.config.spatial_pool_stride).flatten(2).movedim(1, -1)
        if family == "llava_onevision":
            x = host.apply_pooling(x)
        return list(x.reshape(len(inputs["pixel_values_videos"]), -1, x.shape[-1]))
    if family in TILED:
        return packed(model, x, inputs)
    return list(x)


def order_of_windows(model: Any, grids: Tensor) -> Any:
    """Index that undoes the order in which Qwen2.5-VL's tower has its tokens; the others have them in place."""
    if model.config.model_type != "qwen2_5_vl":
        return slice(None)
    from transformers.vision_utils import get_vision_window_index

    config = model.config.vision_config
    order, _ = get_vision_window_index(
        grids, config.spatial_merge_size, config.window_size, config.patch_size
    )
    return order.argsort()


def packed(model: Any, x: Tensor, inputs: dict[str, Any]) -> list[Tensor]:
    """Tiles [tiles, n, C] of images, packed by the model as it packs their features, but for newlines."""
    host, config, sizes = model.model, model.config, inputs["image_sizes"]
    tiles_in = inspect.getmodule(type(host)).image_size_to_num_patches  # type: ignore[union-attr]
    in_prompt = inputs.get("batch_num_images")  # several in a prompt come without tiles
    alone = (
        [True] * len(sizes) if in_prompt is None else [n == 1 for n in in_prompt.tolist() for _ in range(n)]
    )
    counts = [
        tiles_in(size, config.image_grid_pinpoints, config.vision_config.image_size) if tiled else 1
        for size, tiled in zip(sizes, alone, strict=True)
    ]
    name = (
        "vision_aspect_ratio" if config.model_type == "llava_onevision" else "vision_feature_select_strategy"
    )
    option = {name: getattr(config, name)}
    return list(host.pack_image_features(x.split(counts), sizes, image_newline=None, **option)[0])


def encoded_in(
    model: Any, modality: str, inputs: dict[str, Any], method: Method, keep: float, options: dict[str, Any]
) -> tuple[Any, list[dict[str, Tensor]]]:
    """Encode as `encoded_with` does, for a method that acts in the tower."""
    clips = inputs.get("pixel_values_videos")
    frames = clips.shape[1] if modality == "video" and clips is not None else 1
    hooks = TowerReduction(tower_of(model, modality), method, keep, frames, options)
    with hooks.attached():
        output = encoded(model, modality, inputs)
    if output is None:
        return None, []
    longest = max(map(len, hooks.index))
    full = []
    for features, index in zip(output.pooler_output, hooks.index, strict=True):
        lead = len(features) - longest  # a CLS token that stays
        full.append(features.new_zeros(lead + hooks.total, features.shape[1]))
        full[-1][:lead], full[-1][lead + index] = features[:lead], features[lead : lead + len(index)]
    output.pooler_output = torch.stack(full) if isinstance(output.pooler_output, Tensor) else full
    place = [index + hooks.total * (frame % frames) for frame, index in enumerate(hooks.index)]
    return output, [
        {"left": torch.cat(place[first : first + frames])} for first in range(0, len(place), frames)
    ]


class TowerReduction:
    """Hooks after the layers of a CLIP tower; the CLS token stays.

    A method that needs keys (ToMe) acts after each layer up to the one that is used, with proportional attention;
    another (MustDrop) after that one. Both come after the layer's MLP, the first place that a hook reaches (ToMe's
    paper: before it).
    """

    def __init__(
        self, tower: Tower, method: Method, keep: float, frames: int, options: dict[str, Any]
    ) -> None:
        self.tower, self.method, self.keep, self.frames, self.options = tower, method, keep, frames, options
        self.every_layer = "keys" in method.needs
        self.total = 0
        self.index: list[Tensor] = []
        "[frames of all clips] of [K]: the places of the tokens that are left"
        self.size: Tensor | None = None
        "[frames, K]: how many tokens each stands for"
        self.keys: Tensor | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within the block the tower has the hooks."""
        with ExitStack() as stack:
            stack.enter_context(listening(self.tower.model))
            for number in range(self.tower.output + 1):
                layer, attention = self.tower.layers[number], self.tower.attentions[number]
                stack.enter_context(listener(attention, self.hear))
                before = attention.register_forward_pre_hook(self.proportional, with_kwargs=True)
                after = layer.register_forward_hook(
                    lambda _, args, x, number=number: self.after(number, x), prepend=True
                )
                for hook in (before, after):
                    stack.callback(hook.remove)
            yield

    def hear(self, heard: Heard) -> None:
        """Keep the keys of the layer."""
        self.keys = heard.key.float().mean(1)[:, 1:] if self.every_layer else None

    def proportional(self, _: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The logarithm of its size is added to what each key gets."""
        if self.size is None:
            return None
        size = F.pad(self.size.log(), (1, 0)).to(kwargs["hidden_states"].dtype)
        return args, {**kwargs, "attention_mask": size[:, None, None]}

    def after(self, number: int, x: Tensor) -> Tensor | None:
        """[frames, 1 + K, D] from a layer's output [frames, 1 + n, D]; frames that have fewer are filled up."""
        if not number:
            self.start(x)
        last = number == self.tower.output
        counts = self.counts if last else [self.plan[number]] * self.frames
        if counts[0] == x.shape[1] - 1 == counts[-1]:
            return None
        side = round(self.total**0.5)
        grid = (1, side, side) if not self.every_layer and side * side == self.total else None
        found = []
        for frame, rows in enumerate(x[:, 1:]):
            keys = None if self.keys is None else self.keys[frame]
            size = None if self.size is None else self.size[frame]
            tokens = Tokens(rows, grid, size=size, keys=keys)
            count = counts[frame % self.frames]
            found.append(reduce_tokens(tokens, self.method.name, count, **self.options))
            self.index[frame] = self.index[frame][found[-1].index]
        longest = max(map(len, found))
        self.size = None if last else torch.stack([part.size for part in found])
        features = [F.pad(part.features, (0, 0, 0, longest - len(part))) for part in found]
        return torch.cat([x[:, :1], torch.stack(features)], 1)

    def start(self, x: Tensor) -> None:
        """The number of tokens of a frame after each layer."""
        self.total = x.shape[1] - 1
        self.index = [torch.arange(self.total, device=x.device) for _ in x]
        self.counts = even(token_count(self.keep, self.total * self.frames), self.frames)
        layers = self.tower.output + 1
        last = max(self.counts)
        self.plan = tower_schedule(self.total, last, layers) if self.every_layer else [self.total] * layers
