"""What generating a clip costs: seconds by phase, the floor that memory bandwidth sets."""

import time
from collections.abc import Callable
from typing import TypedDict

import torch

from megavrc.model import VRC, SamplingSettings
from megavrc.model.condition import Condition
from megavrc.model.cuda_graphs import keep, workspace
from megavrc.model.decoder import Decoder, Memory
from megavrc.model.generate import generate_frames
from megavrc.model.sampling import draw, probabilities

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


def clock(device: str) -> Callable[[], float]:
    """Seconds, when the device has done all that was asked of it."""

    def now() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def clip_phases(model: VRC, condition: Condition, settings: SamplingSettings, seeds: list[int]) -> Phases:
    """Generate a batch of clips, one per seed, and time its phases."""
    config, device, batch, job = model.config, str(model.tokens.weight.device), len(seeds), str(settings)
    now = clock(device)
    if device.startswith("cuda"):  # graphs are captured in the first clip of a job
        list(generate_frames(model, condition, settings, seeds))
    space = workspace(model, batch, job, settings.guidance)  # on CUDA that clip's; the next one takes it too
    start = now()
    _prefill(model, settings, batch, space.memory)
    prefill = now() - start
    keep(model, batch, job, space)
    del space
    passes: list[float] = []
    times = [now()]
    for _ in generate_frames(
        model,
        condition,
        settings,
        seeds,
        on_speculation=lambda _, counts: passes.append(counts.double().mean().item()),
    ):
        times.append(now())
    first, later = times[1] - times[0] - prefill, times[-1] - times[1]
    steps = len(token_passes(model)) if not passes else sum(passes) - 1
    return Phases(
        prefill=prefill,
        first_frame=first,
        later_frames=later,
        step=(first + later if config.prediction == "token" else first) / steps,
        accepted=config.tokens_per_frame * len(passes) / sum(passes) if passes else 0.0,
    )


@torch.no_grad()
def sampled_phases(model: VRC, settings: SamplingSettings, batch: int, count: int) -> Phases:
    """As `clip_phases`, from `count` token steps at each of a few cache lengths; the steps between are interpolated."""
    config, now = model.config, clock(str(model.tokens.weight.device))
    memory = Memory(model, batch, settings.guidance)
    start = now()
    decoder = _prefill(model, settings, batch, memory)
    prefill = now() - start
    slots, tokens = config.condition.slots, config.tokens_per_frame
    rows = token_passes(model)
    token = torch.zeros(batch, 1, dtype=torch.long, device=model.tokens.weight.device)
    points = torch.linspace(0, len(rows) - count, POINTS).long().tolist()
    seconds = []
    for point in points:
        start = now()
        for step in range(count):
            decoder.cache.truncate(slots + point + step)
            decoder.push_raw(token)
            probs = probabilities(decoder.raw_logits()[:, 0], settings.first)
            uniform = torch.rand(batch, dtype=torch.float64, device=token.device)
            token = draw(probs, uniform)[:, None]
        seconds.append((now() - start) / count)
    middles = torch.tensor(points).double() + (count - 1) / 2
    whole = _integral(middles, torch.tensor(seconds).double(), len(rows))
    start = now()
    if config.has_segments:
        decoder.cache.truncate(slots + tokens - 1)
        decoder.push_raw(token)
        for _ in range(config.frames):
            decoder.push_segment(model.tokens(token.expand(-1, tokens)))
            logits, _ = decoder.segment_logits()
            draw(probabilities(logits, settings.later), torch.rand(batch, tokens).double().to(token.device))
    later = now() - start
    if config.prediction == "token":
        first = _integral(middles, torch.tensor(seconds).double(), tokens - 1)
        later = whole - first
    else:
        first = whole
    return Phases(
        prefill=prefill, first_frame=first, later_frames=later, step=whole / len(rows), accepted=0.0
    )


def _integral(steps: torch.Tensor, seconds: torch.Tensor, count: int) -> float:
    """Seconds of the steps 0 .. count - 1, linear between (and beyond) those measured."""
    every = torch.arange(count, dtype=torch.float64)
    left = (torch.searchsorted(steps, every) - 1).clamp(0, len(steps) - 2)
    slope = (seconds[left + 1] - seconds[left]) / (steps[left + 1] - steps[left])
    return float((seconds[left] + slope * (every - steps[left])).sum())


@torch.no_grad()
def _prefill(model: VRC, settings: SamplingSettings, batch: int, memory: Memory) -> Decoder:
    decoder = Decoder(model, model.null_condition(batch), batch, settings.guidance, memory)
    decoder.raw_logits()
    return decoder


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


def memory_bandwidth(device: str, size: int = 2**30) -> float:
    """Bytes a second of the faster of summing and copying a GiB, the best of a few tries."""
    source = torch.zeros(size // 4, device=device)
    target, now, best = torch.empty_like(source), clock(device), 0.0
    for _ in range(5):
        for work, moved in ((lambda: source.sum(), size), (lambda: target.copy_(source), 2 * size)):
            start = now()
            work()
            best = max(best, moved / (now() - start))
    return best
