"""Time per clip of generators: warm, sequential, median of several clips."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import torch

from megavrc.benchmarks.generate_cases import CHANGES
from megavrc.errors import UserError
from megavrc.generation.evaluate import checked_settings
from megavrc.generation.folder import load_folder
from megavrc.hardware import check_device
from megavrc.measure import clock, in_turn
from megavrc.model import VRC, ClipRequest, SamplingSettings, VideoPipeline
from megavrc.model.decoder import store_for_generation
from megavrc.results import case, check_result_place, median_of, publish_tables, ratio, result


def speed(
    model: Path,
    baseline: bool = False,
    repeats: int = 9,
    warmup: int = 2,
    first_temperature: float = 1.0,
    later_temperature: float = 1.0,
    guidance: float = 1.0,
    device: str = "auto",
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
        device: `cpu` or `cuda`; auto is cuda where there is one.
        json: file to write the times to.
    """
    check_result_place(json)
    if repeats < 5 or warmup < 1:
        raise UserError(f"repeats {repeats}, warmup {warmup}: at least 5 and 1")
    settings = checked_settings(first_temperature, later_temperature, guidance)
    device = str(check_device(device))
    vrc = load_folder(model, device).model
    models: dict[str, VRC] = {vrc.config.prediction: vrc}
    if baseline:
        if vrc.config.prediction == "token":
            raise UserError(
                f"{model}: is a `prediction: token` model itself; give a VRC folder with --baseline"
            )
        models["token"] = token_baseline(vrc)
    makers = {name: clip_maker(each, settings) for name, each in models.items()}
    times = in_turn(makers, repeats, warmup, clock(device), "clips")
    cases = [case(name, {"seconds": median_of(spent, "s")}) for name, spent in times.items()]
    ratios = {}
    if baseline:
        ratios["token / segment"] = ratio(cases[1]["metrics"]["seconds"], cases[0]["metrics"]["seconds"])
    config = {
        "preset": vrc.config.preset,
        "latent_frames": 1 + vrc.config.frames,
        "first_temperature": first_temperature,
        "later_temperature": later_temperature,
        "guidance": guidance,
    }
    protocol = {
        "repeats": repeats,
        "warmup": warmup,
        "spread": "range",
        "what": "tokens of one clip, batch 1",
    }
    publish_tables(result("evaluate speed", config, cases, ratios, protocol, device), json)


def token_baseline(vrc: VRC) -> VRC:
    """The baseline of a model's size with fresh weights, on its device, in its dtype, stored as `load_folder` does."""
    like = vrc.tokens.weight
    config = dataclasses.replace(vrc.config, **CHANGES["token"])
    baseline = VRC(config).to(like.device, like.dtype).eval().requires_grad_(False)
    store_for_generation(baseline)
    return baseline


def clip_maker(model: VRC, settings: SamplingSettings) -> Callable[[], torch.Tensor]:
    """A callable that makes the tokens of one clip, of the seeds 0, 1, .. in turn."""
    pipeline, condition, seeds = VideoPipeline(model), model.null_condition(1), itertools.count()
    return lambda: pipeline.generate(ClipRequest(condition, [next(seeds)], settings), "ids")
