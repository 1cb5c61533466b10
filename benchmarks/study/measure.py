"""What a finished run of the study is worth: `measure.py {captions,gate,bits,passes,probes,tune,sample,..}`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sampling import decode, kept_checkpoints, sample, score

from megavrc.checkpoint import checkpoint_folder, read_weights
from megavrc.config import command, load_config
from megavrc.data.stream import evaluation_batches
from megavrc.errors import UserError
from megavrc.files import sha256_json, write_json
from megavrc.model import VRC
from megavrc.model.code_length import code_length
from megavrc.model.refinement import orders
from megavrc.model.sampling import uniforms
from megavrc.progress import progress
from megavrc.results import read_result
from megavrc.tokenizers import TextTokenizer
from megavrc.training.averaging import AVERAGE
from megavrc.training.tasks.base import Samples
from megavrc.training.tasks.vrc import VRCTask
from megavrc.training.tasks.vrc_config import RunConfig
from megavrc.video.manifest import read_captions

DRAWS = 10_000  # of the bootstrap
CLIPS = 512  # of a validation set, at most


def captions(manifest: Path, text: Path, config: Path, json: Path) -> None:
    """Refuse a set with captions that the model's slots would cut.

    Args:
        manifest: of the clips.
        text: tokenizer.model.
        config: YAML file of the runs.
        json: gets the longest caption and its slots.
    """
    slots = load_config(RunConfig, [f"--config={config}"]).model.condition.slots
    tokenizer = TextTokenizer(text)
    texts = set(read_captions(manifest))
    longest = max(texts, key=lambda caption: len(tokenizer.ids(caption)))
    needed = len(tokenizer.ids(longest)) + 1
    if needed > slots:
        raise UserError(f"{config}: model.condition.slots: is {slots}, {needed} are needed for {longest!r}")
    write_json(json, {"captions": len(texts), "slots": slots, "needed": needed, "longest": longest})


def gate(scores: Path, json: Path, least: dict[str, float], most: dict[str, float]) -> None:
    """Refuse a tokenizer that leaves too little of the clips.

    Args:
        scores: what `tools/evaluate.py scenes` wrote.
        json: gets the scores of the reconstructed clips that were asked for.
        least: score to the least value that passes.
        most: score to the most.
    """
    [case] = [case for case in read_result(scores)["cases"] if case["name"] == "reconstructed"]
    values = {name: case["metrics"][name]["value"] for name in (*least, *most)}
    checks = [(name, "at least", bound, 1) for name, bound in least.items()]
    checks += [(name, "at most", bound, -1) for name, bound in most.items()]
    wrong = [
        f"{name} {values[name]}, {how} {bound}"
        for name, how, bound, sign in checks
        if values[name] is None or sign * values[name] < sign * bound
    ]
    if wrong:
        raise UserError(
            f"{scores}: reconstructed clips do not pass: {'; '.join(wrong)}; train the tokenizer better"
        )
    write_json(json, values)


def bits(run: Path, checkpoints: list[int], json: Path, later_passes: list[int] | None = None) -> None:
    """Measure the bits that each clip of the validation sets costs, by latent frame.

    Averaged weights, running statistics, the condition never dropped, one clip at a time.

    Args:
        run: folder of the run.
        checkpoints: steps; those that the run has kept are measured, and its last one.
        json: gets them.
        later_passes: of a run with refinement, also the code length in so many passes, of its last checkpoint.
    """
    task, model = _opened(run)
    config = task.config
    kept = kept_checkpoints(run, config, checkpoints)
    cases = []
    for step in kept:
        _load(model, run, step)
        for name, samples in task.validation.items():
            label = f"{run.name} step {step}, {name}"
            counted: list[tuple[list[int] | int, NDArray[np.float64]]]
            counted = [(1, clips(task, model, samples, label))]
            if later_passes and step == max(kept):
                counted.append((later_passes, refined(task, model, samples, later_passes, label)))
            for passes, clip_bits in counted:
                how = {"checkpoint": step, "set": name, "later_passes": passes}
                cases.append(how | _case(samples, clip_bits))
    write_json(
        json,
        {
            "flops_per_clip": task.flops,
            "parameters": model.parameter_counts(),
            "steps": config.train.steps,
            "batch": config.train.global_batch,
            "cases": cases,
        },
    )


def passes(run: Path, count: int, json: Path) -> None:
    """Measure the bits that each clip costs in several passes of every later frame, at the last checkpoint.

    Args:
        run: folder of a run with refinement.
        count: passes of each later frame.
        json: gets them.
    """
    task, model = _opened(run)
    step = task.config.train.steps
    _load(model, run, step)
    cases = []
    for name, samples in task.validation.items():
        clip_bits = refined(task, model, samples, count, f"{run.name}, {name}")
        cases.append({"checkpoint": step, "set": name, "later_passes": count} | _case(samples, clip_bits))
    write_json(json, {"cases": cases})


def _opened(run: Path) -> tuple[VRCTask, VRC]:
    """A run's task, whose validation sets have at most CLIPS clips, and its model without trained weights."""
    config = load_config(RunConfig, [f"--config={run / 'config.yaml'}"])
    for chosen in config.data.validation.values():
        chosen.samples = CLIPS
    task = VRCTask(config)
    model = task.build()
    assert isinstance(model, VRC)
    return task, model


def _load(model: VRC, run: Path, step: int) -> None:
    """Averaged weights of a checkpoint."""
    model.load_state_dict(read_weights(checkpoint_folder(run, step), AVERAGE)[0])
    model.eval()


def _case(samples: Samples, clip_bits: NDArray[np.float64]) -> dict[str, Any]:
    keys = [samples.source[samples.order.sample(place)]["key"] for place in range(samples.count)]
    return {
        "n": len(clip_bits),
        "clips": sha256_json(keys),
        "frames": [interval(frame) for frame in clip_bits.T],
        "total": interval(clip_bits.sum(axis=1)),
        "by_clip": [" ".join(f"{value:.1f}" for value in row) for row in clip_bits],
    }


@torch.no_grad()
def clips(task: VRCTask, model: VRC, samples: Samples, label: str = "") -> NDArray[np.float64]:
    """[clips, latent frames] bits of each sample: tokens of a frame x mean cross-entropy / ln 2."""
    batches = evaluation_batches(
        samples.source, samples.order, count=samples.count, micro_batch=1, collate=task.collate
    )
    rows = []
    for batch, _ in progress(batches, label, samples.count):
        out = model(batch["ids"], batch["condition"], backend=task.config.train.attention)
        rows.append(out.loss_frames.double().numpy())
    return np.array(rows) * model.config.tokens_per_frame / np.log(2)


def refined(
    task: VRCTask, model: VRC, samples: Samples, later_passes: list[int] | int, label: str = ""
) -> NDArray[np.float64]:
    """As `clips`, with later frames drawn in several passes; cells of the clip at place i in the order of seed i."""
    config = model.config
    shape = (1 + config.frames, config.tokens_per_frame)
    batches = evaluation_batches(
        samples.source, samples.order, count=samples.count, micro_batch=8, collate=task.collate
    )
    rows: list[NDArray[np.float64]] = []
    for batch, _ in progress(batches, f"{label} in {later_passes} passes", -(-samples.count // 8)):
        seeds = list(range(8 * len(rows), 8 * len(rows) + len(batch["ids"])))
        order = orders(config, uniforms(seeds, shape[0] * shape[1], "cpu").unflatten(1, shape))
        nats = code_length(model, batch["ids"], batch["condition"], order, later_passes)
        rows.append(nats.double().numpy())
    return np.concatenate(rows) / np.log(2)


def interval(values: NDArray[np.float64]) -> dict[str, float]:
    """Mean of values over clips, with the 95% interval of a bootstrap over clips."""
    n = len(values)
    times = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS)
    low, high = np.percentile(times @ values / n, [2.5, 97.5])
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


if __name__ == "__main__":
    from probes import judge, probes
    from sheets import sheet
    from tuning import tune

    steps = {"captions": captions, "gate": gate, "bits": bits, "passes": passes, "probes": probes}
    steps |= {"tune": tune, "sample": sample, "score": score}
    steps |= {"judge": judge, "decode": decode, "sheet": sheet}
    command(steps)
