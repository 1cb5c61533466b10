"""Token reduction before the LLM, through the seam that transformers has for it: features that are encoded already.

The placeholders of dropped tokens leave the prompt, and the model checks that the others are as many as the features.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from megavrc.errors import UserError
from megavrc.reduction import Method, Reduction, Tokens, find_method, reduce_tokens, token_count
from megavrc.vlm.visual import FAMILIES, PIXELS, Visual, encoded, visuals

GIVEN = ("grid", "text")  # fields of Tokens that the output of the encoder and the prompt are enough for


@dataclass(frozen=True)
class Request:
    """What is asked of a model."""

    method: Method
    keep: float
    positions: Literal["kept", "renumbered"]
    options: dict[str, Any]


@contextmanager
def reduce(
    model: Any,
    method: str,
    *,
    keep: float,
    positions: Literal["kept", "renumbered"] = "kept",
    **options: Any,
) -> Iterator[Any]:
    """Within the block `model.generate(..)` and `model(..)` see `keep` of the visual tokens; afterwards all again.

    `generate` returns the prompt as it was given, then the answer; `model(..)` returns logits of the reduced prompt,
    padded on the left. Every image and every clip is reduced alone. `positions`: kept tokens keep theirs, or the gaps
    are closed (M-RoPE: in all three rows together). Separators stay. Deepstack levels are taken at the kept places.
    Each turn of a conversation is given whole and encoded anew.
    UserError: a family, method or input that this host has not; ValueError: what `reduce_tokens` refuses.
    """
    if positions not in ("kept", "renumbered"):
        raise UserError(f"positions are kept or renumbered, not {positions!r}")
    token_count(keep, 1)
    request = Request(find_method(method), keep, positions, options)
    if why := refusal(model.config.model_type, request.method):
        raise UserError(f"{request.method.name} on {model.config.model_type}: {why}")
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        raise UserError(f"{type(model).__name__} takes no mm_encoder_outputs: use transformers 5.23 or newer")
    if "generate" in vars(model):
        raise UserError(
            "this model is reduced already, or its `generate` is replaced: leave that block first"
        )
    generate, inside = model.generate, False

    def generate_reduced(inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        given = {"input_ids": inputs, **kwargs} if inputs is not None else kwargs
        prompt, reduced = given.get("input_ids"), keeping_its_mask(reduced_inputs(model, given, request))
        inside = True
        try:
            answer = generate(None, *args, **reduced)
        finally:
            inside = False
        return answer if prompt is None else with_prompt(answer, prompt, reduced["input_ids"].shape[1])

    def before_forward(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if inside:
            return None
        given = dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | kwargs
        return (), reduced_inputs(model, given, request)

    hook = model.register_forward_pre_hook(before_forward, with_kwargs=True)
    model.generate = generate_reduced
    try:
        yield model
    finally:
        hook.remove()
        del model.generate


def refusal(family: str, method: Method) -> str:
    """Why the method cannot act on the family here; empty where it can."""
    if family not in FAMILIES:
        return f"no such family here: {', '.join(FAMILIES)}"
    if method.place != "projector":
        place = {"llm": "inside the LLM", "tower": "in the vision tower"}[method.place]
        return f"it acts {place}, and this host before the LLM"
    if missing := [need for need in method.needs if need not in GIVEN]:
        return f"it needs the tower's {', '.join(missing)}, which this host does not read"
    if method.kind == "temporal" and family in ("llava", "internvl"):
        return "it compares frames, and this family has none: frames come as images"
    return ""


def with_prompt(answer: Any, prompt: Tensor, cut: int) -> Any:
    """What `generate` returned, with the prompt as it was given in place of the reduced one of `cut` tokens."""
    sequences = answer if isinstance(answer, Tensor) else answer.sequences
    whole = prompt.repeat_interleave(len(sequences) // len(prompt), dim=0)
    whole = torch.cat([whole, sequences[:, cut:]], dim=1)
    if isinstance(answer, Tensor):
        return whole
    answer.sequences = whole
    return answer


def reduced_inputs(model: Any, inputs: dict[str, Any], request: Request) -> dict[str, Any]:
    """Inputs of `generate` or of the model, with fewer visual tokens; the same where they hold no picture."""
    if inputs.get("mm_encoder_outputs") or inputs.get("inputs_embeds") is not None:
        raise UserError("reduce takes input_ids and pixels, not features that are encoded already")
    outputs = {name: output for name in PIXELS if (output := encoded(model, name, inputs)) is not None}
    if not outputs:
        return inputs
    if (cache := inputs.get("past_key_values")) is not None and cache.get_seq_length():
        raise UserError("pictures after a cache: give the whole conversation without past_key_values")
    if inputs.get("position_ids") is not None or inputs.get("labels") is not None:
        raise UserError("reduce sets position_ids itself and cannot cut labels: leave both out")
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    stay = mask.bool()
    for modality, output in outputs.items():
        stay &= reduce_modality(model, modality, output, inputs, mask, request)
    rest = {name: value for name, value in inputs.items() if name not in sum(PIXELS.values(), ())}
    if stay.equal(mask.bool()):
        return {**rest, "mm_encoder_outputs": outputs}
    positions = position_ids(model, ids, mask, inputs)
    columns = [row.nonzero()[:, 0] for row in stay]
    cut = {
        "input_ids": left_padded([row[at] for row, at in zip(ids, columns, strict=True)]),
        "attention_mask": left_padded([row[at] for row, at in zip(mask, columns, strict=True)]),
        "position_ids": cut_positions(positions, columns, request.positions),
        "mm_encoder_outputs": outputs,
    }
    gone = {"image_grid_thw", "video_grid_thw", "image_sizes", "mm_token_type_ids", "second_per_grid_ts"}
    return {**{name: value for name, value in rest.items() if name not in gone}, **cut}


def keeping_its_mask(inputs: dict[str, Any]) -> dict[str, Any]:
    """One column of padding before a prompt whose positions have gaps and whose mask is all ones.

    `generate` drops a mask of ones; without mask and cache, transformers takes gaps for the seams of packed prompts.
    """
    positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
    if positions is None or mask is None or positions.ndim != 2 or not mask.all():
        return inputs
    names = ("input_ids", "attention_mask", "position_ids")
    return {**inputs, **{name: torch.nn.functional.pad(inputs[name], (1, 0)) for name in names}}


def reduce_modality(
    model: Any, modality: str, output: Any, inputs: dict[str, Any], mask: Tensor, request: Request
) -> Tensor:
    """Reduce the images or clips of `output` in place; [B, S] bool: all of the prompt but placeholders that go."""
    ids = inputs["input_ids"]
    name = f"{modality}_token_id"
    places = ids == getattr(model.config, name)
    seen = visuals(model, modality, output, inputs)
    if (count := sum(len(item.features) for item in seen)) != int(places.sum()):
        raise UserError(
            f"the prompt has {int(places.sum())} {name} placeholders for {count} {modality} tokens"
        )
    starts, before = places.nonzero()[:, 0].tolist(), 0
    words = mask.bool() & ~places
    for other in PIXELS:
        words &= ids != (getattr(model.config, f"{other}_token_id", None) or -1)
    left, stays = [], []
    for item in seen:
        row = starts[before]
        text = model.get_input_embeddings()(ids[row][words[row]]) if "text" in request.method.needs else None
        left.append(reduce_visual(item, text, request))
        stays.append(torch.zeros(len(item.features), dtype=torch.bool, device=ids.device))
        stays[-1][left[-1].index] = True
        before += len(item.features)
    features = [part.features for part in left]
    output.pooler_output = stacked(features) if isinstance(output.pooler_output, Tensor) else features
    if levels := getattr(output, "deepstack_features", None):
        output.deepstack_features = [
            [part[kept.index] for part, kept in zip(level, left, strict=True)] for level in levels
        ]
    stay = torch.ones_like(places)
    stay[places] = torch.cat(stays)
    return stay


def stacked(features: list[Tensor]) -> Tensor:
    """[items, K, D] for the families that take a tensor, [tokens, D] where the content decides K."""
    even = len({len(part) for part in features}) == 1
    return torch.stack(features) if even else torch.cat(features)


def reduce_visual(item: Visual, text: Tensor | None, request: Request) -> Reduction:
    """One image or clip; separators stay where they are."""
    own = (~item.separator).nonzero()[:, 0].to(item.features.device)
    tokens = Tokens(item.features[own], item.grid, text=text)
    found = reduce_tokens(tokens, request.method.name, token_count(request.keep, len(own)), **request.options)
    stay = item.separator.to(item.features.device, copy=True)
    stay[own[found.index]] = True
    features = item.features.clone()
    features[own[found.index]] = found.features
    index = stay.nonzero()[:, 0]
    return replace(found, features=features[index], index=index)


def position_ids(model: Any, ids: Tensor, mask: Tensor, inputs: dict[str, Any]) -> Tensor:
    """[R, B, S] of the whole prompt: one row, or with M-RoPE text, time, height and width."""
    text = (mask.long().cumsum(-1) - 1).clamp(min=0)[None]
    if not hasattr(model.model, "get_rope_index"):
        return text
    wanted = inspect.signature(model.model.get_rope_index).parameters
    given = {name: inputs[name] for name in wanted if inputs.get(name) is not None}
    kinds = (ids == model.config.image_token_id).int() + 2 * (ids == model.config.video_token_id).int()
    given = {"mm_token_type_ids": kinds, **given, "attention_mask": mask}
    return torch.cat([text, model.model.get_rope_index(**given)[0]])


def cut_positions(positions: Tensor, columns: list[Tensor], policy: str) -> Tensor:
    """[B, S'] or [4, B, S'] at `columns`; the text row of M-RoPE counts anew (gaps in it would mean packed prompts)."""
    rows = []
    for sample, at in enumerate(columns):
        kept = positions[:, sample, at]
        if policy == "renumbered":
            places = kept[-3:]  # the one row, or the three of M-RoPE
            kept = torch.cat([kept[:-3], torch.unique(places, return_inverse=True)[1]])
        if len(kept) > 1:
            kept = torch.cat([torch.arange(len(at), device=at.device)[None], kept[1:]])
        rows.append(kept.T)
    padded = left_padded(rows).permute(2, 0, 1)
    return padded if len(padded) > 1 else padded[0]


def left_padded(rows: list[Tensor]) -> Tensor:
    """[B, longest, ..], zeros on the left: ids, mask and positions of ragged prompts."""
    longest = max(map(len, rows))
    return torch.stack([torch.cat([row.new_zeros(longest - len(row), *row.shape[1:]), row]) for row in rows])
