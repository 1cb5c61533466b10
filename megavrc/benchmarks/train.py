"""Speed and memory of training VRC, against next-token prediction of all frames (half of Figure 6)."""

import itertools
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from megavrc.benchmarks.loader import write_dataset
from megavrc.config import dump_yaml
from megavrc.errors import EXIT_USER, UserError
from megavrc.files import read_json
from megavrc.hardware import gpu_of
from megavrc.launch.memory import GPU_ONLY, activations, memory_bytes
from megavrc.measure import turns
from megavrc.model import VRC, ConditionConfig, ModelConfig
from megavrc.model.attention import Backend
from megavrc.model.config import Preset
from megavrc.results import Metric, case, check_result_place, median_of, metric, publish_tables, ratio, result
from megavrc.training.tasks.vrc_config import ClipPreviewConfig, RunConfig, TokenDataConfig, VRCTrainConfig

CLASSES = 101  # of UCF101
SAMPLES = 256  # of the generated dataset
Case = tuple[Any, int, Any]  # preset, micro-batch, prediction
METRICS = {  # name -> (what a round calls it, unit)
    "clips": ("clips/s", "clips/s"),
    "tokens": ("tokens/s", "tokens/s"),
    "flops": ("TFLOP/s/rank", "TFLOP/s"),
    "mfu": ("mfu_%", "%"),
    "memory": ("memory_GiB", "GiB"),
    "reserved": ("reserved_GiB", "GiB"),
    "before": ("before_GiB", "GiB"),
    "data_wait": ("data_wait_%", "%"),
    "cpu_clips": ("clips_per_cpu_s", "clips/CPU s"),
    "first": ("first", "nats"),
    "later": ("later", "nats"),
}
# Those that are printed.
COLUMNS = ["clips", "tokens", "flops", "mfu", "memory", "planned", "data_wait", "stall", "out_of_memory"]
MODELS: tuple[Literal["segment", "token"], ...] = ("segment", "token")
NO_MEMORY = re.compile(
    r"OutOfMemoryError|out of memory|can't allocate memory|MemoryError|SIGKILL|exitcode: -9"
)
KILLED = (-9, 137)  # by the kernel, which is how a CPU runs out of memory


def train(
    preset: list[Preset] | None = None,
    frames: int = 4,
    micro_batch: list[int] | None = None,
    grid: int = 0,
    precision: Literal["fp32", "bf16"] | None = None,
    attention: Literal["auto", Backend] = "auto",
    activation_checkpointing: Literal["none", "layers"] = "none",
    compile: bool = False,
    zero: Literal[0, 1, 2, 3] = 1,
    steps: int | None = None,
    warmup: int | None = None,
    rounds: int = 1,
    saves: int = 2,
    processes: int = 1,
    threads: int = 1,
    folder: Path | None = None,
    json: Path | None = None,
) -> None:
    """Train VRC and the baseline (`prediction: token`) of the same preset on the same generated token shards.

    All goes through the real data stream, engine and metrics, class-conditional, on the GPUs of this machine if it
    has any. Every case is measured in fresh processes, VRC and the baseline taking turns; one that runs out of
    memory is reported as that. Medians over the timed steps, then over the rounds.

    Args:
        preset: presets (default: b).
        frames: latent frames after the first.
        micro_batch: clips of one forward pass of a rank (default: 8), no accumulation.
        grid: cells along a side of a latent frame (default: of the preset).
        precision: fp32 or bf16 (default: bf16 on GPUs).
        attention: attention backend.
        activation_checkpointing: `layers` computes each layer a second time.
        compile: compile each layer with torch.compile.
        zero: ZeRO stage.
        steps: timed steps of a case in a round (default: 20 on GPUs, 2 on the CPU).
        warmup: untimed steps before those (default: 5 on GPUs, 1 on the CPU).
        rounds: times each case is measured.
        saves: checkpoints written after the timed steps of the first round.
        processes: ranks of a run.
        threads: CPU threads of a rank.
        folder: folder on the disk that checkpoints are written to (default: a temporary one).
        json: file to write the results to.
    """
    check_result_place(json)
    on_gpu = torch.cuda.is_available()
    steps = steps if steps is not None else 20 if on_gpu else 2
    warmup = warmup if warmup is not None else 5 if on_gpu else 1
    if min(steps, warmup, rounds, processes, threads, *(micro_batch or [1])) < 1 or saves < 0 or frames < 1:
        raise UserError("all numbers must be at least 1, only --saves may be 0")
    settings = VRCTrainConfig(
        steps=steps,
        precision=precision or ("bf16" if on_gpu else "fp32"),
        attention=attention,
        activation_checkpointing=activation_checkpointing,
        compile=compile,
        zero=zero,
        keep=1,
        watchdog_s=0,
    )
    cases = list(itertools.product(preset or ["b"], micro_batch or [8], MODELS))
    results: dict[Case, list[dict[str, Any]]] = {each: [] for each in cases}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        configs = {each: _config(Path(name), each, frames, grid, settings, processes) for each in cases}
        for number, each in turns(cases, rounds, label="cases"):
            options = [str(warmup), str(saves if number == 0 else 0)]
            results[each].append(_run(Path(name), configs[each], options, processes, threads))
    rows = [_row(each, found, _planned(configs[each], processes)) for each, found in results.items()]
    names = ("steps", "precision", "attention", "activation_checkpointing", "compile", "zero")
    config = {"frames": frames, "grid": configs[cases[0]].model.grid, "processes": processes}
    config |= {name: getattr(settings, name) for name in names}
    known = gpu_of(torch.cuda.get_device_name()) if on_gpu else None
    protocol = {
        "warmup": warmup,
        "rounds": rounds,
        "value": "median over the timed steps, then over the rounds; of memory the most",
        "spread": "range of the rounds; of stalls, of the checkpoints of the first round",
        "dense_bf16_peak_tflops": known.tflops if known else None,
    }
    device = "cuda" if on_gpu else "cpu"
    publish_tables(
        result("benchmark train", config, rows, ratios(rows), protocol, device, threads), json, COLUMNS
    )


# --- one case -----------------------------------------------------------------------------------------------------


def _config(
    folder: Path, case: Case, frames: int, grid: int, train: VRCTrainConfig, processes: int
) -> RunConfig:
    """A run on generated shards of the model's shape, which are written if they are not there."""
    preset, micro_batch, prediction = case
    condition = ConditionConfig(kind="class", classes=CLASSES)
    try:
        model = ModelConfig(preset, frames=frames, grid=grid, prediction=prediction, condition=condition)
        data = folder / f"data-{model.grid}-{model.vocab}"
        config = RunConfig(
            run_dir="run",
            stage="video",
            model=model,
            data=TokenDataConfig(path=str(data)),
            train=replace(train, micro_batch=micro_batch, global_batch=micro_batch * processes),
            preview=ClipPreviewConfig(count=0),
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    if not data.exists():
        shape = (1 + frames, model.grid, model.grid)
        write_dataset(data, samples=SAMPLES, shards=1, shape=shape, vocab=model.vocab)
    return config


def _run(folder: Path, config: RunConfig, options: list[str], processes: int, threads: int) -> dict[str, Any]:
    """Measure in fresh processes. What they found, or {"out_of_memory": True}.

    Raises:
        UserError: the settings do not fit together or cannot run here.
        RuntimeError: the case failed for another reason; with the end of what it said.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        out = Path(name) / "result.json"
        config.run_dir = str(Path(name) / "run")
        dump_yaml(config, Path(name) / "run.yaml")
        words = [str(out), *options, f"--config={Path(name) / 'run.yaml'}"]
        launcher = (
            ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
            if processes > 1
            else []
        )
        ended = subprocess.run(
            [sys.executable, "-m", *launcher, "megavrc.benchmarks.train_case", *words],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
        )
        if ended.returncode == 0:
            return read_json(out)
    if ended.returncode in KILLED or NO_MEMORY.search(ended.stderr):
        return {"out_of_memory": True}
    if ended.returncode == EXIT_USER:
        raise UserError(ended.stderr.strip().splitlines()[-1].removeprefix("error: "))
    raise RuntimeError(f"{' '.join(words)}: exit code {ended.returncode}\n{ended.stderr[-3000:]}")


def training_peak(folder: Path, measured: Case, frames: int) -> float | None:
    """Bytes that a GPU has at most had in three steps of training, bf16, ZeRO stage 1; None: more than there are."""
    settings = VRCTrainConfig(steps=2, precision="bf16", zero=1, keep=1, watchdog_s=0)
    found = _run(folder, _config(folder, measured, frames, 0, settings, 1), ["1", "0"], 1, 1)
    return None if "out_of_memory" in found else found["memory_GiB"] * 2**30


# --- the result ---------------------------------------------------------------------------------------------------


def _row(measured: Case, rounds: list[dict[str, Any]], planned: float) -> dict[str, Any]:
    """A case of the result: medians over the rounds; the most memory."""
    preset, micro_batch, prediction = measured
    config = {"preset": preset, "micro_batch": micro_batch, "prediction": prediction}
    name = f"{preset}, micro-batch {micro_batch}, {'VRC' if prediction == 'segment' else 'token'}"
    if any("out_of_memory" in found for found in rounds):
        return case(name, {}, {"out_of_memory": True}, **config)
    metrics = {
        name: median_of([found[key] for found in rounds], unit)
        for name, (key, unit) in METRICS.items()
        if key in rounds[0]
    }
    for most in {"memory", "reserved"} & set(metrics):
        metrics[most]["value"] = metrics[most]["high"]
    metrics["planned"] = metric(planned, "GiB")
    if stalls := rounds[0]["checkpoint_stalls_s"]:
        metrics["stall"] = median_of(stalls, "s")
    return case(name, metrics, **config)


def _planned(config: RunConfig, processes: int) -> float:
    """GiB that `megavrc plan_run` reckons with, of what `memory` counts: on GPUs without CUDA's own; on the CPU it
    comes on top of the libraries' memory, `before` and about 0.2 GiB that are loaded later.
    """
    model, train = config.model, config.train
    with torch.device("meta"):
        parameters = VRC(model).parameter_counts()["total"]
    memory = memory_bytes(
        parameters,
        activations(model, train.precision),
        precision=train.precision,
        zero=train.zero,
        gpus=processes,
        ema=train.ema > 0,
        micro_batch=train.micro_batch,
        checkpointing=train.activation_checkpointing != "none",
    )
    left_out = ("CUDA",) if torch.cuda.is_available() else GPU_ONLY
    return sum(size for purpose, size in memory.items() if purpose not in left_out) / 2**30


def ratios(rows: list[dict[str, Any]]) -> dict[str, Metric]:
    """VRC over the baseline, by preset and micro-batch, where both fit."""
    found = {}
    for vrc, token in zip(rows[::2], rows[1::2], strict=True):
        if vrc["metrics"] and token["metrics"]:
            for name in ("clips", "cpu_clips", "memory"):
                found[f"{vrc['name']} / token: {name}"] = ratio(vrc["metrics"][name], token["metrics"][name])
    return found
