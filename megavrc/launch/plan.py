"""The needs of a training run: memory, time and GPU-hours, disk, and how often it should save."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from megavrc.checkpoint.shards import plan_shards
from megavrc.data.shards import BLOCK, npy_header
from megavrc.hardware import GPU
from megavrc.launch.memory import Activations, Precision, activations, memory_bytes
from megavrc.model import VRC, ModelConfig
from megavrc.model.flops import BACKWARD, forward_flops
from megavrc.tokenization.sampling import ClipSettings

# Llama 3 405B: 419 unexpected interruptions in 54 days on 16,384 GPUs (arXiv 2407.21783, section 3.3.4).
GPU_HOURS_PER_FAILURE = 54 * 24 * 16384 / 419
MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64)
HEADROOM = 0.92  # of the memory; the rest goes to fragmentation


@dataclass(frozen=True)
class Job:
    """A training run on given GPUs.

    Attributes:
        gpu: type. gpus: number.
        steps, global_batch, micro_batch, zero, precision: as in `train`.
        checkpointing: activation checkpointing of the layers.
        ema: an average of the weights is kept.
        mfu: assumed share of the dense peak.
        checkpoint_s: seconds that training stands still for a checkpoint.
        checkpoints: that are there at once at most.
        clips: of the dataset, if known.
    """

    gpu: GPU
    gpus: int
    steps: int
    global_batch: int
    micro_batch: int
    zero: int
    precision: Precision
    checkpointing: bool
    ema: bool
    mfu: float
    checkpoint_s: float
    checkpoints: int
    clips: int | None = None


def make_plan(model: ModelConfig, job: Job) -> dict[str, Any]:
    """Everything, as JSON: sizes in bytes, times in seconds unless the name says otherwise."""
    with torch.device("meta"):
        network = VRC(model)
    parameters = network.parameter_counts()
    kept = activations(model, job.precision)
    memory = _memory(parameters["total"], kept, job)
    table = _table(parameters["total"], kept, job)
    flops = forward_flops(model)
    clip = (1 + BACKWARD) * sum(flops.values())
    checkpoint = 4 * (3 + job.ema) * parameters["total"]  # fp32 weights and two moments, averages
    clips_s = job.gpus * job.gpu.tflops * 1e12 * job.mfu / clip
    tokens = (1 + model.frames) * model.tokens_per_frame
    return {
        "gpu": job.gpu.name,
        "gpus": job.gpus,
        "parameters": parameters,
        "memory": {**memory, "total": sum(memory.values()), "available": round(job.gpu.gib * 2**30)},
        "memory_by_micro_batch": table,
        "largest_micro_batch": _largest(table, HEADROOM * job.gpu.gib * 2**30),
        "forward_flops": flops,
        "training_flops_per_clip": clip,
        "mfu": job.mfu,
        "clips_per_s": clips_s,
        "tokens_per_s": clips_s * tokens,
        "run": _duration(job.steps * job.global_batch, clips_s, job.gpus),
        "epoch": None if job.clips is None else _duration(job.clips, clips_s, job.gpus),
        "save": _save_interval(job, job.global_batch / clips_s),
        "checkpoint_bytes": checkpoint,
        "disk": {
            "checkpoints": {
                "count": job.checkpoints,
                "bytes": job.checkpoints * checkpoint,
                "files": job.checkpoints * _checkpoint_files(network, job),
            },
            **_shards(model, job.clips),
        },
    }


def _memory(parameters: int, kept: Activations, job: Job) -> dict[str, int]:
    return memory_bytes(
        parameters,
        kept,
        precision=job.precision,
        zero=job.zero,
        gpus=job.gpus,
        ema=job.ema,
        micro_batch=job.micro_batch,
        checkpointing=job.checkpointing,
    )


def _table(parameters: int, kept: Activations, job: Job) -> dict[str, dict[str, dict[int, int]]]:
    """Bytes by ZeRO stage, without and with activation checkpointing, and micro-batch."""

    def total(**changes: Any) -> int:
        return sum(_memory(parameters, kept, replace(job, **changes)).values())

    stages = range(1, 4) if job.precision == "bf16" else range(4)
    return {
        f"zero_{zero}": {
            kind: {
                size: total(zero=zero, micro_batch=size, checkpointing=kind == "checkpointed")
                for size in MICRO_BATCHES
            }
            for kind in ("plain", "checkpointed")
        }
        for zero in stages
    }


def _largest(table: dict[str, dict[str, dict[int, int]]], limit: float) -> dict[str, dict[str, int]]:
    """The largest micro-batch of the table that fits, by ZeRO stage and checkpointing; 0: none."""
    return {
        zero: {
            kind: max((size for size, total in totals.items() if total <= limit), default=0)
            for kind, totals in kinds.items()
        }
        for zero, kinds in table.items()
    }


def _duration(clips: int, clips_s: float, gpus: int) -> dict[str, float]:
    return {"clips": clips, "hours": clips / clips_s / 3600, "gpu_hours": clips / clips_s / 3600 * gpus}


def _save_interval(job: Job, step_s: float) -> dict[str, float]:
    """Young's and Daly's optimum: the square root of 2 x seconds lost to a checkpoint x mean time between failures."""
    between_failures = GPU_HOURS_PER_FAILURE / job.gpus * 3600
    seconds = math.sqrt(2 * job.checkpoint_s * between_failures)
    return {"seconds": seconds, "steps": max(1, round(seconds / step_s)), "failure_every_s": between_failures}


def _checkpoint_files(network: VRC, job: Job) -> int:
    parameters = dict(network.named_parameters())
    groups = dict.fromkeys(("model", "exp_avg", "exp_avg_sq", *(("ema",) if job.ema else ())), parameters)
    shards = plan_shards({**groups, "buffers": dict(network.named_buffers())}, job.gpus)
    return len(shards) + 2  # state.json, manifest.json


def _shards(model: ModelConfig, samples: int | None) -> dict[str, dict[str, int] | None]:
    """Of tokens; and of text features, if the model reads them: as many of every caption as it has slots for."""
    condition = model.condition
    shapes: dict[str, tuple[int, ...]] = {"tokens": (1 + model.frames, model.grid, model.grid)}
    if condition.features:
        shapes["text_features"] = (condition.slots - 1, condition.feature_dim)
    return {
        name: None if samples is None else _on_disk(model, samples, shape) for name, shape in shapes.items()
    }


def _on_disk(model: ModelConfig, samples: int, shape: tuple[int, ...]) -> dict[str, int]:
    """Shards of the default size, of arrays of 2 bytes; of the two tar members of a sample the JSON takes one block."""
    settings = ClipSettings()
    blocks = 4 + (len(npy_header(shape)) + 2 * math.prod(shape) - 1) // BLOCK
    of_a_shard = settings.clips_per_shard * (1 if model.frames else settings.images_per_video)
    shards = -(-samples // of_a_shard)
    return {"bytes": samples * blocks * BLOCK, "files": 3 * shards}  # tar, index and done file


def problems(plan: dict[str, Any], job: Job) -> list[str]:
    """Settings that will not fit, each with one that would."""
    found = []
    memory, largest = plan["memory"], plan["largest_micro_batch"]
    if memory["total"] > HEADROOM * memory["available"]:
        most = max((name for name in memory if name not in ("total", "available")), key=memory.__getitem__)
        found.append(
            f"memory: {gib(memory['total'])} needed, {gib(HEADROOM * memory['available'])} usable ({HEADROOM:.0%} of "
            f"{gib(memory['available'])}); most of it is {most} ({gib(memory[most])}); {_advice(largest, job)}"
        )
    ranks = job.gpus * job.micro_batch
    if job.global_batch % ranks:
        found.append(
            f"train.global_batch: {job.global_batch} is not a multiple of {job.gpus} GPUs x train.micro_batch "
            f"{job.micro_batch}"
        )
    return found


def _advice(largest: dict[str, dict[str, int]], job: Job) -> str:
    for zero, sizes in largest.items():
        for kind, size in sizes.items():
            if size:
                of_rank, most = job.global_batch // job.gpus, min(size, job.micro_batch)
                divides = max(number for number in range(1, most + 1) if of_rank % number == 0)
                words = f"ZeRO stage {zero[-1]} with train.micro_batch {divides}"
                return words + (" and activation checkpointing fits" if kind == "checkpointed" else " fits")
    return "nothing fits: take larger GPUs, more of them, or a smaller preset"


def gib(number: float) -> str:
    """Bytes, for people."""
    return f"{number / 2**30:.1f} GiB"
