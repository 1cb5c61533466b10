"""The plan of a configuration: read it, count, and show."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from megavrc.config import load_config, to_dict
from megavrc.errors import UserError
from megavrc.hardware import GPU, gpu_named
from megavrc.launch.plan import GPU_HOURS_PER_FAILURE, HEADROOM, Job, gib, make_plan, problems
from megavrc.model.flops import BACKWARD
from megavrc.results import Metric, metric, result, write_result
from megavrc.training.run_folder import most_checkpoints
from megavrc.training.tasks.vrc_config import RunConfig


def plan_run(
    *training: str,
    gpu: str = "h100",
    gpus: int = 1,
    tflops: float = 0.0,
    gib_memory: float = 0.0,
    mfu: float = 0.4,
    checkpoint_s: float = 1.0,
    clips: int | None = None,
    check: bool = False,
    json: Path | None = None,
) -> None:
    """Memory, throughput, time, GPU-hours and disk of a configuration on N GPUs, from shapes alone.

    Args:
        training: --config FILE and options of the training command.
        gpu: type of the GPU, such as h100, h200, a100, a100-40, rtx-4090; with tflops and gib_memory any name.
        gpus: number of GPUs, over all nodes.
        tflops: dense bf16 peak in 10^12 operations a second, of a type that is not known or in place of the known one.
        gib_memory: memory in GiB, as tflops.
        mfu: assumed share of the peak; MosaicML measured 0.42 on H100s for 1.3B parameters.
        checkpoint_s: seconds that training stands still for a checkpoint.
        clips: number of clips of the dataset, for the time of an epoch and the size of the shards.
        check: exit with code 2 if the run will not fit, and name what does not.
        json: file to write the numbers to.
    """
    if not training:
        raise UserError("required: --config FILE; options of the training command may follow")
    settings = load_config(RunConfig, list(training))
    if gpus < 1 or not 0 < mfu <= 1:
        raise UserError("--gpus must be at least 1, --mfu above 0 and at most 1")
    for name, value in {"tflops": tflops, "gib_memory": gib_memory, "checkpoint_s": checkpoint_s}.items():
        if not 0 <= value < math.inf:
            raise UserError(f"--{name} {value}: a number from 0 on")
    if clips is not None and clips < 1:
        raise UserError(f"--clips {clips}: at least 1")
    if tflops and gib_memory:
        kind = GPU(gpu, "", tflops, gib_memory)
    else:
        known = gpu_named(gpu)
        kind = replace(known, tflops=tflops or known.tflops, gib=gib_memory or known.gib)
    train = settings.train
    job = Job(
        gpu=kind,
        gpus=gpus,
        steps=train.steps,
        global_batch=train.global_batch,
        micro_batch=train.micro_batch,
        zero=train.zero,
        precision=train.precision,
        checkpointing=train.activation_checkpointing != "none",
        ema=train.ema > 0,
        mfu=mfu,
        checkpoint_s=checkpoint_s,
        checkpoints=most_checkpoints(train, validates=True),
        clips=clips,
    )
    plan = make_plan(settings.model, job)
    for line in plan_table(plan, job):
        print(line)
    found = problems(plan, job)
    if json:
        described = {"run": to_dict(settings), "gpu": kind.name, "gpus": gpus}
        protocol = {"what": "reckoned from shapes; nothing ran", "mfu": mfu, "problems": found}
        write_result(json, result("plan_run", described, (), dict(metrics(plan)), protocol))
    if found and check:
        raise UserError("; ".join(found))
    for problem in found:
        print(f"WILL NOT FIT  {problem}")


UNITS = {  # by the first or the last part of a name
    "memory": "B",
    "memory_by_micro_batch": "B",
    "checkpoint_bytes": "B",
    "bytes": "B",
    "forward_flops": "FLOP",
    "training_flops_per_clip": "FLOP",
    "clips_per_s": "clips/s",
    "tokens_per_s": "tokens/s",
    "hours": "h",
    "gpu_hours": "GPU-hours",
    "seconds": "s",
    "failure_every_s": "s",
}


def metrics(plan: Any, name: str = "") -> Iterator[tuple[str, Metric]]:
    """The numbers of the plan as metrics: `memory/total` and so on."""
    if isinstance(plan, dict):
        for key, part in plan.items():
            yield from metrics(part, f"{name}/{key}" if name else str(key))
    elif isinstance(plan, int | float):
        parts = name.split("/")
        yield name, metric(plan, UNITS.get(parts[0], UNITS.get(parts[-1], "")))


def plan_table(plan: dict[str, Any], job: Job) -> list[str]:
    """The plan as lines."""
    memory, parameters = dict(plan["memory"]), dict(plan["parameters"])
    total, available = memory.pop("total"), memory.pop("available")
    flops, run, save = plan["forward_flops"], plan["run"], plan["save"]
    tera, failure_h = plan["training_flops_per_clip"] / 1e12, save["failure_every_s"] / 3600
    checkpointing = "with" if job.checkpointing else "without"
    lines = [
        f"parameters     {parameters.pop('total') / 1e6:,.1f}M: "
        + ", ".join(f"{name} {count / 1e6:,.1f}M" for name, count in parameters.items()),
        f"memory         {gib(total)} of {gib(available)} on each of {job.gpus} {job.gpu.name}: ZeRO stage {job.zero}, "
        f"{job.precision}, micro-batch {job.micro_batch} {checkpointing} activation checkpointing",
        *(f"               {gib(size):>10}  {name}" for name, size in memory.items() if size),
        *_micro_batches(plan, job),
        f"FLOPs          {tera:.3f} x 10^12 a clip, forward x {1 + BACKWARD}, exact mask area, nothing twice: "
        + ", ".join(f"{name} {count / sum(flops.values()):.1%}" for name, count in flops.items()),
        f"throughput     {plan['clips_per_s']:,.1f} clips/s, {plan['tokens_per_s']:,.0f} tokens/s if MFU is "
        f"{job.mfu:.0%} of {job.gpu.tflops:g} TFLOP/s (dense bf16)",
        f"run            {job.steps:,} steps of {job.global_batch} clips: {_hours(run)}",
    ]
    if plan["epoch"]:
        lines.append(f"epoch          {plan['epoch']['clips']:,} clips: {_hours(plan['epoch'])}")
    return [
        *lines,
        f"checkpoints    {gib(plan['checkpoint_bytes'])} each; save every {save['seconds'] / 60:,.0f} minutes, "
        f"{save['steps']:,} steps",
        f"               (Young and Daly: sqrt(2 x {job.checkpoint_s:g} s x {failure_h:,.0f} h between failures, "
        f"at {GPU_HOURS_PER_FAILURE:,.0f} GPU-hours each as for Llama 3)",
        *_disk(plan["disk"]),
    ]


def _disk(disk: dict[str, Any]) -> Iterator[str]:
    kept = disk["checkpoints"]
    yield f"disk           {gib(kept['bytes'])} in {kept['files']:,} files: {kept['count']} checkpoints at once at most"
    for name, what in {"tokens": "token shards", "text_features": "text features, at most"}.items():
        if shards := disk.get(name):
            yield f"               {gib(shards['bytes'])} in {shards['files']:,} files: {what}"


def _micro_batches(plan: dict[str, Any], job: Job) -> Iterator[str]:
    """Memory by ZeRO stage and micro-batch, up to the configured one or the largest that fits; and that one."""
    kind = "checkpointed" if job.checkpointing else "plain"
    table, largest = plan["memory_by_micro_batch"], plan["largest_micro_batch"]
    most = max(job.micro_batch, *(sizes[kind] for sizes in largest.values()))
    shown = [size for size in table["zero_1"][kind] if size <= most]
    yield (
        "micro-batch   "
        + "".join(f"{size:7d}" for size in shown)
        + f"  GiB; largest that fits in {HEADROOM:.0%}"
    )
    for zero, kinds in table.items():
        row = "".join(f"{kinds[kind][size] / 2**30:7.1f}" for size in shown)
        fits = largest[zero]
        yield f"  ZeRO stage {zero[-1]} {row}  {fits['plain']}, with activation checkpointing {fits['checkpointed']}"


def _hours(duration: dict[str, float]) -> str:
    return f"{duration['hours']:,.1f} hours, {duration['gpu_hours']:,.0f} GPU-hours"
