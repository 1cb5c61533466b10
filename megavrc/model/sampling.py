"""Drawing tokens from logits: guidance, temperature, top-k, top-p, and one uniform number per token.

A token is drawn by inverting the cumulative distribution at a number from its sample's own generator, so a sample
does not depend on what else is in the batch.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .inputs import brief

Draft = Literal["neighbour", "repeat", "random"]
LIMIT = 1e6  # of guidance and temperature: beyond it float32 overflows
COLDEST = 1e-6  # below it a temperature is 0
PLAUSIBILITY = 0.1  # of folders that are made now, measured: docs/generation.md


@dataclass
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: divides the logits, at most 1e6; 0 takes the most likely token.
        top_k: keep only the k most likely tokens (0: all).
        top_p: keep the most likely tokens whose probabilities first reach this sum (1: all).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= LIMIT or self.top_k < 0 or not 0 < self.top_p <= 1:  # nor NaN
            raise ValueError(
                f"sampling needs temperature >= 0 (at most {LIMIT:g}), top_k >= 0 and 0 < top_p <= 1, got "
                f"{self.temperature}, {self.top_k} and {self.top_p}"
            )


@dataclass
class SamplingSettings:
    """Sampling of the first frame and of later frames, and classifier-free guidance.

    Attributes:
        first, later: see `Sampling`.
        guidance: s in u + s (c - u) on the logits, see `guide`; 1 is no guidance and costs nothing.
        later_guidance: guidance of the later frames (default: as `guidance`). With 1 in one part and not in the other,
            the passes of both take as long as with guidance.
        plausibility: guidance chooses among the tokens that are at least this times as likely as the most likely one
            under the condition; 0 is all, 1 only the most likely.
        speculative: draft tokens that a pass verifies where tokens are drawn one by one (0: none); same distribution,
            fewer passes, other draws for a seed.
        draft: first guess of a token: its `neighbour` (the cell above, or in the frame before), `repeat` of the newest
            token, or `random`.
        later_passes: passes for each later frame, one number or [G_1, .., G_F], the missing ones 1; more than 1 only
            of a model with `refine`. A pass settles some cells, and the next ones see them.
        row_passes: the same for each row of the first frame (`first_frame: row`).
    """

    first: Sampling = field(default_factory=Sampling)
    later: Sampling = field(default_factory=Sampling)
    guidance: float = 1.0
    speculative: int = 0
    draft: Draft = "neighbour"
    later_guidance: float | None = None
    plausibility: float = 0.0
    later_passes: Sequence[int] | int = 1
    row_passes: int = 1

    def __post_init__(self) -> None:
        scales = self.guidance_of(0), self.guidance_of(1)
        if not all(abs(scale) <= LIMIT for scale in scales) or not 0 <= self.plausibility <= 1:  # nor NaN
            raise ValueError(
                f"guidance and later_guidance are numbers of at most {LIMIT:g}, plausibility is one from 0 to 1; got "
                f"{scales[0]}, {scales[1]} and {self.plausibility}"
            )
        if self.speculative < 0 or self.draft not in get_args(Draft):
            raise ValueError(
                f"speculative is a number of tokens, draft one of {', '.join(get_args(Draft))}; "
                f"got {brief(self.speculative)} and {brief(self.draft)}"
            )
        given: Any = self.later_passes
        several = isinstance(given, list | tuple)
        counts = [*given, self.row_passes] if several else [given, self.row_passes]
        if not all(isinstance(n, Integral) and not isinstance(n, bool) and int(n) > 0 for n in counts):
            raise ValueError(
                "later_passes is a positive number or a list of them, row_passes a positive number; got "
                f"{brief(given)} and {brief(self.row_passes)}"
            )
        *later, self.row_passes = (int(n) for n in counts)  # of any library
        self.later_passes = later if several else later[0]

    def guidance_of(self, frame: int) -> float:
        """The guidance of a latent frame."""
        return self.guidance if frame == 0 or self.later_guidance is None else self.later_guidance

    @property
    def copies(self) -> int:
        """Rows of the batch that a sample takes: with guidance its unconditional copy rides along."""
        return 1 if self.guidance_of(0) == self.guidance_of(1) == 1.0 else 2


def _wide(logits: Tensor) -> Tensor:
    """Logits in at least float32: in float16 a strong guidance overflows."""
    return logits if logits.dtype == torch.float64 else logits.float()


def guide(conditional: Tensor, unconditional: Tensor, scale: float, plausibility: float = 0.0) -> Tensor:
    """Classifier-free guidance of logits [..., V]: u + s (c - u), and -inf for tokens that c finds implausible.

    The difference c - u lifts tokens that are unlikely under both over the likely ones. Contrastive decoding (arXiv
    2210.15097, section 3.3) has the same fault, and this remedy: keep tokens with p_c >= plausibility x max p_c.
    """
    if scale == 1.0:
        return conditional
    conditional, unconditional = _wide(conditional), _wide(unconditional)
    guided = unconditional + scale * (conditional - unconditional)
    if plausibility == 0:
        return guided
    least = conditional.amax(-1, keepdim=True) + math.log(plausibility)
    return guided.masked_fill(conditional < least, float("-inf"))


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution [..., V] after temperature, top-k and top-p, in at least float32."""
    wide = _wide(logits)
    if sampling.temperature < COLDEST or sampling.top_k == 1:
        most, where = wide.max(-1, keepdim=True)
        # Of NaN or infinity it is NaN, which `draw` refuses.
        return torch.zeros_like(wide).scatter_(-1, where, most * 0 + 1)
    wide = wide / sampling.temperature
    if 0 < sampling.top_k < wide.shape[-1]:
        kept, where = wide.topk(sampling.top_k, dim=-1)
        wide = torch.full_like(wide, float("-inf")).scatter(-1, where, kept)
    probs = wide.softmax(-1)
    if sampling.top_p < 1:
        ordered, where = probs.sort(dim=-1, descending=True)
        # A float32 sum differs from run to run on CUDA.
        before = ordered.cumsum(-1, dtype=torch.float64) - ordered
        probs = torch.zeros_like(probs).scatter(
            -1, where, ordered.where(before < sampling.top_p, ordered.new_zeros(()))
        )
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """Tokens at the given quantiles.

    Args:
        probs: [..., V], need not sum to exactly 1.
        uniform: [...] numbers in [0, 1).

    Returns:
        long [...]; never a token of probability 0.

    Raises:
        ValueError: probabilities that are no numbers (on a CPU; elsewhere the host would have to wait for them).
    """
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    total = cumulative[..., -1:]
    if total.device.type == "cpu" and not total.isfinite().all():
        raise ValueError(
            "the model's logits are NaN or infinite, so no token can be drawn: load it in float32 or bfloat16 (dtype), "
            "and see that its inputs are finite"
        )
    target = torch.minimum(uniform[..., None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True)[..., 0]


def uniforms(seeds: list[int], count: int, device: torch.device | str) -> Tensor:
    """[len(seeds), count] uniform float64 numbers in [0, 1); each row depends on its own seed only."""
    rows = []
    for seed in seeds:
        if seed < 2**32:
            generator = torch.Generator().manual_seed(seed)
            rows.append(torch.rand(count, generator=generator, dtype=torch.float64))
        else:  # of which torch's generator on the CPU would take the lower 32 bits only
            draw_next = random.Random(seed).random
            rows.append(torch.tensor([draw_next() for _ in range(count)], dtype=torch.float64))
    return torch.stack(rows).to(device)
