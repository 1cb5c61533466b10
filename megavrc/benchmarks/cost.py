"""The cost of generating a clip: seconds by phase, the floor that memory bandwidth sets."""

from typing import TypedDict

import torch

from megavrc.measure import clock
from megavrc.model import VRC, ClipRequest, VideoPipeline

POINTS = 5  # cache lengths at which token steps are sampled
FLOOR = "(bytes of trunk and head x passes + bytes of the keys and values seen by each) / measured bandwidth"


class Phases(TypedDict):
    """Seconds for the tokens of a batch of clips.

    Attributes:
        prefill: the condition's pass.
        first_frame: the rest of the first frame.
        later_frames: all others.
        step: of one pass for the next token (of the first frame's rows with `first_frame: row`; with speculation, for
            the next tokens), sampling included.
        accepted: tokens of a sample that speculation accepted a pass, 0 without.
    """

    prefill: float
    first_frame: float
    later_frames: float
    step: float
    accepted: float


@torch.no_grad()
def clip_phases(pipeline: VideoPipeline, request: ClipRequest) -> Phases:
    """Generate a batch of clips and time its phases."""
    config, device = pipeline.vrc.config, str(pipeline.vrc.tokens.weight.device)
    now = clock(device)
    if device.startswith("cuda"):  # graphs are captured in the first clip of a job
        pipeline.generate(request, "ids")
    with pipeline.sampler(request) as sampler:  # on CUDA in that clip's memory; the next one takes it too
        start = now()
        sampler.prefill()
        prefill = now() - start
    passes: list[float] = []
    pipeline.on_speculation = lambda _, counts: passes.append(counts.double().mean().item())
    times = [now()]
    for _ in pipeline.stream(request, "ids"):
        times.append(now())
    first, later = times[1] - times[0] - prefill, times[-1] - times[1]
    steps = len(token_passes(pipeline.vrc)) if not passes else sum(passes) - 1
    return Phases(
        prefill=prefill,
        first_frame=first,
        later_frames=later,
        step=(first + later if config.prediction == "token" else first) / steps,
        accepted=config.tokens_per_frame * len(passes) / sum(passes) if passes else 0.0,
    )


@torch.no_grad()
def sampled_phases(pipeline: VideoPipeline, request: ClipRequest, count: int) -> Phases:
    """`clip_phases` from `count` token steps at each of a few cache lengths; the steps between are interpolated."""
    config, now = pipeline.vrc.config, clock(str(pipeline.vrc.tokens.weight.device))
    tokens, steps = config.tokens_per_frame, len(token_passes(pipeline.vrc))
    points = torch.linspace(0, steps - count, POINTS).long().tolist()
    seconds = []
    with pipeline.sampler(request) as sampler:
        start = now()
        sampler.prefill()
        prefill = now() - start
        for point in points:
            start = now()
            sampler.seek(1 + point)
            for token in range(1 + point, 1 + point + count):
                sampler.token(token, request.settings.first)
            seconds.append((now() - start) / count)
        start = now()
        if config.has_segments:
            sampler.seek(tokens)
            for index in range(1, 1 + config.frames):
                sampler.frame(index)
        later = now() - start
    middles = torch.tensor(points).double() + (count - 1) / 2
    whole = _integral(middles, torch.tensor(seconds).double(), steps)
    first = whole
    if config.prediction == "token":
        first = _integral(middles, torch.tensor(seconds).double(), tokens - 1)
        later = whole - first
    return Phases(prefill=prefill, first_frame=first, later_frames=later, step=whole / steps, accepted=0.0)


def _integral(steps: torch.Tensor, seconds: torch.Tensor, count: int) -> float:
    """Seconds of the steps 0 .. count - 1, linear between (and beyond) those measured."""
    every = torch.arange(count, dtype=torch.float64)
    left = (torch.searchsorted(steps, every) - 1).clamp(0, len(steps) - 2)
    slope = (seconds[left + 1] - seconds[left]) / (steps[left + 1] - steps[left])
    return float((seconds[left] + slope * (every - steps[left])).sum())


def token_passes(model: VRC) -> list[int]:
    """The rows that each pass sees that draws a token (or a row of the first frame), the prefill's left out."""
    config = model.config
    slots, count = config.condition.slots, config.tokens_per_frame
    if config.first_frame == "row":
        return [slots + row * config.grid for row in range(1, config.grid + 1)]
    frames = 1 + config.frames if config.prediction == "token" else 1
    return list(range(slots + 1, slots + frames * count))


def floor_seconds(model: VRC, batch: int, guidance: float, bandwidth: float) -> float:
    """Seconds that the passes of `token_passes` take at least, all together, at this bandwidth (bytes a second).

    See `FLOOR`; with guidance twice as many samples have keys and values.
    """
    config, passes = model.config, token_passes(model)
    weights = sum(
        p.numel() * p.element_size() for part in (model.trunk, model.head) for p in part.parameters()
    )
    samples = batch if guidance == 1 else 2 * batch
    a_row = 2 * config.layers * config.width * model.tokens.weight.element_size() * samples
    return (weights * len(passes) + a_row * sum(passes)) / bandwidth


def memory_bandwidth(device: str) -> float:
    """Bytes a second of the faster of summing and copying a GiB, the best of a few tries."""
    size = 2**30
    source = torch.zeros(size // 4, device=device)
    target, now, best = torch.empty_like(source), clock(device), 0.0
    for _ in range(5):
        for work, moved in ((lambda: source.sum(), size), (lambda: target.copy_(source), 2 * size)):
            start = now()
            work()
            best = max(best, moved / (now() - start))
    return best
