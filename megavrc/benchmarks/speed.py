"""Time per clip of generators: warm, sequential, median of several clips."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch

from megavrc.benchmarks.generate_cases import CHANGES
from megavrc.errors import UserError
from megavrc.files import write_result
from megavrc.generation.evaluate import sampling_settings
from megavrc.generation.folder import load_folder
from megavrc.model import VRC, ClipRequest, SamplingSettings, VideoPipeline
from megavrc.model.decoder import store_for_generation


class Speed(TypedDict):
    """Seconds per clip."""

    median: float
    minimum: float
    maximum: float
    seconds: list[float]


def seconds_per_clip(
    generators: Mapping[str, Callable[[int], Any]],
    repeats: int = 5,
    warmup: int = 1,
    synchronise: Callable[[], None] = lambda: None,
) -> dict[str, Speed]:
    """Time generators that each make one clip from a seed.

    They take turns, so that a machine that slows down does so for all of them.

    Args:
        generators: name -> callable(seed).
        repeats: timed clips of each, at least 5.
        warmup: clips of each before that (compilation, caches, clocks).
        synchronise: waits for the device, for example `torch.cuda.synchronize`.
    """
    if repeats < 5 or warmup < 1:
        raise ValueError(f"repeats {repeats}, warmup {warmup}: at least 5 and 1")
    seconds: dict[str, list[float]] = {name: [] for name in generators}
    for seed in range(-warmup, repeats):
        for name, generate in generators.items():
            synchronise()
            start = time.perf_counter()
            generate(seed + warmup)
            synchronise()
            if seed >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {
        name: Speed(median=statistics.median(times), minimum=min(times), maximum=max(times), seconds=times)
        for name, times in seconds.items()
    }


def speed(
    model: Path,
    baseline: bool = False,
    repeats: int = 9,
    warmup: int = 2,
    first_temperature: float = 1.0,
    later_temperature: float = 1.0,
    guidance: float = 1.0,
    device: str = "cpu",
    json: Path | None = None,
) -> None:
    """Time the generation of one clip at batch 1: tokens only, warm, median.

    With --baseline the same model with `prediction: token` (fresh weights: its time does not depend on them; same
    dtype, stored the same way) runs in turns with it, on the same engine and settings, and the ratio is reported.

    Args:
        model: converted folder.
        baseline: time the token-by-token baseline too.
        repeats: timed clips, at least 5.
        warmup: clips before that.
        first_temperature: sampling temperature of the first frame.
        later_temperature: sampling temperature of the later frames.
        guidance: classifier-free guidance scale; 1 is none.
        device: cpu or cuda.
        json: write the times (seconds) there.
    """
    settings = sampling_settings(first_temperature, later_temperature, guidance)
    vrc = load_folder(model, device).model
    models = {vrc.config.prediction: vrc}
    if baseline:
        if vrc.config.prediction == "token":
            raise UserError(
                f"{model}: is a `prediction: token` model itself; give a VRC folder with --baseline"
            )
        models["token"] = token_baseline(vrc)
    try:
        times = seconds_per_clip(
            {name: clip_maker(each, settings) for name, each in models.items()},
            repeats=repeats,
            warmup=warmup,
            synchronise=torch.cuda.synchronize if device.startswith("cuda") else lambda: None,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "preset": vrc.config.preset,
        "latent_frames": 1 + vrc.config.frames,
        "guidance": guidance,
        "seconds_per_clip": times,
    }
    for name, seconds in times.items():
        spread = f"{seconds['minimum']:.4f} to {seconds['maximum']:.4f}"
        print(f"{name:8s} {seconds['median']:.4f} s a clip (median of {repeats}, {spread})")
    if baseline:
        result["ratio"] = times["token"]["median"] / times["segment"]["median"]
        print(f"token / segment: {result['ratio']:.2f}")
    if json:
        write_result(json, result)


def token_baseline(vrc: VRC) -> VRC:
    """The baseline of a model's size with fresh weights, on its device, in its dtype, stored as `load_folder` does."""
    like = vrc.tokens.weight
    config = dataclasses.replace(vrc.config, **CHANGES["token"])
    baseline = VRC(config).to(like.device, like.dtype).eval().requires_grad_(False)
    store_for_generation(baseline)
    return baseline


def clip_maker(model: VRC, settings: SamplingSettings) -> Callable[[int], torch.Tensor]:
    """A callable that makes the tokens of one clip from a seed."""
    pipeline, condition = VideoPipeline(model), model.null_condition(1)
    return lambda seed: pipeline.generate(ClipRequest(condition, [seed], settings), "ids")
