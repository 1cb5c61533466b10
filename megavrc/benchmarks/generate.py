"""What generation costs on this machine: VRC and its variants, the token baseline, speculation, and transformers."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from megavrc.benchmarks import cost
from megavrc.benchmarks.generate_cases import (
    Case,
    Preset,
    Variant,
    default_variants,
    random_cases,
    random_model,
    trained_cases,
    variants_of,
)
from megavrc.benchmarks.llama import llama_generator
from megavrc.errors import UserError
from megavrc.files import write_result
from megavrc.hardware import check_device, machine, peak_memory, reset_peak_memory
from megavrc.model import VRC, ModelConfig, VideoPipeline
from megavrc.model.clips import decode_clips
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from megavrc.progress import progress


def generate(
    preset: Preset = "b",
    model: list[Path] | Path | None = None,
    prompt: list[str] | str | None = None,
    variants: list[Variant] | None = None,
    batch: list[int] | int = 1,
    guidance: float = 2.0,
    speculative: int | None = None,
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
    speed, except with speculation: of that only the time of a pass is reported, and trained models, given by --model,
    say how many tokens it accepts.

    Args:
        preset: size of the models with random weights.
        model: one or several converted folders; each runs sequentially and speculatively, next to `variants` of the
            first one's size with random weights.
        prompt: texts that these generate from, in turn, with the folder's own sampling (default: no condition).
        variants: VRC with compression rate 1, 4 (the paper's), 16 and 64, the token-by-token baseline, and VRC
            with its first frame in rows (default: all; next to folders, the baseline when none of them is one).
        batch: clips generated at once; one or several numbers.
        guidance: every variant also runs with this classifier-free guidance; 1 leaves that out.
        speculative: draft tokens that a pass verifies; 0 leaves that out (default: 16 with --model, else 0).
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
    batches, scales = _several(batch), list(dict.fromkeys((1.0, guidance)))
    speculative = speculative if speculative is not None else 16 if model else 0
    drafts = [0, speculative] if speculative and not sampled_steps else [0]  # speculation needs whole clips
    folders, prompts = _several(model) if model else [], _several(prompt) if prompt else None
    cases, net = trained_cases(folders, prompts, batches, scales, drafts, device, number)
    base = cases[0].model if cases else random_model(preset, (frames - 1) // 4, device, number)
    chosen = default_variants(cases) if variants is None else variants
    cases += random_cases(variants_of(base, chosen), batches, scales, [0] if folders else drafts)
    config = cases[0].model.config
    if 2 * sampled_steps > (count := config.tokens_per_frame):
        raise UserError(f"--sampled-steps {sampled_steps}: at most half the {count} of a frame")
    context = config.condition.slots + config.tokens_per_frame
    llama = llama_generator(config, context + 1, device, number) if transformers else None
    bandwidth = cost.memory_bandwidth(device)
    measured = _rounds(cases, llama, repeats, sampled_steps, device)
    result = {
        "machine": machine(device, threads, "transformers"),
        "weights": [str(folder) for folder in folders] or "random",
        "model": {"preset": config.preset, "grid": config.grid, "latent_frames": 1 + config.frames},
        "dtype": dtype,
        "repeats": repeats,
        "extrapolated_from_steps": sampled_steps,
        "bandwidth": bandwidth,
        "floor": cost.FLOOR,
        "seconds_to_pixels_per_clip": _pixels(net, config, repeats, device),
        "cases": [_row(case, measured[case], bandwidth) for case in cases],
        "transformers_step": _by_batch(measured["llama"]),
    }
    result["ratios"] = _ratios(result)
    _print(result)
    if json:
        write_result(json, result)


def _several(values: Any) -> list[Any]:
    """One or several values of an option, as a list."""
    return values if isinstance(values, list) else [values]


# --- what is measured -------------------------------------------------------------------------------------------


def _rounds(
    cases: list[Case],
    llama: Callable[[int, int, int], None] | None,
    repeats: int,
    sampled_steps: int,
    device: str,
) -> dict[Any, list[Any]]:
    """Of each case its (phases, peak memory), under `llama` the (batch, seconds of a step) of transformers.

    The peak is that of the case alone: its weights, and the most that generating added to what was there.
    """
    measured: dict[Any, list[Any]] = {case: [] for case in cases} | {"llama": []}
    batches = list(dict.fromkeys(case.batch for case in cases))
    turns: list[tuple[int, Any]] = [
        (number, work) for number in range(repeats) for work in (*cases, *(batches if llama else []))
    ]
    for number, work in progress(turns, f"measure {repeats} rounds", len(turns)):
        if isinstance(work, Case):
            before = reset_peak_memory(device)
            if sampled_steps and work.model.config.first_frame == "token":
                phases = cost.sampled_phases(VideoPipeline(work.model), work.request(number), sampled_steps)
            else:
                phases = cost.clip_phases(VideoPipeline(work.model), work.request(number))
            peak = peak_memory(device)
            own = None if before is None else _bytes(work.model) + peak - before
            measured[work].append((phases, own))
        elif llama:
            seconds = _llama_step(llama, cases[0].model.config, work, sampled_steps, device)
            measured["llama"].append((work, seconds))
    return measured


def _bytes(model: VRC) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


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


def _row(case: Case, measured: list[tuple[cost.Phases, int | None]], bandwidth: float) -> dict[str, Any]:
    rounds = [phases for phases, _ in measured]
    speculative, in_rows = case.settings.speculative, case.model.config.first_frame == "row"
    row: dict[str, Any] = {
        "name": case.name,
        "batch": case.batch,
        "guidance": case.settings.guidance,
        "speculative": speculative,
        "peak_bytes": max((peak for _, peak in measured if peak), default=None),
        "step_of": "pass" if speculative else "row" if in_rows else "token",
        "step": _spread([phases["step"] for phases in rounds]),
    }
    if speculative and not case.trained:  # random weights do not tell how many passes a clip takes
        return row
    row["seconds"] = _spread([p["prefill"] + p["first_frame"] + p["later_frames"] for p in rounds])
    for phase in ("prefill", "first_frame", "later_frames"):
        row[phase] = _spread([phases[phase] for phases in rounds])
    if speculative:
        return row | {"accepted_tokens_per_pass": _spread([phases["accepted"] for phases in rounds])}
    passes = len(cost.token_passes(case.model))
    floor = cost.floor_seconds(case.model, case.batch, case.settings.guidance, bandwidth) / passes
    return row | {"floor_step": floor, "share_of_floor": floor / row["step"]["median"]}


def _ratios(result: dict[str, Any]) -> dict[str, float]:
    """How many times as long the token baseline takes as each case like it, a step of transformers as ours, and a
    speculative pass as a token step."""
    ratios = {}
    cases = {(c["name"], c["batch"], c["guidance"], c["speculative"]): c for c in result["cases"]}
    for (name, batch, guidance, speculative), case in cases.items():
        job = f"batch {batch}, guidance {guidance:g}"
        token, sequential = (
            cases.get(("token", batch, guidance, speculative)),
            cases[name, batch, guidance, 0],
        )
        if name != "token" and token and "seconds" in token and "seconds" in case:
            label = f"token / {name}, {job}" + (f", speculative {speculative}" if speculative else "")
            ratios[label] = token["seconds"]["median"] / case["seconds"]["median"]
        if speculative:
            label = f"pass of {speculative} drafts / token step of {name} (accepted tokens from which it pays), {job}"
            ratios[label] = case["step"]["median"] / sequential["step"]["median"]
            if "seconds" in case:
                label = f"sequential / speculative {speculative} of {name}, {job}"
                ratios[label] = sequential["seconds"]["median"] / case["seconds"]["median"]
    for batch, step in result["transformers_step"].items():
        own = [c for c in result["cases"] if str(c["batch"]) == batch and c["step_of"] == "token"]
        if own:
            label = f"step of transformers' Llama / step of {own[0]['name']}, batch {batch}"
            ratios[label] = step["median"] / own[0]["step"]["median"]
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
        "seconds of a batch: median (range), its phases; a step; the floor's share; peak memory of the case"
    )
    for case in result["cases"]:
        drafts = f" speculative {case['speculative']}" if case["speculative"] else ""
        line = f"{case['name']:8s} batch {case['batch']:3d} guidance {case['guidance']:g}{drafts}"
        if s := case.get("seconds"):
            line += (
                f" {s['median']:9.3f} ({s['minimum']:.3f} to {s['maximum']:.3f}) s:"
                f" prefill {case['prefill']['median']:.3f} first {case['first_frame']['median']:.3f}"
                f" later {case['later_frames']['median']:.3f}, {case['batch'] / s['median']:.3g} clips/s,"
            )
        line += f" a {case['step_of']} {1000 * case['step']['median']:.2f} ms"
        if "share_of_floor" in case:
            line += f", floor {1000 * case['floor_step']:.2f} ms = {case['share_of_floor']:.0%}"
        elif "accepted_tokens_per_pass" in case:
            line += f", accepted {case['accepted_tokens_per_pass']['median']:.2f} tokens a pass"
        print(line + (f", {case['peak_bytes'] / 2**20:.0f} MiB" if case["peak_bytes"] else ""))
    pixels = result["seconds_to_pixels_per_clip"]
    print(
        f"to pixels {pixels['median']:.3f} ({pixels['minimum']:.3f} to {pixels['maximum']:.3f}) s a clip, float32"
    )
    for batch, step in result["transformers_step"].items():
        print(f"a step of transformers' Llama at batch {batch}: {1000 * step['median']:.2f} ms")
    for name, ratio in result["ratios"].items():
        print(f"{name}: {ratio:.2f}")
