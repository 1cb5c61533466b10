"""What fewer bits save and cost: `python benchmarks/quantization.py --model FOLDER --manifest FILE --json FILE`.

The generator in float32 and int8 takes turns on one CPU, for the folder and for presets with random weights: bytes, a
token step, a segment pass. Then clips of the folder in every format, real and simulated, all with the same seeds, and
the detector of `megavrc evaluate alignment` says what came.
"""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from guidance import KEYS, measure, share

from megavrc.benchmarks.generate_cases import random_model
from megavrc.config import command
from megavrc.generation.evaluate import checked_settings, shape_entries
from megavrc.generation.folder import load_folder
from megavrc.measure import in_turn
from megavrc.model import VRC, ClipRequest, SamplingSettings, VideoPipeline
from megavrc.model.config import Preset
from megavrc.quantization.cache import simulate_cache
from megavrc.quantization.quantize import quantize_generator, stored_bytes
from megavrc.quantization.simulate import simulate_quantization
from megavrc.results import case, median_of, metric, publish_tables, ratio, result

FILLED = 480  # tokens in the cache of a timed step
PARTS = ("step", "segment")
SIMULATED: dict[str, Callable[[VRC], object]] = {
    "rtn int8": lambda model: _round(model, "int8"),
    "rtn int4": lambda model: _round(model, "int4"),
    "rtn int3": lambda model: _round(model, "int3"),
    "cache of 8 bits": lambda model: simulate_cache(model, 8),
    "cache of 4 bits": lambda model: simulate_cache(model, 4),
}
PROTOCOL = {
    "time": "CPU seconds of the process, one thread, batch 1, float32 and int8 in turn; the first round is left out",
    "step": f"one token, sampling included, {FILLED} tokens in the cache (fewer where a frame has fewer)",
    "segment": "one later frame: compression of the frame before, the pass over its cells, its logits, sampling",
    "spread of time": "range of the rounds",
    "generated": "temperatures 0.7 and 0.5, no guidance, clip i has seed SEED + i in every format",
    "spread of alignment": "95% interval (Wilson)",
}


def main(
    model: Path,
    manifest: Path,
    presets: list[Preset] = ["b", "l"],  # noqa: B006
    rounds: int = 9,
    clips: int = 132,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Measure sizes, times and alignment.

    Args:
        model: converted folder.
        manifest: of the clips that it was trained on, made by megavrc make_shapes.
        presets: sizes with random weights that are timed too.
        rounds: that are timed.
        clips: of each format; rounded so that each combination of colour, shape and direction comes equally often.
        seed: of the first clip.
        json: file that gets what is printed.
    """
    torch.set_num_threads(1)
    rows, metrics = [], {}
    makers: dict[str, Callable[[], VRC]] = {"demo": lambda: load_folder(model, dtype="fp32").model}
    for preset in presets:
        makers[preset] = lambda preset=preset: random_model(preset, 4, "cpu", torch.float32)  # type: ignore[misc]
    for name, make in makers.items():
        timed = time_formats(name, make(), rounds)
        rows += timed
        for part in PARTS:
            plain, int8 = (row["metrics"][part] for row in timed)
            metrics[f"{name}: {part} of float32 / of int8"] = ratio(plain, int8)
    combinations = sorted({shown for shown, _ in shape_entries(manifest, "train")})
    asked = combinations * max(1, round(clips / len(combinations)))
    settings = checked_settings(0.7, 0.5, 1.0)
    for name, options, change in (
        ("float32", {}, None),
        ("bf16", {"dtype": "bf16"}, None),
        ("int8", {"quantize": "int8"}, None),
        *((f"{name}, simulated", {}, change) for name, change in SIMULATED.items()),
    ):
        folder = load_folder(model, **options)
        if change:
            change(folder.model)
        found = measure(folder, asked, settings, seed, name)
        rows.append(
            case(f"clips in {name}", {key: share(found, key) for key in KEYS}, model=folder.identity())
        )
    config = {"seed": seed, "clips": len(asked), "rounds": rounds}
    publish_tables(result("benchmarks/quantization.py", config, rows, metrics, PROTOCOL, threads=1), json)


@torch.no_grad()
def time_formats(name: str, model: VRC, rounds: int) -> list[dict[str, Any]]:
    """The cases of one model in float32 and in int8."""
    models = {"float32": model, "int8": copy.deepcopy(model)}
    quantize_generator(models["int8"], "int8")
    settings = SamplingSettings()
    works: dict[str, Callable[[], None]] = {}
    with _sampler(models["float32"], settings) as plain, _sampler(models["int8"], settings) as int8:
        for number_format, sampler in (("float32", plain), ("int8", int8)):
            filled = min(FILLED, model.config.tokens_per_frame - 1)
            sampler.prefill()

            def step(sampler: Any = sampler, token: int = filled) -> None:
                sampler.seek(token)
                sampler.token(token, settings.first)

            def segment(sampler: Any = sampler) -> None:
                sampler.seek(model.config.tokens_per_frame)
                sampler.frame(1)

            works |= {f"{number_format} step": step, f"{number_format} segment": segment}
        seconds = in_turn(works, rounds, clock=time.process_time, label=f"{name}: {rounds} rounds")
    rows = []
    for number_format, timed in models.items():
        kept = metric(stored_bytes(timed.trunk) + stored_bytes(timed.head), "B")
        times = {part: median_of(seconds[f"{number_format} {part}"], "s") for part in PARTS}
        width = model.config.width
        rows.append(case(f"{name}, {number_format}", {"trunk and head": kept, **times}, width=width))
    return rows


def _sampler(model: VRC, settings: SamplingSettings) -> Any:
    return VideoPipeline(model).sampler(ClipRequest(model.null_condition(1), [0], settings))


def _round(model: VRC, number_format: str) -> None:
    skip = [name for name, _ in model.named_children() if name not in ("trunk", "head")]
    simulate_quantization(model, "rtn", number_format, skip=skip)


if __name__ == "__main__":
    command(main)
