"""The cost of generation on this machine: VRC and its variants, the token baseline, speculation, and transformers."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from megavrc.benchmarks import cost
from megavrc.benchmarks.generate_cases import (
    Case,
    Variant,
    default_variants,
    quantized_cases,
    random_cases,
    random_model,
    trained_cases,
    variants_of,
)
from megavrc.benchmarks.llama import llama_generator
from megavrc.errors import UserError
from megavrc.hardware import check_device, peak_memory, reset_peak_memory
from megavrc.measure import clock, in_turn, turns
from megavrc.model import VRC, ModelConfig, VideoPipeline
from megavrc.model.clips import decode_clips
from megavrc.model.config import Preset
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from megavrc.quantization.quantize import Format
from megavrc.results import Metric, case, check_result_place, median_of, metric, publish_tables, ratio, result


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
    quantize: list[Format] | Format | None = None,
    refine_passes: list[int] | int = 8,
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
        prompt: texts that the folders of `model` generate from, in turn, with their own sampling (default: no
            condition).
        variants: VRC with compression rate 1, 4 (the paper's), 16 and 64, the token-by-token baseline, VRC with its
            first frame in rows, and VRC with refinement, several passes in the first later frame, known cells added
            before the first layer (refine) or two thirds of the way up (refine-late) (default: all; next to folders,
            the baseline when none of them is one).
        batch: clips generated at once; one or several numbers.
        guidance: classifier-free guidance that every variant runs with once more; 1 leaves that out.
        speculative: draft tokens that a pass verifies; 0 leaves that out (default: 16 with --model, else 0).
        frames: frames of a clip, 1 + 4k.
        repeats: timed rounds.
        sampled_steps: instead of whole clips, time this many token steps at each of a few cache lengths and
            interpolate: an estimate, and marked as such. 0 generates whole clips.
        transformers: also time transformers generating from a Llama of the same size, dtype and context.
        dtype: type of weights and cache.
        quantize: formats of the matrices, see megavrc generate; every case runs with each once more.
        refine_passes: passes of the first later frame in the variants with refinement; one or several
            numbers.
        threads: CPU threads.
        device: `cpu` or `cuda`.
        json: file to write the results to.
    """
    check_result_place(json)
    if repeats < 1 or sampled_steps < 0 or (frames - 1) % 4 or (sampled_steps and device != "cpu"):
        raise UserError("--repeats is at least 1, --frames 1 + 4k, --sampled-steps at least 0 and for a CPU")
    torch.set_num_threads(threads)
    device = str(check_device(device))
    number = getattr(torch, dtype)
    batches, scales = _several(batch), list(dict.fromkeys((1.0, guidance)))
    speculative = speculative if speculative is not None else 16 if model else 0
    drafts = [0, speculative] if speculative and not sampled_steps else [0]  # speculation needs whole clips
    folders, prompts = _several(model) if model else [], _several(prompt) if prompt else None
    cases, net = trained_cases(folders, prompts, batches, scales, drafts, device, number)
    base = cases[0].model if cases else random_model(preset, (frames - 1) // 4, device, number)
    chosen = default_variants(cases) if variants is None else variants
    some = [0] if folders else drafts
    cases += random_cases(variants_of(base, chosen), batches, scales, some, _several(refine_passes))
    cases += quantized_cases(cases, _several(quantize) if quantize else [])
    config = cases[0].model.config
    if 2 * sampled_steps > (count := config.tokens_per_frame):
        raise UserError(f"--sampled-steps {sampled_steps}: at most half the {count} of a frame")
    context = config.condition.slots + config.tokens_per_frame
    llama = llama_generator(config, context + 1, device, number) if transformers else None
    bandwidth = cost.memory_bandwidth(device)
    measured = _rounds(cases, llama, repeats, sampled_steps, device)
    rows = [_row(each, measured[each], bandwidth) for each in cases]
    step = _by_batch(measured["llama"])
    metrics = {
        "memory bandwidth": metric(bandwidth, "B/s"),
        "tokens to pixels, a clip, float32": _pixels(net, config, repeats, device),
        **{f"step of transformers' Llama, batch {batch}": found for batch, found in step.items()},
    }
    options: dict[str, Any] = {"weights": [str(folder) for folder in folders] or "random", "dtype": dtype}
    options |= {"preset": config.preset, "grid": config.grid, "latent_frames": 1 + config.frames}
    protocol = {"repeats": repeats, "spread": "range of the rounds"}
    protocol |= {"extrapolated_from_steps": sampled_steps, "floor": cost.FLOOR}
    metrics |= ratios(rows, step)
    content = result("benchmark generate", options, rows, metrics, protocol, device, threads)
    _print_head(options, sampled_steps)
    publish_tables(content, json)


def _print_head(options: dict[str, Any], sampled_steps: int) -> None:
    print(", ".join(f"{name} {value}" for name, value in options.items()))
    if sampled_steps:
        points = f"{sampled_steps} token steps at each of {cost.POINTS} cache lengths"
        print(f"EXTRAPOLATED from {points}; not whole clips")
    print(f"seconds of a batch; floor = {cost.FLOOR}\n")


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
    measured: dict[Any, list[Any]] = {each: [] for each in cases} | {"llama": []}
    batches = list(dict.fromkeys(case.batch for case in cases))
    works: list[Any] = [*cases, *(batches if llama else [])]
    for number, work in turns(works, repeats, label=f"measure {repeats} rounds"):
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
    slots, tokens, now = config.condition.slots, config.tokens_per_frame, clock(device)
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


def _by_batch(measured: list[tuple[int, float]]) -> dict[int, Metric]:
    batches = dict.fromkeys(batch for batch, _ in measured)
    return {batch: median_of([seconds for at, seconds in measured if at == batch], "s") for batch in batches}


def _pixels(net: OmniTokenizerNet | None, config: ModelConfig, repeats: int, device: str) -> Metric:
    """Seconds from the tokens of one clip to its pixels, in float32."""
    net = net or OmniTokenizerNet(OmniTokenizerConfig()).to(device).eval().requires_grad_(False)
    ids = torch.zeros(1, 1 + config.frames, config.grid, config.grid, dtype=torch.long)
    work = {"": lambda: decode_clips(net, ids.to(device))}
    return median_of(in_turn(work, repeats, clock=clock(device), label="to pixels")[""], "s")


# --- what is reported -------------------------------------------------------------------------------------------


def _row(timed: Case, measured: list[tuple[cost.Phases, int | None]], bandwidth: float) -> dict[str, Any]:
    model, settings, batch = timed.model, timed.settings, timed.batch
    rounds, peaks = [phases for phases, _ in measured], [peak for _, peak in measured if peak]
    speculative, in_rows = settings.speculative, model.config.first_frame == "row"
    metrics: dict[str, Metric] = {}
    if not speculative or timed.trained:  # random weights do not tell how many passes a clip takes
        whole = [phases["prefill"] + phases["first_frame"] + phases["later_frames"] for phases in rounds]
        metrics["seconds"] = median_of(whole, "s")
        for phase in ("prefill", "first_frame", "later_frames"):
            metrics[phase] = median_of([phases[phase] for phases in rounds], "s")
    metrics["step"] = median_of([phases["step"] for phases in rounds], "s")
    if not speculative:
        floor = cost.floor_seconds(model, batch, settings.guidance, bandwidth) / len(cost.token_passes(model))
        metrics["floor_step"] = metric(floor, "s")
        metrics["share_of_floor"] = metric(floor / metrics["step"]["value"], "share", len(rounds))
    elif timed.trained:
        metrics["accepted"] = median_of([phases["accepted"] for phases in rounds], "tokens a pass")
    if peaks:
        metrics["peak"] = metric(max(peaks), "B", len(peaks))
    name = f"{timed.name}, {_job(batch, settings.guidance)}"
    return case(
        name + (f", speculative {speculative}" if speculative else ""),
        metrics,
        model=timed.name,
        batch=batch,
        guidance=settings.guidance,
        speculative=speculative,
        quantize=timed.quantize,
        step_of="pass" if speculative else "row" if in_rows else "token",
    )


def _job(batch: int, guidance: float) -> str:
    return f"batch {batch}, guidance {guidance:g}"


def ratios(rows: list[dict[str, Any]], llama: dict[int, Metric]) -> dict[str, Metric]:
    """Ratios of seconds: the token baseline over each case like it, a step of transformers over ours, a
    speculative pass over a token step, and a step over one with the matrices in fewer bits.

    Args:
        rows: cases of the result. llama: step of transformers, by batch.
    """
    found: dict[str, Metric] = {}
    keys = ("model", "batch", "guidance", "speculative")
    cases = {tuple(row["config"][key] for key in keys): row["metrics"] for row in rows}
    for (name, batch, guidance, speculative), metrics in cases.items():
        job = _job(batch, guidance)
        token, sequential = (
            cases.get(("token", batch, guidance, speculative)),
            cases[name, batch, guidance, 0],
        )
        if name != "token" and token and "seconds" in token and "seconds" in metrics:
            label = f"token / {name}, {job}" + (f", speculative {speculative}" if speculative else "")
            found[label] = ratio(token["seconds"], metrics["seconds"])
        if name.startswith("refine") and ("vrc-4", batch, guidance, speculative) in cases:
            plain = cases["vrc-4", batch, guidance, speculative]
            if "seconds" in metrics:
                found[f"{name} / vrc-4, {job}"] = ratio(metrics["seconds"], plain["seconds"])
                # apart from the first frame, which is the same and takes most of the time
                more = metrics["later_frames"]["value"] - plain["later_frames"]["value"]
                share = metric(more / plain["seconds"]["value"], "share", plain["seconds"]["n"])
                found[f"further passes of {name} / clip of vrc-4, {job}"] = share
        if speculative:
            label = f"pass of {speculative} drafts / token step of {name} (accepted tokens from which it pays), {job}"
            found[label] = ratio(metrics["step"], sequential["step"])
            if "seconds" in metrics:
                label = f"sequential / speculative {speculative} of {name}, {job}"
                found[label] = ratio(sequential["seconds"], metrics["seconds"])
    found |= _fewer_bits(cases, rows)
    for batch, step in llama.items():
        own = [row for row in rows if row["config"]["batch"] == batch and row["config"]["step_of"] == "token"]
        if own:
            label = f"step of transformers' Llama / step of {own[0]['config']['model']}, batch {batch}"
            found[label] = ratio(step, own[0]["metrics"]["step"])
    return found


def _fewer_bits(cases: dict[Any, dict[str, Metric]], rows: list[dict[str, Any]]) -> dict[str, Metric]:
    """How many times as long a step takes as one with the matrices in fewer bits."""
    found = {}
    for config, metrics in ((row["config"], row["metrics"]) for row in rows):
        if number_format := config.get("quantize"):
            plain = config["model"].removesuffix(f" {number_format}")
            batch, guidance, speculative = config["batch"], config["guidance"], config["speculative"]
            label = f"step of {plain} / with {number_format}, {_job(batch, guidance)}"
            label += f", speculative {speculative}" if speculative else ""
            found[label] = ratio(cases[plain, batch, guidance, speculative]["step"], metrics["step"])
    return found
