"""What generation costs on this machine: VRC and its variants, the token baseline, speculation, and transformers."""

import dataclasses
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from megavrc.config import UserError, progress, write_json
from megavrc.distributed import check_device
from megavrc.distributed.memory import peak_memory, reset_peak_memory
from megavrc.evaluation import cost
from megavrc.hf.folder import load_folder
from megavrc.hf.llama import llama_generator
from megavrc.model import VRC, CompressionConfig, ConditionConfig, ModelConfig, SamplingSettings
from megavrc.model.clips import decode_clips, on_device, sampling_settings
from megavrc.model.condition import Condition
from megavrc.model.decoder import store_for_generation
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet

from .benchmark import machine
from .evaluate import token_baseline

Preset = Literal["debug", "b", "l", "xl", "1.2b"]
Variant = Literal["vrc-1", "vrc-4", "vrc-16", "vrc-64", "token", "row"]
CHANGES: dict[Variant, dict[str, Any]] = {
    "vrc-4": {},
    "vrc-1": {"compression": CompressionConfig(1)},
    "vrc-16": {"compression": CompressionConfig(16)},
    "vrc-64": {"compression": CompressionConfig(64)},
    "token": {"prediction": "token"},
    "row": {"first_frame": "row"},
}


@dataclass(frozen=True, eq=False)
class Case:
    """One line of the table."""

    name: str
    model: VRC
    settings: SamplingSettings
    condition: Condition  # of the whole batch
    batch: int


def generate(
    preset: Preset = "b",
    model: list[Path] | Path | None = None,
    prompt: list[str] | str | None = None,
    variants: list[Variant] | None = None,
    batch: list[int] | int = 1,
    guidance: float = 2.0,
    speculative: int = 16,
    frames: int = 17,
    repeats: int = 3,
    sampled_steps: int = 0,
    transformers: bool = True,
    dtype: Literal["float32", "bfloat16"] = "float32",
    threads: int = 1,
    device: str = "cpu",
    json: Path | None = None,
) -> None:
    """Seconds for a clip, by phase, and how far a token step is from the memory-bandwidth floor. Medians and ranges.

    All variants take turns in one process, on one engine. Their weights are random, which does not change their
    speed, except with speculation: that is measured only on trained models, given by --model.

    Args:
        preset: size of the models with random weights.
        model: instead of random weights, one or several converted folders; each runs sequentially and speculatively,
            next to the token-by-token baseline of its size (random weights) when none of them is one.
        prompt: texts that these generate from, in turn, with the folder's own sampling (default: no condition).
        variants: VRC with compression rate 1, 4 (the paper's), 16 and 64, the token-by-token baseline, and VRC
            with its first frame in rows (default: all).
        batch: clips generated at once; one or several numbers.
        guidance: every variant also runs with this classifier-free guidance; 1 leaves that out.
        speculative: draft tokens that a pass verifies.
        frames: frames of a clip, 1 + 4k.
        repeats: rounds.
        sampled_steps: instead of whole clips, time this many token steps at each of a few cache lengths and
            interpolate: an estimate, and marked as such. 0 generates whole clips.
        transformers: also time transformers generating from a Llama of the same size, dtype and context.
        dtype: of weights and cache.
        threads: CPU threads.
        device: cpu or cuda.
        json: write the results there.
    """
    if repeats < 1 or sampled_steps < 0 or (frames - 1) % 4 or (sampled_steps and device != "cpu"):
        raise UserError("--repeats is at least 1, --frames 1 + 4k, --sampled-steps at least 0 and for a CPU")
    torch.set_num_threads(threads)
    check_device(device)
    number = getattr(torch, dtype)
    batches = [batch] if isinstance(batch, int) else batch
    scales = list(dict.fromkeys((1.0, guidance)))
    net = None
    if model:
        folders = [model] if isinstance(model, Path) else model
        prompts = [prompt] if isinstance(prompt, str) else prompt
        drafts = [0] if sampled_steps else [0, speculative]  # accepted tokens need whole clips
        cases, net = _trained(folders, prompts, batches, scales, drafts, device, number)
    else:
        models = _random(preset, variants or list(CHANGES), (frames - 1) // 4, device, number)
        cases = _sequential(models, batches, scales)
    config = cases[0].model.config
    if 2 * sampled_steps > config.tokens_per_frame:
        raise UserError(
            f"--sampled-steps {sampled_steps}: at most half the {config.tokens_per_frame} of a frame"
        )
    context = config.condition.slots + config.tokens_per_frame
    llama = llama_generator(config, context + 1, device, number) if transformers else None
    bandwidth = cost.memory_bandwidth(device)
    measured = _rounds(cases, llama, repeats, sampled_steps, device)
    pixels = _pixels(net, config, repeats, device)
    result = {
        "machine": machine(device, threads, "transformers"),
        "weights": [str(folder) for folder in folders] if model else "random",
        "model": {"preset": config.preset, "grid": config.grid, "latent_frames": 1 + config.frames},
        "dtype": dtype,
        "repeats": repeats,
        "extrapolated_from_steps": sampled_steps,
        "bandwidth": bandwidth,
        "floor": cost.FLOOR,
        "seconds_to_pixels_per_clip": pixels,
        "cases": [_row(case, measured[case], bandwidth) for case in cases],
        "transformers_step": _by_batch(measured["llama"]),
    }
    result["ratios"] = _ratios(result)
    _print(result)
    if json:
        write_json(json, result)


# --- what is measured -------------------------------------------------------------------------------------------


def _random(
    preset: str, variants: list[Variant], frames: int, device: str, dtype: torch.dtype
) -> dict[str, VRC]:
    """Models that share all weights that they can."""
    condition = ConditionConfig(kind="class", classes=101)
    config = ModelConfig(preset=preset, condition=condition, frames=frames)  # type: ignore[arg-type]
    torch.manual_seed(0)
    base = VRC(config).to(device, dtype).eval().requires_grad_(False)
    store_for_generation(base)
    return {
        name: _relative(base, dataclasses.replace(config, **CHANGES[name])) if CHANGES[name] else base
        for name in variants
    }


def _relative(base: VRC, config: ModelConfig) -> VRC:
    """A model of another kind with the base's trunk, embeddings and head; what it has of its own is fresh."""
    with torch.device("meta"):
        model = VRC(config)
    like = base.tokens.weight
    for name, part in model.named_children():
        if name in ("compressor", "decompressor"):
            part.to_empty(device=like.device).to(like.dtype)
        else:
            setattr(model, name, getattr(base, name))
    if config.first_frame == "row":
        model.start_row = nn.Parameter(like.new_zeros(config.grid, config.width))
    model.init_segments()
    return model.eval().requires_grad_(False)


def _sequential(models: dict[str, VRC], batches: list[int], scales: list[float]) -> list[Case]:
    return [
        Case(name, model, SamplingSettings(guidance=scale), model.null_condition(batch), batch)
        for batch in batches
        for name, model in models.items()
        for scale in scales
    ]


def _trained(
    folders: list[Path],
    prompts: list[str] | None,
    batches: list[int],
    scales: list[float],
    drafts: list[int],
    device: str,
    dtype: torch.dtype,
) -> tuple[list[Case], OmniTokenizerNet]:
    """The folders' cases, and those of a baseline with random weights when no folder is one."""
    cases = []
    for path in folders:
        folder = load_folder(path, device)
        model = folder.model.to(dtype)
        name = "token" if model.config.prediction == "token" else str(path)
        store_for_generation(model)
        for batch in batches:
            condition = model.null_condition(batch)
            if prompts:
                given = folder.condition([prompts[i % len(prompts)] for i in range(batch)], None)
                condition = on_device(given, model.tokens.weight.device)
            for scale in scales:
                for count in drafts if model.config.first_frame == "token" else [0]:
                    chosen = {"guidance": scale, "speculative": count}
                    settings = sampling_settings(folder.sampling, chosen)
                    cases.append(Case(name, model, settings, condition, batch))
    if all(case.model.config.prediction == "segment" for case in cases):
        cases += _sequential({"token": token_baseline(model)}, batches, scales)
    return cases, folder.video_tokenizer.net


def _rounds(
    cases: list[Case],
    llama: Callable[[int, int, int], None] | None,
    repeats: int,
    sampled_steps: int,
    device: str,
) -> dict[Any, list[Any]]:
    """Of each case its (phases, peak memory), under `llama` the (batch, seconds of a step) of transformers."""
    measured: dict[Any, list[Any]] = {case: [] for case in cases} | {"llama": []}
    batches = list(dict.fromkeys(case.batch for case in cases))
    turns: list[tuple[int, Any]] = [
        (number, work) for number in range(repeats) for work in (*cases, *(batches if llama else []))
    ]
    for number, work in progress(turns, f"measure {repeats} rounds", len(turns)):
        if isinstance(work, Case):
            reset_peak_memory(device)
            if sampled_steps and work.model.config.first_frame == "token":
                phases = cost.sampled_phases(work.model, work.settings, work.batch, sampled_steps)
            else:
                seeds = list(range(number * work.batch, (number + 1) * work.batch))
                phases = cost.clip_phases(work.model, work.condition, work.settings, seeds)
            measured[work].append((phases, peak_memory(device)))
        elif llama:
            seconds = _llama_step(llama, cases[0].model.config, work, sampled_steps, device)
            measured["llama"].append((work, seconds))
    return measured


def _llama_step(
    llama: Callable[[int, int, int], None], config: ModelConfig, batch: int, sampled_steps: int, device: str
) -> float:
    """Mean seconds of a step over the cache lengths of a first frame, the prompt's pass subtracted."""
    slots, tokens, now = config.condition.slots, config.tokens_per_frame, cost.clock(device)
    count = sampled_steps or tokens - 1
    steps = []
    for prompt in torch.linspace(
        slots, slots + tokens - 1 - count, cost.POINTS if sampled_steps else 1
    ).long():
        start = now()
        llama(batch, int(prompt), 1)
        middle = now()
        llama(batch, int(prompt), 1 + count)
        steps.append((now() - middle - (middle - start)) / count)
    return statistics.mean(steps)


def _pixels(net: OmniTokenizerNet | None, config: ModelConfig, repeats: int, device: str) -> dict[str, float]:
    """Seconds from the tokens of one clip to its pixels, in float32."""
    net = net or OmniTokenizerNet(OmniTokenizerConfig()).to(device).eval().requires_grad_(False)
    ids, now = (
        torch.zeros(1, 1 + config.frames, config.grid, config.grid, dtype=torch.long),
        cost.clock(device),
    )
    seconds = []
    for _ in range(1 + repeats):
        start = now()
        decode_clips(net, ids.to(device))
        seconds.append(now() - start)
    return _spread(seconds[1:])


# --- what is reported -------------------------------------------------------------------------------------------


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "minimum": min(values), "maximum": max(values)}


def _by_batch(measured: list[tuple[int, float]]) -> dict[str, dict[str, float]]:
    return {
        str(batch): _spread([seconds for at, seconds in measured if at == batch])
        for batch in sorted({batch for batch, _ in measured})
    }


def _row(case: Case, measured: list[tuple[cost.Phases, int]], bandwidth: float) -> dict[str, Any]:
    rounds = [phases for phases, _ in measured]
    row: dict[str, Any] = {
        "name": case.name,
        "batch": case.batch,
        "guidance": case.settings.guidance,
        "speculative": case.settings.speculative,
        "seconds": _spread([p["prefill"] + p["first_frame"] + p["later_frames"] for p in rounds]),
        "peak_bytes": max(peak for _, peak in measured),
    }
    for phase in ("prefill", "first_frame", "later_frames", "step"):
        row[phase] = _spread([phases[phase] for phases in rounds])
    if case.settings.speculative:
        return row | {"accepted_tokens_per_pass": _spread([phases["accepted"] for phases in rounds])}
    passes = len(cost.token_passes(case.model))
    floor = cost.floor_seconds(case.model, case.batch, case.settings.guidance, bandwidth) / passes
    return row | {"floor_step": floor, "share_of_floor": floor / row["step"]["median"]}


def _ratios(result: dict[str, Any]) -> dict[str, float]:
    """How many times as long the token baseline takes as each case like it, and a step of transformers as ours."""
    ratios = {}
    cases = result["cases"]
    seconds = {
        (c["name"], c["batch"], c["guidance"], c["speculative"]): c["seconds"]["median"] for c in cases
    }
    for (name, *job), own in seconds.items():
        if name != "token" and ("token", *job) in seconds:
            label = f"token / {name}, batch {job[0]}, guidance {job[1]:g}"
            ratios[label] = seconds["token", *job] / own
    for case in cases:
        step = result["transformers_step"].get(str(case["batch"]))
        if step and case is next(c for c in cases if c["batch"] == case["batch"]):
            label = f"step of transformers' Llama / step of {case['name']}, batch {case['batch']}"
            ratios[label] = step["median"] / case["step"]["median"]
    return ratios


def _print(result: dict[str, Any]) -> None:
    model, weights = result["model"], result["weights"]
    print(
        f"preset {model['preset']}, grid {model['grid']}x{model['grid']}, {model['latent_frames']} latent frames, "
        f"{result['dtype']}, weights: {weights if weights == 'random' else ', '.join(weights)}"
    )
    if steps := result["extrapolated_from_steps"]:
        print(
            f"EXTRAPOLATED from {steps} token steps at each of {cost.POINTS} cache lengths; not whole clips"
        )
    print(f"memory bandwidth {result['bandwidth'] / 1e9:.1f} GB/s; floor = {result['floor']}")
    print(
        "seconds of a batch: median (range) of the tokens, its phases; a step; the floor's share; peak memory"
    )
    for case in result["cases"]:
        s = case["seconds"]
        drafts = f" speculative {case['speculative']}" if case["speculative"] else ""
        line = (
            f"{case['name']:8s} batch {case['batch']:3d} guidance {case['guidance']:g}{drafts}"
            f" {s['median']:9.3f} ({s['minimum']:.3f} to {s['maximum']:.3f}) s: prefill {case['prefill']['median']:.3f}"
            f" first {case['first_frame']['median']:.3f} later {case['later_frames']['median']:.3f},"
            f" step {1000 * case['step']['median']:.2f} ms, {case['batch'] / s['median']:.3g} clips/s"
        )
        if "share_of_floor" in case:
            line += f", floor {1000 * case['floor_step']:.2f} ms = {case['share_of_floor']:.0%}"
        else:
            line += f", accepted {case['accepted_tokens_per_pass']['median']:.2f} tokens a pass"
        print(f"{line}, {case['peak_bytes'] / 2**20:.0f} MiB")
    pixels = result["seconds_to_pixels_per_clip"]
    print(
        f"to pixels {pixels['median']:.3f} ({pixels['minimum']:.3f} to {pixels['maximum']:.3f}) s a clip, float32"
    )
    for batch, step in result["transformers_step"].items():
        print(f"a step of transformers' Llama at batch {batch}: {1000 * step['median']:.2f} ms")
    for name, ratio in result["ratios"].items():
        print(f"{name}: {ratio:.2f}")
