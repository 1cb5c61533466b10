"""Native DeepSpeed checkpoints (ZeRO stages 0 to 3) into ours, without DeepSpeed and without running what they name.

Layout, from DeepSpeed's own zero_to_fp32.py: at stages 1 and 2 each rank has a slice of one flat vector per parameter
group; at stage 3 it has, one after another, its slice of every parameter, padded so that all ranks have as much.
"""

import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megavrc.checkpoint import Lease, newest_good, write, write_record
from megavrc.config import to_dict
from megavrc.errors import UserError
from megavrc.tokenizers.published import load_without_running
from megavrc.training.config import BaseRunConfig
from megavrc.training.state import MOMENTS
from megavrc.training.tasks import Task

log = logging.getLogger("megavrc")

Tensors = dict[str, Tensor]
BUILT = {  # by (module, name), beside what every checkpoint of torch needs
    ("torch", "Size"): torch.Size,
    ("torch._tensor", "_rebuild_from_type_v2"): lambda build, kind, args, state: build(*args),
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *rest: data,
}


@dataclass(frozen=True)
class Native:
    """The content of a native checkpoint, by the names of the module that DeepSpeed trained.

    Attributes:
        step: optimiser steps done, skipped ones included.
        updates: steps that were applied.
        groups: "model" (fp32) and "buffers"; the moments, if they are there.
    """

    step: int
    updates: int
    groups: dict[str, Tensors]


def import_run(source: Path, tag: str, config: BaseRunConfig, task: Task[Any]) -> Path:
    """Write a native checkpoint as the first one of a new run, which then resumes from it.

    Args:
        source: folder that DeepSpeed's `save_checkpoint` wrote to.
        tag: of the checkpoint there; empty: what `latest` names.
        config, task: of the run.

    Raises:
        UserError: not such a checkpoint, not of this model, or the run has begun already.
    """
    run_dir = Path(config.run_dir)
    lease = Lease(run_dir)
    try:
        if newest_good(run_dir / "checkpoints") or (run_dir / "metrics.jsonl").is_file():
            raise UserError(f"{run_dir}: holds a run already; choose another run_dir")
        return _import(source, tag, config, task)
    finally:
        lease.release()


def _import(source: Path, tag: str, config: BaseRunConfig, task: Task[Any]) -> Path:
    native = read_native(_tagged(source, tag))
    groups = _renamed(native.groups, task.build(), source)
    state = {
        "updates": native.updates,
        "skipped": native.step - native.updates,
        "identity": task.identity,
        "facts": task.facts,
        "config": to_dict(config),
        "imported_from": str(source),
    }
    run_dir = Path(config.run_dir)
    write_record(run_dir, task.identity, task.facts, starts=[])
    return write(run_dir / "checkpoints", native.step, groups, state, keep=1)


def read_native(folder: Path) -> Native:
    """Read one checkpoint folder (`global_step...`). Raises UserError."""
    models = _load_all(folder, "*_model_states.pt")
    shards = _load_all(folder, "*_optim_states.pt")
    if not models:
        raise UserError(f"{folder}: not a DeepSpeed checkpoint (no *_model_states.pt in it)")
    try:
        step = int(models[0]["global_steps"])
        updates = step - int(models[0]["skipped_steps"])
        return Native(step, updates, _groups(models, [shard["optimizer_state_dict"] for shard in shards]))
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise UserError(f"{folder}: its content is not laid out as known ({error!r})") from None


def _groups(models: list[dict[str, Any]], shards: list[dict[str, Any]]) -> dict[str, Tensors]:
    module = models[0]["module"]
    if not shards:
        return _unsharded(module, models[0]["buffer_names"], models[0].get("optimizer"))
    for shard in shards:
        count = shard["partition_count"]
        if len(shards) != (max(count) if isinstance(count, list) else count):
            raise UserError(
                f"it was written by {count} ranks, the optimizer states of {len(shards)} are there"
            )
    whole = _stage3 if "fp32_flat_groups" in shards[0] else _stage1
    weights = "fp32_flat_groups" if whole is _stage3 else "single_partition_of_fp32_groups"
    inner = "optimizer_state_dict" if whole is _stage3 else "base_optimizer_state"
    parts: dict[str, list[list[Tensor]]] = {"model": [shard[weights] for shard in shards]}
    states = [shard[inner]["state"] for shard in shards]
    if all(isinstance(state, dict) and state for state in states):
        for moment in MOMENTS:
            parts[moment] = [[state[index][moment] for index in sorted(state)] for state in states]
    groups = {name: whole(models[0], shards[0], ranks) for name, ranks in parts.items()}
    groups["buffers"] = {name: module[name] for name in models[0]["buffer_names"] if name in module}
    return groups


def _stage1(model: dict[str, Any], shard: dict[str, Any], ranks: list[list[Tensor]]) -> Tensors:
    """ZeRO stages 1 and 2: one flat vector per parameter group, in as many slices as ranks."""
    found = {}
    for index, shapes in enumerate(model["param_shapes"]):
        flat, offset = torch.cat([parts[index].flatten() for parts in ranks]), 0
        paddings = (shard.get("param_alignment_paddings") or {index: [0] * len(shapes)})[index]
        for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
            size = math.prod(shape)
            found[name] = flat[offset : offset + size].view(shape).float()
            offset += size + padding
    return found


def _stage3(model: dict[str, Any], shard: dict[str, Any], ranks: list[list[Tensor]]) -> Tensors:
    """ZeRO stage 3: every rank has a slice of every parameter."""
    flat = [torch.cat([part.flatten() for part in parts]) for parts in ranks]
    found, offset = {}, 0
    for shapes in model["param_shapes"]:
        for name, shape in shapes.items():
            size = math.prod(shape)
            part = math.ceil(size / len(ranks))
            slices = [rank[offset : offset + part] for rank in flat]
            found[name] = torch.cat(slices)[:size].view(shape).float()
            offset += part
    return found


def _unsharded(module: Tensors, buffers: list[str], optimizer: Any) -> dict[str, Tensors]:
    """ZeRO stage 0: weights as they are; moments by number, in the order in which the optimizer got the parameters."""
    model = {name: tensor.float() for name, tensor in module.items() if name not in buffers}
    groups = {"model": model, "buffers": {name: module[name] for name in buffers if name in module}}
    moments = (optimizer or {}).get("state") or {}
    plain = list(model)
    matrices_first = sorted(plain, key=lambda name: model[name].dim() < 2)
    for names in (matrices_first, plain) if len(optimizer["param_groups"]) > 1 else (plain,):
        shapes = [moments[index]["exp_avg"].shape for index in sorted(moments)]
        if shapes == [model[name].shape for name in names]:
            for moment in MOMENTS:
                groups[moment] = {
                    name: moments[i][moment] for i, name in zip(sorted(moments), names, strict=True)
                }
            break
    return groups


def _renamed(groups: dict[str, Tensors], model: nn.Module, source: Path) -> dict[str, Tensors]:
    """The same by the names of our model; what DeepSpeed trained may have held it as a part."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    first = next(iter(parameters))
    prefixes = [name.removesuffix(first) for name in groups["model"] if name.endswith(first)]
    prefix = next((p for p in prefixes if all(p + name in groups["model"] for name in parameters)), None)
    if prefix is None:
        raise UserError(f"{source}: holds other weights than model describes, for example no {first}")
    for name, parameter in parameters.items():
        if (shape := groups["model"][prefix + name].shape) != parameter.shape:
            raise UserError(
                f"{source}: {name} has shape {tuple(shape)}, model describes {tuple(parameter.shape)}"
            )
    others = [name for name in model.state_dict() if name not in parameters]
    held = groups["model"] | groups["buffers"]
    if missing := [name for name in others if prefix + name not in held]:
        raise UserError(f"{source}: has no {missing[0]}")
    renamed = {"buffers": {name: held[prefix + name] for name in others}}
    for group in ("model", *MOMENTS):
        if group in groups:
            renamed[group] = {name: groups[group][prefix + name] for name in parameters}
        else:
            log.warning(
                "%s: %s starts from zero: it is not there, or whose it is cannot be told", source, group
            )
            renamed[group] = {name: torch.zeros_like(p, device="cpu") for name, p in parameters.items()}
    return renamed


def _tagged(source: Path, tag: str) -> Path:
    latest = source / "latest"
    if not tag and latest.is_file():
        tag = latest.read_text().strip()
    folder = source / tag
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one of the tags in {source}")
    return folder


def _load_all(folder: Path, pattern: str) -> list[dict[str, Any]]:
    paths = sorted(folder.glob(pattern), key=lambda path: list(_numbers(path.name)))
    return [load_without_running(path, BUILT)[0] for path in paths]


def _numbers(name: str) -> Iterator[int]:
    return map(int, re.findall(r"\d+", name))
