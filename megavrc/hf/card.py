"""The model card of a converted folder, filled from the run; it names no machine and no path."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megavrc.errors import UserError
from megavrc.files import read_lines_of_json, read_object
from megavrc.model import ModelConfig
from megavrc.model.omnitokenizer import OmniTokenizerConfig

# Names in metrics.jsonl.
LOSSES = {"loss": "final loss", "first": "of the first frame", "later": "of the later frames"}
LICENSE = """The Python files of this folder are part of megavrc and under the Apache License 2.0
(https://www.apache.org/licenses/LICENSE-2.0).

The weights come from a training run. Their licence is for whoever ran it to choose, within the terms of the data and
of the video tokenizer; this note grants none.
"""

LONGER = """ More `frames=` are made in windows; each
continues from the end of the one before, and detail fades."""

CARD = """---
library_name: transformers
pipeline_tag: {pipeline}
tags:
- video-generation
- vrc
---

# {title}

A VRC video generator ("Less Is More: Vision Representation Compression for Efficient Video Generation with Large
Language Models"): a language model writes the first frame token by token and every later latent frame as one segment
of compressed representations. The folder holds the generator, the video tokenizer{text_note} and all code they need;
it was made by megavrc.

## Use

    pip install torch transformers safetensors pillow

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("path/to/this/folder", trust_remote_code=True)
frames = model.generate_video({example}, seed=0, output="pil")[0]  # {frames} images of {side} x {side} pixels
frames[0].save("clip.gif", save_all=True, append_images=frames[1:], duration=1000 / model.config.fps, loop=0)
```

`first_frame=` animates a picture, `clip=` continues a clip, `guidance=`, `temperature=`, `top_k=` and `top_p=` steer
the sampling (generation_config.json holds the defaults). `output=` is `"uint8"` (the default), `"np"` or `"pt"` for
pixels, `"pil"` for images, `"ids"` for tokens. The same seed gives the same clip; it depends on nothing else in the
batch.

## Model

| | |
|---|---|
{model_rows}

## Training

| | |
|---|---|
{training_rows}

## Limits

{limits}

## Licence

Code: Apache-2.0. Weights: see LICENSE.
"""


def model_card(
    title: str,
    config: ModelConfig,
    tokenizer: OmniTokenizerConfig,
    parameters: int,
    training: dict[str, Any],
    prompt: str | None = None,
) -> str:
    """README.md of a folder.

    `training` holds the rows of its training table, `prompt` is the text or the name of the class of its example.
    """
    frames, side = 1 + config.frames * tokenizer.temporal_patch, config.grid * tokenizer.patch
    condition = config.condition
    learned = condition.learned_text
    given = json.dumps(prompt, ensure_ascii=False) if prompt else None
    if learned:
        example = given or '"a"'
    else:
        example = f"label={given or 0}" if condition.is_class else "condition=features"
    model_rows = {
        "parameters": f"{parameters / 1e6:.1f} M (generator)",
        "layers, heads, width": f"{config.layers}, {config.heads}, {config.width}",
        "condition": condition.kind + (f" ({condition.classes} classes)" if condition.classes else ""),
        "clip": f"{frames} frames of {side} x {side} pixels",
        "tokens": f"{1 + config.frames} x {config.grid} x {config.grid}, {config.vocab} codes",
        "compression": f"{config.compression.kind}, rate {config.compression.rate}"
        if config.has_segments
        else "none",
    }
    return CARD.format(
        pipeline="other" if condition.is_class else "text-to-video",
        title=title,
        text_note=", the text tokenizer" if learned else "",
        example=example,
        frames=frames,
        side=side,
        model_rows=_rows(model_rows),
        training_rows=_rows(training),
        limits=f"Trained on clips of {frames} frames of {side} x {side} pixels; shows what the training data shows."
        + (LONGER if config.frames else ""),
    )


def training_record(state: dict[str, Any], run: Path, averaged: bool = False) -> dict[str, Any]:
    """The origin of weights, for a folder's config.json: stage, step, facts, and the rows of the training table.

    Args:
        state: of the checkpoint.
        run: the folder of the run.
        averaged: the weights are their average over training.
    """
    if "training" in state:  # of a checkpoint that was made of a folder
        return dict(state["training"])
    rows = training_rows(state, run)
    if averaged:
        decay = state["config"]["train"]["ema"]
        rows["weights"] = (
            f"moving average over the steps (decay {decay}); the losses are of the latest weights"
        )
    return {
        "stage": state["identity"]["stage"],
        "step": state["step"],
        "facts": state.get("facts", {}),
        "summary": list(rows.items()),  # pairs: JSON written by transformers sorts keys
    }


def training_rows(state: dict[str, Any], run: Path) -> dict[str, Any]:
    """Rows of the training table: data, steps, batch, final losses."""
    config = state["config"]
    rows = {
        "stage": config["stage"],
        "steps": state["step"],
        "global batch": config["train"]["global_batch"],
        "data": "; ".join(_datasets(state)),
        "seed": config["seed"],
    }
    if incomplete := state.get("facts", {}).get("incomplete"):
        rows["incomplete samples"] = incomplete
    losses = _losses(run / "metrics.jsonl", state["step"])
    return rows | {name: f"{value:.4f}" for name, value in losses.items()}


def _datasets(state: dict[str, Any]) -> Iterator[str]:
    """Each dataset in words, without its place; its folder's name when it is no longer there."""
    data, identity = state["config"]["data"], state["identity"]["data"]
    for number, part in enumerate(data.get("blend") or [data]):
        folder = Path(part["path"])
        samples = (identity[str(number)] if data.get("blend") else identity)["samples"]  # of the split alone
        try:
            info = read_object(folder / "dataset.json", {"kind": str, "shape": list[int]})
        except (UserError, OSError):
            yield folder.name
        else:
            yield f"{samples} samples ({info['kind']}) of {' x '.join(map(str, info['shape']))} tokens"


def _losses(metrics: Path, step: int) -> dict[str, float]:
    """The last losses in metrics.jsonl up to a step."""
    losses: dict[str, float] = {}
    for line in read_lines_of_json(metrics) if metrics.is_file() else []:
        found = {LOSSES[name]: value for name, value in line.items() if name in LOSSES}
        if found and line.get("step", 0) <= step:
            losses = found
    return losses


def _rows(rows: dict[str, Any]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())
