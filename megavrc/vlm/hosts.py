"""Token reduction in a model of transformers that somebody holds: before its LLM, inside it, or in its vision tower.

Before the LLM through the seam that transformers has for it, features that are encoded already: the placeholders of
dropped tokens leave the prompt, and the model checks that the others are as many as the features. Inside the LLM:
`inner`.
"""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from megavrc.errors import UserError
from megavrc.reduction import (
    Method,
    Reduction,
    calibrate,
    find_method,
    layer_counts,
    layer_weighted,
    schedule,
    token_count,
)
from megavrc.vlm.inner import Inner, InnerPlan, Picture
from megavrc.vlm.prompts import (
    Turn,
    cache_in,
    cache_of,
    cut_prompt,
    keeping_its_mask,
    position_ids,
    remember,
    turn_of,
    with_prompt,
    with_turn,
    without_pixels,
)
from megavrc.vlm.tower import encoded_with, tower_refusal
from megavrc.vlm.visual import FAMILIES, PIXELS, Placed, Selection, placed_in_prompt


@dataclass
class VisualTokens:
    """The visual tokens that an LLM has seen, over all pictures and calls of a `reduce` block; separators are none."""

    method: str
    layers: list[int]
    "tokens that entered each layer"
    unreduced: int = 0
    "tokens that would have entered each"
    calibrated: bool = False
    "whether the count follows the content, so that `keep` holds on average of the inputs it was calibrated on"

    @property
    def keep(self) -> float:
        """Layer-weighted: the share of visual tokens, mean over layers; 1 before anything was seen."""
        return layer_weighted(self.layers, self.unreduced) if self.unreduced else 1.0

    def __str__(self) -> str:
        counts = list(dict.fromkeys(self.layers))
        layers = "" if len(counts) == 1 else f", by layer {' '.join(map(str, self.layers))}"
        mark = ", follows the content" if self.calibrated else ""
        each = sum(self.layers) / len(self.layers)
        return f"{self.method}: {each:.1f} of {self.unreduced} tokens a layer ({self.keep:.1%}{layers}{mark})"

    def add(self, unreduced: int, layers: list[int]) -> None:
        """One more picture."""
        self.unreduced += unreduced
        self.layers = [sum(both) for both in zip(self.layers, layers, strict=True)]


@dataclass(frozen=True)
class Request:
    """A request to reduce the tokens of a model."""

    method: Method
    keep: float
    positions: Literal["kept", "renumbered"]
    selection: Literal["fresh", "frozen"]
    options: dict[str, Any]


def request_of(
    method: str,
    keep: float,
    positions: Literal["kept", "renumbered"] = "kept",
    selection: Literal["fresh", "frozen"] = "fresh",
    **options: Any,
) -> Request:
    """A request, checked as far as that goes without a model; the errors are those of `reduce`."""
    for name, value, allowed in (
        ("positions", positions, ("kept", "renumbered")),
        ("selection", selection, ("fresh", "frozen")),
    ):
        if value not in allowed:
            raise UserError(f"{name} is {' or '.join(allowed)}, not {value!r}")
    token_count(keep, 1)
    request = Request(find_method(method), keep, positions, selection, options)
    request.method.check_options(options)
    return request


@contextmanager
def reduce(
    model: Any,
    method: str,
    *,
    keep: float,
    positions: Literal["kept", "renumbered"] = "kept",
    selection: Literal["fresh", "frozen"] = "fresh",
    **options: Any,
) -> Iterator[VisualTokens]:
    """Within the block `model.generate(..)` and `model(..)` see `keep` of the visual tokens; afterwards all again.

    Yields the count of visual tokens, which grows with each call. `generate` returns the prompt as it was given, then
    the answer; `model(..)` returns logits of the reduced prompt, padded on the left. Every image and every clip is
    reduced alone. `positions`: kept tokens keep theirs, or the gaps are closed (M-RoPE: in all three rows together).
    Separators stay. Deepstack levels are taken at the kept places.
    A conversation is given whole each turn. With the `past_key_values` of the turn before, only what is new is
    computed, over the tokens that are left in it; without, all is encoded anew, and `selection` is made afresh or stays
    as the first turn made it (frozen: one block a conversation, rows in the same order).
    UserError: a family, method or input that this host has not; ValueError: what `reduce_tokens` refuses.
    """
    request = request_of(method, keep, positions, selection, **options)
    if why := refusal_of(model, request.method):
        raise UserError(f"{request.method.name} on {family_of(model)}: {why}")
    if (name := request.method.calibrated) and name not in options and keep < 1:
        raise UserError(
            f"{method} leaves what its threshold makes of a picture: give {name}, as `calibrated` finds it on others"
        )
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        raise UserError(f"{type(model).__name__} takes no mm_encoder_outputs: use transformers 5.23 or newer")
    if "generate" in vars(model):
        raise UserError(
            "this model is reduced already, or its `generate` is replaced: leave that block first"
        )
    block = ReducedModel(model, request)
    with ExitStack() as stack:
        if block.inner is not None:
            stack.enter_context(block.inner.attached())
        hook = model.register_forward_pre_hook(block.before_forward, with_kwargs=True)
        stack.callback(hook.remove)
        stack.callback(model.register_forward_hook(block.after_forward).remove)
        block.generate, model.generate = model.generate, block.generate_reduced
        stack.callback(delattr, model, "generate")
        yield block.seen


@torch.no_grad()
def calibrated(model: Any, method: str, keep: float, inputs: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Options with which the method leaves `keep` of the tokens of all pictures in `inputs`, on average.

    For `reduce(.., **options)` on other inputs; {} for a method whose count is exact anyway, and nothing is run then.
    """
    found = find_method(method)
    token_count(keep, 1)
    if not found.calibrated or keep == 1:
        return {}
    samples = []
    for given in inputs:
        for name in PIXELS:
            output, known = encoded_with(model, name, given, found, keep, {})
            items = placed_in_prompt(model, name, output, given, known) if output is not None else []
            samples += [part for item in items for part in item.visual.tokens(found, None)]
    return calibrate(method, samples, keep)


def refusal(family: str, method: Method, tower: str = "") -> str:
    """Why the method cannot act on the family (with a vision tower of another `model_type` than usual) here."""
    if family not in FAMILIES:
        return f"no such family here: {', '.join(FAMILIES)}"
    if method.kind == "temporal" and family in ("llava", "internvl"):
        return "it compares frames, and this family has none: frames come as images"
    return tower_refusal(family, method, tower)


def family_of(model: Any) -> str:
    """The `model_type` of a model of transformers, or the class of another."""
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))


def refusal_of(model: Any, method: Method) -> str:
    """`refusal` of a model of transformers."""
    vision = getattr(getattr(model, "config", None), "vision_config", None)
    return refusal(family_of(model), method, getattr(vision, "model_type", ""))


class ReducedModel:
    """A model within a `reduce` block."""

    def __init__(self, model: Any, request: Request) -> None:
        self.model, self.request = model, request
        depth = model.config.get_text_config().num_hidden_layers
        self.seen = VisualTokens(request.method.name, [0] * depth, calibrated=bool(request.method.calibrated))
        self.selection = Selection(request.selection == "frozen")
        self.inner: Inner | None = None
        if request.method.place == "llm":
            self.inner = Inner(model, request.method, request.positions, request.options, self.selection)
            schedule(request.method, request.keep, 1000, depth, self.inner.stages[0])  # refuses early
        self.generate: Any = None
        self.inside = False  # of `generate`, whose forward passes have their inputs already
        self.turn: Turn | None = None  # of the forward pass that runs

    def generate_reduced(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Generate as `model.generate` does."""
        given = {"input_ids": inputs, **kwargs} if inputs is not None else kwargs
        given = masking_padding(given, args, self.model)
        cache = cache_of(given)
        if before := turn_of(cache):
            rest, turn = without_pixels(given), before.continued(given, placeholders(self.model))
        else:
            with torch.no_grad():
                rest, reduced = self.reduced(given)
            if reduced is None:
                return self.generate(None, *args, **given)
            turn = keeping_its_mask(reduced)
        if self.inner is not None:
            refuse_rewinding(given, args, self)
        self.inside = True
        try:
            lengths = lengths_of_cut(given, args, self.model, turn)
            answer = self.generate(None, *args, **{**with_turn(rest, turn), **lengths})
        finally:
            self.inside = False
        remember(cache_in(answer) if cache is None else cache, before or turn)
        return with_prompt(answer, turn)

    def before_forward(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before `model(..)`: fewer inputs; after a cache the positions and the mask that go with it."""
        if self.inside:
            return None
        given = dict(zip(inspect.signature(self.model.forward).parameters, args, strict=False)) | kwargs
        self.turn = None
        if before := turn_of(cache_of(given)):
            return (), {**without_pixels(given), **before.following(given)}
        rest, self.turn = self.reduced(given)
        if self.turn is None or (self.turn.whole and not (self.inner and self.inner.plan)):
            return (), rest
        return (), with_turn(rest, self.turn)

    def after_forward(self, _: Any, args: tuple[Any, ...], output: Any) -> None:
        """The columns that the cache of a forward pass holds."""
        if not self.inside and self.turn is not None:
            remember(cache_in(output), self.turn)
            self.turn = None

    def reduced(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], Turn | None]:
        """Inputs with features for pixels, and the prompt that goes with them; None where they hold no picture."""
        if self.inner is not None:
            self.inner.plan = None
        if inputs.get("mm_encoder_outputs") or inputs.get("inputs_embeds") is not None:
            raise UserError("reduce takes input_ids and pixels, not features that are encoded already")
        method, keep, options = self.request.method, self.request.keep, self.request.options
        outputs, known = {}, {}
        for name in PIXELS:
            output, known[name] = encoded_with(self.model, name, inputs, method, keep, options)
            if output is not None:
                outputs[name] = output
        if not outputs:
            return inputs, None
        if (cache := cache_of(inputs)) is not None and cache.get_seq_length():
            raise UserError("pictures after a cache: give the whole conversation without a cache")
        if inputs.get("position_ids") is not None or inputs.get("labels") is not None:
            raise UserError("reduce sets position_ids itself and cannot cut labels: leave both out")
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        words = mask.bool() & ~torch.isin(ids, ids.new_tensor(placeholders(self.model)))
        items = [
            item
            for name, output in outputs.items()
            for item in placed_in_prompt(self.model, name, output, inputs, known[name])
        ]
        rows = [
            sorted((item for item in items if item.row == row), key=lambda item: int(item.columns[0]))
            for row in range(len(ids))
        ]
        self.selection.check(rows)
        rest = {**without_pixels(inputs), "mm_encoder_outputs": outputs}
        positions = position_ids(self.model, ids, mask, inputs)
        if self.inner is not None:
            pictures = [[self.picture(item, self.inner) for item in row] for row in rows]
            if self.request.keep < 1:
                self.inner.plan = InnerPlan(pictures, [row.nonzero()[:, 0] for row in words], mask.bool())
            return rest, Turn(ids, ids, mask, positions if len(positions) > 1 else positions[0])
        stay = mask.bool()
        texts = [ids[row][words[row]] for row in range(len(ids))]
        self.fewer_features(outputs, items, rows, texts, stay)
        # Gaps in a whole prompt are the model's own: seconds between the frames of a clip.
        policy = self.request.positions if self.request.keep < 1 else "kept"
        return rest, cut_prompt(ids, mask, positions, stay, policy)

    def picture(self, item: Placed, inner: Inner) -> Picture:
        """Its place in the prompt, and the number of its tokens that go into each layer."""
        columns = item.columns[item.visual.own]
        counts = schedule(self.request.method, self.request.keep, len(columns), inner.depth, inner.stages[0])
        self.seen.add(len(columns), layer_counts(counts, len(columns), inner.depth))
        return Picture(columns, counts)

    def select(self, item: Placed, ids: Tensor) -> Reduction:
        """The tokens left of a picture; `ids` are the words of its prompt."""
        method = self.request.method
        text = self.model.get_input_embeddings()(ids) if "text" in method.needs else None
        return item.visual.reduced(method, self.request.keep, text, self.request.options)

    def fewer_features(
        self,
        outputs: dict[str, Any],
        items: list[Placed],
        rows: list[list[Placed]],
        texts: list[Tensor],
        stay: Tensor,
    ) -> None:
        """Reduce the pictures of the encoder's outputs, and the columns of the prompts that `stay`, in place."""
        left: dict[int, Reduction] = {}
        for number, item in ((number, item) for row in rows for number, item in enumerate(row)):
            found = self.selection.of(item.row, number, 0, partial(self.select, item, texts[item.row]))
            left[id(item)] = found
            stay[item.row, item.columns] = False
            stay[item.row, item.columns[found.index]] = True
            own = len(item.visual.own)
            kept = len(found) - (len(item.columns) - own)
            self.seen.add(own, [kept] * len(self.seen.layers))
        for name, output in outputs.items():
            found_here = [left[id(item)] for item in items if item.modality == name]
            features = [found.features for found in found_here]
            output.pooler_output = stacked(features) if isinstance(output.pooler_output, Tensor) else features
            if levels := getattr(output, "deepstack_features", None):
                output.deepstack_features = [
                    [part[found.index] for part, found in zip(level, found_here, strict=True)]
                    for level in levels
                ]


def stacked(features: list[Tensor]) -> Tensor:
    """[items, K, D] for the families that take a tensor, [tokens, D] where the content decides K."""
    even = len({len(part) for part in features}) == 1
    return torch.stack(features) if even else torch.cat(features)


def placeholders(model: Any) -> list[int]:
    """The ids that stand for visual tokens."""
    tokens = (getattr(model.config, f"{name}_token_id", None) for name in PIXELS)
    return [token for token in tokens if token is not None]


def settings_of(given: dict[str, Any], args: tuple[Any, ...], model: Any, name: str) -> Iterator[Any]:
    """What a call of `generate` and its configurations say of a setting, the strongest first."""
    configs = (given.get("generation_config"), *args, model.generation_config)
    said = (given.get(name), *(getattr(config, name, None) for config in configs))
    return (value for value in said if value is not None)


def masking_padding(given: dict[str, Any], args: tuple[Any, ...], model: Any) -> dict[str, Any]:
    """`given` with the mask that `generate` makes of the padding in it where none is given."""
    ids, pad = given.get("input_ids"), next(settings_of(given, args, model, "pad_token_id"), None)
    if ids is None or pad is None or given.get("attention_mask") is not None:
        return given
    ends = next(settings_of(given, args, model, "eos_token_id"), None)
    if pad in (ends if isinstance(ends, list) else [ends]):  # then it may be a word
        return given
    return given | {"attention_mask": ids.ne(pad).long()}


def lengths_of_cut(given: dict[str, Any], args: tuple[Any, ...], model: Any, turn: Turn) -> dict[str, int]:
    """`max_length` and `min_length` for the prompt that the LLM has: callers count the whole prompt in them."""
    cut = turn.given.shape[1] - turn.ids.shape[1]

    def setting(name: str) -> int | None:
        return next(filter(None, settings_of(given, args, model, name)), None)

    return {
        name: max(0, length - cut)
        for name in ("max_length", "min_length")
        if (length := setting(name)) and not setting(name.replace("length", "new_tokens"))
    }


def refuse_rewinding(given: dict[str, Any], args: tuple[Any, ...], reduced: ReducedModel) -> None:
    """Decoding that goes back in the cache, or takes the prompt in chunks, is not possible where layers differ."""
    configs = (given.get("generation_config"), *args, reduced.model.generation_config)
    for name in ("assistant_model", "prompt_lookup_num_tokens", "prefill_chunk_size"):
        if given.get(name) is not None or any(getattr(config, name, None) is not None for config in configs):
            method = reduced.request.method.name
            raise UserError(
                f"{method} acts inside the LLM, whose layers then differ in length: leave out {name}"
            )
