"""The output of a model's encoder as images and clips: tokens, their grids, and the separators between them.

Separators (newlines between rows of tiles or after a clip, the CLS token of a frame) always stay and are outside the
budget: they hold places, not pictures.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from megavrc.errors import UserError
from megavrc.reduction import Method, Reduction, Tokens, reduce_tokens, token_count
from megavrc.reduction.method import consecutive
from megavrc.reduction.order import kept

PIXELS = {"image": ("pixel_values", "pixel_values_images"), "video": ("pixel_values_videos",)}
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
TILED = ("llava_next_video", "llava_onevision")
FAMILIES = ("llava", *TILED, "video_llava", *QWEN, "internvl")

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Visual:
    """One image or clip as the encoder returns it."""

    features: Tensor
    "[N, D], separators among them"
    separator: Tensor
    "[N] bool"
    grids: tuple[Grid, ...]
    "(T, H, W) of the tokens that are no separators; an image in tiles has two, the small whole and the tiles together"
    known: dict[str, Any] = field(default_factory=dict)
    "what the tower says of them: fields of `Tokens`"
    left: Tensor | None = None
    "[K]: which of them a method in the tower has left; the others are zeros"

    @property
    def own(self) -> Tensor:
        """[n]: places of the tokens that are no separators."""
        return (~self.separator).nonzero()[:, 0]

    def tokens(self, method: Method, text: Tensor | None) -> list[Tokens]:
        """The tokens as the method sees them: the parts of an image in tiles apart where it needs a grid, else in
        one.
        """
        grid = self.grids[0] if len(self.grids) == 1 else None
        whole = Tokens(self.features[self.own], grid, text=text, **self.known)
        if grid is not None or "grid" not in method.needs or not self.grids:
            return [whole]
        parts, first = [], 0
        for frames, height, width in self.grids:
            area = frames * height * width
            parts.append(whole.part(slice(first, first + area), (frames, height, width)))
            first += area
        return parts

    def reduced(self, method: Method, keep: float, text: Tensor | None, options: dict[str, Any]) -> Reduction:
        """The tokens left of it, separators included."""
        left = torch.arange(len(self.own), device=self.own.device) if keep == 1 else self.left
        if left is not None:
            return self.only(kept(Tokens(self.features[self.own]), left))
        parts = self.tokens(method, text)
        counts = [token_count(keep, len(part)) for part in parts]
        found = [
            reduce_tokens(part, method.name, n, **options) for part, n in zip(parts, counts, strict=True)
        ]
        return self.only(consecutive(found))

    def only(self, left: Reduction) -> Reduction:
        """What is left of its tokens, with the separators."""
        own = self.own
        stay = self.separator.clone()
        stay[own[left.index]] = True
        features = self.features.clone()
        features[own[left.index]] = left.features
        index = stay.nonzero()[:, 0]
        return replace(left, features=features[index], index=index)


def encoded(model: Any, modality: str, inputs: dict[str, Any]) -> Any:
    """The output of `get_image_features` or `get_video_features` for the pixels in `inputs`; None without pixels."""
    names = PIXELS[modality]
    if all(inputs.get(name) is None for name in names) or not hasattr(
        model.model, f"get_{modality}_features"
    ):
        return None
    function = getattr(model.model, f"get_{modality}_features")
    wanted = inspect.signature(function).parameters
    given = {name: inputs[name] for name in wanted if inputs.get(name) is not None and name != "kwargs"}
    return function(**given, return_dict=True)


def visuals(model: Any, modality: str, output: Any, inputs: dict[str, Any]) -> list[Visual]:
    """The images or clips of an encoder's output, in the order of their placeholders."""
    family = model.config.model_type
    features = list(output.pooler_output)
    if family == "video_llava" and modality == "video":  # frames, each behind its CLS token
        clips, frames = inputs["pixel_values_videos"].shape[:2]
        features = list(output.pooler_output.reshape(clips, -1, output.pooler_output.shape[-1]))
        separator = torch.zeros(frames, len(features[0]) // frames, dtype=torch.bool)
        separator[:, 0] = True
        return [squares(clip, separator.flatten().to(clip.device), frames) for clip in features]
    if family in QWEN:
        merge = model.config.vision_config.spatial_merge_size
        grids = [(t, h // merge, w // merge) for t, h, w in inputs[f"{modality}_grid_thw"].tolist()]
        none = [torch.zeros(len(part), dtype=torch.bool, device=part.device) for part in features]
        return [Visual(part, no, (grid,)) for part, no, grid in zip(features, none, grids, strict=True)]
    newline = getattr(model.model, "image_newline", None)
    whole = family == "llava" and model.config.vision_feature_select_strategy == "full"
    found = []
    for part in features:
        separator = torch.zeros(len(part), dtype=torch.bool, device=part.device)
        if newline is not None:
            separator = (part == newline.to(part)).all(-1)
        if whole and model.config.vision_config.model_type == "clip_vision_model":
            separator[0] = True  # the CLS token
        if modality == "image" and family in TILED:
            found.append(tiles_of(model, part, separator))
        else:
            frames = inputs["pixel_values_videos"].shape[1] if modality == "video" else 1
            found.append(squares(part, separator, frames))
    return found


@dataclass
class Placed:
    """A picture of a batch, and the columns of its placeholders."""

    visual: Visual
    modality: str
    row: int
    columns: Tensor
    "[N] of the prompt, separators among them"


def placed_in_prompt(
    model: Any, modality: str, output: Any, inputs: dict[str, Any], known: list[dict[str, Tensor]]
) -> list[Placed]:
    """The pictures of an encoder's output, in its order, with what is known of each.

    UserError where the placeholders are of another number.
    """
    name = f"{modality}_token_id"
    places = (inputs["input_ids"] == getattr(model.config, name)).nonzero()
    seen = visuals(model, modality, output, inputs)
    if known:
        seen = [
            replace(item, left=fields.pop("left", None), known=fields)
            for item, fields in zip(seen, known, strict=True)
        ]
    if (count := sum(len(item.features) for item in seen)) != len(places):
        raise UserError(f"the prompt has {len(places)} {name} placeholders for {count} {modality} tokens")
    found = []
    for item, place in zip(seen, places.split([len(item.features) for item in seen]), strict=True):
        if (place[:, 0] != place[0, 0]).any():
            raise UserError(f"a prompt has fewer {name} placeholders than its {modality} has tokens")
        found.append(Placed(item, modality, int(place[0, 0]), place[:, 1]))
    return found


class Selection:
    """The tokens of each picture that stay: selected anew each turn, or, frozen, as in a conversation's first turn."""

    def __init__(self, frozen: bool) -> None:
        self.frozen = frozen
        self.found: dict[tuple[int, int, int], Reduction] = {}
        self.features: dict[tuple[int, int], Tensor] = {}

    def of(self, row: int, number: int, layer: int, select: Callable[[], Reduction]) -> Reduction:
        """What `select` returns for a picture, by its number in the row, before a layer of the LLM (0: before it)."""
        if not self.frozen:
            return select()
        key = (row, number, layer)
        if key not in self.found:
            self.found[key] = select()
        return self.found[key]

    def check(self, rows: list[list[Placed]]) -> None:
        """UserError where the selection is frozen and a picture of a later turn is another than in the first."""
        for row, items in enumerate(rows if self.frozen else ()):
            for number, item in enumerate(items):
                now = item.visual.features
                first = self.features.setdefault((row, number), now)
                if first.shape != now.shape or not torch.allclose(
                    first, now, rtol=0.05, atol=0.05 * float(now.std())
                ):
                    raise UserError(
                        f"picture {number + 1} of row {row + 1} is another than in the first turn, whose selection is "
                        "frozen: one block a conversation"
                    )


def tiles_of(model: Any, features: Tensor, separator: Tensor) -> Visual:
    """An image in tiles: the small whole, then all tiles as one picture, each of its rows ended by a separator."""
    config = model.config.vision_config
    side = config.image_size // config.patch_size
    rows, rest = int(separator.sum()), int((~separator).sum()) - side * side
    tiles = ((1, rows, rest // rows),) if rest and rows else ()
    return Visual(features, separator, ((1, side, side), *tiles))


def squares(features: Tensor, separator: Tensor, frames: int) -> Visual:
    """Square frames, and separators."""
    area = int((~separator).sum()) // frames
    side = round(area**0.5)
    return Visual(features, separator, ((frames, side, side),) if side * side == area else ())
