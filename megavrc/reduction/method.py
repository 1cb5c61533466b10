"""A method: a function, and what must be known to compare it. The registry, and the one door: `reduce_tokens`."""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, SupportsFloat, SupportsIndex

import torch

from .budget import even, token_count
from .order import kept
from .tokens import Reduction, Tokens

Function = Callable[..., Reduction]  # (tokens, count, **options)
SHARES = ("anchors", "clusters", "contextual", "important", "salient", "share")
"""Options that are a share of the tokens or of the budget."""


@dataclass(frozen=True)
class Method:
    """A named method: its recipe is `function`, at most 15 lines over the stages of this package."""

    name: str
    title: str
    paper: str
    "arXiv number, or `baseline`"
    place: Literal["tower", "projector", "llm"]
    "after layers of the vision tower; on the projector's output, before the LLM; before layers of the LLM"
    needs: tuple[str, ...]
    "fields of `Tokens`; `cls or attention` is the first that is there"
    kind: Literal["spatial", "temporal", "both"]
    "which redundancy it removes"
    scope: Literal["frame", "clip"]
    "`frame`: every frame of a clip alone, with an even share of the budget"
    guided: bool
    "by the prompt"
    rest: Literal["dropped", "merged", "merged in part"]
    "what becomes of the tokens that do not stay; `merged`: each goes into one that does, so that sizes add up to N"
    causal: bool
    "whether what is left of a frame never depends on later frames"
    left_out: str
    "stages of its paper that are not here"
    follows: str
    "which, where paper and code differ; empty where they do not"
    layers: tuple[int, ...]
    "inside the LLM: the layers of its paper"
    depth: int
    "of how many"
    calibrated: str
    "where the count depends on the content: the option that stands for the budget (`calibrate`); else empty"
    function: Function

    def layers_of(self, depth: int, earliest: int = 1) -> list[int]:
        """Layers before which it acts in an LLM of `depth` layers: ascending, in [earliest, depth)."""
        if earliest >= depth:
            raise ValueError(
                f"{self.name} acts inside the LLM: {depth} layers leave no room from layer {earliest} on"
            )
        return sorted(
            {min(depth - 1, max(earliest, round(layer * depth / self.depth))) for layer in self.layers}
        )

    @property
    def options(self) -> dict[str, Any]:
        """Options of the recipe and their values in the paper."""
        parameters = list(inspect.signature(self.function).parameters.values())[2:]
        return {parameter.name: parameter.default for parameter in parameters}

    def check_options(self, options: Mapping[str, Any]) -> None:
        """ValueError names options that the method has not, and values that they do not take."""
        if unknown := set(options) - set(self.options):
            known = ", ".join(self.options) or "it has none"
            raise ValueError(f"{self.name} has no option {', '.join(sorted(unknown))}: {known}")
        for name, value in options.items():
            if wanted := wanted_instead(name, self.options[name], value):
                raise ValueError(f"{self.name}: {name} is {wanted}, not {value!r:.60}")

    def describe(self) -> str:
        """All of it in lines for people."""
        acts = f"before layers {', '.join(map(str, self.layers))} of an LLM of {self.depth}"
        lines = {
            "what": inspect.getdoc(self.function),
            "paper": self.paper if self.paper == "baseline" else f"arXiv {self.paper}",
            "acts": {"llm": acts, "tower": "vision tower"}.get(self.place, "output of the projector"),
            "needs": ", ".join(self.needs) or "nothing",
            "redundancy": self.kind + (", frame by frame" if self.scope == "frame" else ""),
            "prompt": "guides it" if self.guided else "not used",
            "other tokens": self.rest,
            "in time": "causal" if self.causal else "a frame may depend on later ones",
            "left out": self.left_out,
            "follows": self.follows,
            "budget": self.calibrated and f"calibrated on other inputs by `{self.calibrated}`",
            "options": ", ".join(f"{name} {value}" for name, value in self.options.items()),
        }
        return "\n".join([self.title, *(f"  {key}: {value}" for key, value in lines.items() if value)])


def wanted_instead(name: str, default: Any, value: Any) -> str:
    """What an option of that default takes, where it does not take `value`; else empty."""
    if type(default) is int:
        if not isinstance(value, SupportsIndex) or isinstance(value, bool):
            return "a whole number"
        return "" if int(value) >= 1 or default < 1 else "a whole number, at least 1"  # below 1: a seed
    if type(default) is float:
        number: Any = value if isinstance(value, SupportsFloat) and not isinstance(value, bool) else math.nan
        if not abs(number) < math.inf:
            return "a finite number"
        return "" if name not in SHARES or 0 <= number <= 1 else "a share from 0 to 1"
    return ""


METHODS: dict[str, Method] = {}


def register(
    title: str,
    paper: str,
    *,
    place: Literal["tower", "projector", "llm"] = "projector",
    needs: tuple[str, ...] = (),
    kind: Literal["spatial", "temporal", "both"],
    scope: Literal["frame", "clip"] = "clip",
    guided: bool = False,
    rest: Literal["dropped", "merged", "merged in part"] = "dropped",
    causal: bool = False,
    left_out: str = "nothing",
    follows: str = "",
    layers: tuple[int, ...] = (),
    depth: int = 32,
    calibrated: str = "",
) -> Callable[[Function], Function]:
    """Decorator: the function becomes the method of its name in METHODS. The fields are those of `Method`."""

    def add(function: Function) -> Function:
        name = function.__name__
        if name in METHODS:
            raise ValueError(f"there is a method {name} already")
        METHODS[name] = Method(
            name,
            title,
            paper,
            place,
            needs,
            kind,
            scope,
            guided,
            rest,
            causal or scope == "frame",
            left_out,
            follows,
            layers,
            depth,
            calibrated,
            function,
        )
        return function

    return add


def find_method(name: str) -> Method:
    """The method of that name; ValueError names the nearest."""
    if not isinstance(name, str) or name not in METHODS:
        near = difflib.get_close_matches(str(name).lower(), METHODS, n=3) or sorted(METHODS)
        raise ValueError(f"no method {name!r:.60}: {', '.join(near)}")
    return METHODS[name]


def reduce_tokens(tokens: Tokens, name: str, count: int, **options: Any) -> Reduction:
    """Reduce one image or clip to `count` tokens by the named method; `count` = N is the identity, bit for bit.

    A calibrated method leaves what its option makes of the content, whatever `count` below N is. ValueError: NaN, a
    field that is missing, a count out of reach, an unknown option, a temporal method without frames.
    """
    method = find_method(name)
    if not isinstance(tokens, Tokens):
        raise ValueError(f"{name} reduces Tokens(features, ..), not {type(tokens).__name__}")
    if (bad := tokens.not_finite()) is not None:
        raise ValueError(f"{bad} holds NaN or an infinity: nothing is reduced")
    if not isinstance(count, SupportsIndex) or not 1 <= count <= len(tokens):
        raise ValueError(f"{name}: {count!r:.60} of {len(tokens)} tokens cannot be kept")
    for need in method.needs:
        if all(getattr(tokens, field) is None for field in need.split(" or ")):
            raise ValueError(f"{name} needs {need}, which the host does not give")
    if method.guided and tokens.text is not None and not len(tokens.text):
        raise ValueError(f"{name} is guided by the prompt, and this one has no words")
    method.check_options(options)
    if method.kind == "temporal" and tokens.shape[0] < 2:
        raise ValueError(f"{name} compares frames: it needs a clip, not an image")
    if count == len(tokens):
        index = torch.arange(count, device=tokens.features.device)
        return Reduction(tokens.features, index, index, tokens.sizes)
    parts = tokens.frames() if method.scope == "frame" else [tokens]
    found = [
        method.function(part, share, **options)
        if share or method.calibrated
        else kept(part, part.features.new_empty(0).long())
        for part, share in zip(parts, even(count, len(parts)), strict=True)
    ]
    reduction = consecutive(found)
    if not method.calibrated and len(reduction) != count:
        raise ValueError(f"{name} returned {len(reduction)} tokens where {count} were asked for")
    return reduction


def calibrate(name: str, samples: Sequence[Tokens], keep: float) -> dict[str, float]:
    """Options with which the method leaves `keep` of `samples` on average; {} where the count is exact anyway.

    The samples must be others than those that are measured. The count falls as the option grows. ValueError: no sample.
    """
    method = find_method(name)
    if not method.calibrated:
        return {}
    if not samples:
        raise ValueError(f"{name} is calibrated on pictures, and there is none: give inputs that hold some")
    wanted = sum(token_count(keep, len(tokens)) for tokens in samples)
    low, high = -16.0, 64.0
    for _ in range(24):
        middle = (low + high) / 2
        left = sum(len(reduce_tokens(tokens, name, 1, **{method.calibrated: middle})) for tokens in samples)
        low, high = (middle, high) if left > wanted else (low, middle)
    return {method.calibrated: high}


def consecutive(parts: list[Reduction]) -> Reduction:
    """Reductions of consecutive runs of tokens as one."""
    if len(parts) == 1:
        return parts[0]
    index, assign, seen, before = [], [], 0, 0
    for part in parts:
        index.append(part.index + before)
        assign.append(torch.where(part.assign < 0, part.assign, part.assign + seen))
        seen, before = seen + len(part), before + len(part.assign)
    return Reduction(
        torch.cat([part.features for part in parts]),
        torch.cat(index),
        torch.cat(assign),
        torch.cat([part.size for part in parts]),
    )


def schedule(method: Method, keep: float, total: int, depth: int = 1, earliest: int = 1) -> dict[int, int]:
    """{layer: visual tokens from there on}, for an LLM of `depth` layers; layer 0 is the LLM's input.

    A method inside the LLM acts at the layers of its paper, scaled to `depth` and not before `earliest`; with several
    of them each leaves the same share of what it sees. What the first layers see counts, so a small `keep` may be out
    of reach: ValueError.
    """
    if not isinstance(method, Method):
        raise ValueError(f"schedule takes a method, as find_method gives it, not {method!r:.60}")
    for what, number in (("total", total), ("depth", depth)):
        if not isinstance(number, SupportsIndex) or number < 1:
            raise ValueError(f"{what} is a whole number, at least 1, not {number!r:.60}")
    if method.place != "llm":
        return {0: token_count(keep, total)}
    token_count(keep, total)
    layers = method.layers_of(depth, earliest)
    spans = [after - layer for layer, after in zip(layers, [*layers[1:], depth], strict=True)]

    def budget(counts: Sequence[int]) -> int:
        return layers[0] * total + sum(span * count for span, count in zip(spans, counts, strict=True))

    def at(share: float) -> list[int]:
        return [max(1, math.floor(total * share ** (stage + 1) + 0.5)) for stage in range(len(layers))]

    wanted = keep * total * depth
    if (least := budget([1] * len(layers))) > wanted + depth / 2:
        raise ValueError(
            f"{method.name} acts from layer {layers[0]} of {depth} on, so it keeps at least "
            f"{least / (total * depth):.3f} of {total} tokens in all layers together: keep {keep} is out of its reach"
        )
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if budget(at(middle)) < wanted else (low, middle)
    counts = min(at(low), at(high), key=lambda counts: abs(budget(counts) - wanted))
    return dict(zip(layers, counts, strict=True))
