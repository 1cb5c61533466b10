"""Clips of a finished run: drawn as ids from one of its checkpoints, then decoded and scored from pixels."""

import json as json_format
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from megavrc.checkpoint import read_weights
from megavrc.config import load_config
from megavrc.data.dataset import TokenDataset
from megavrc.errors import UserError
from megavrc.evaluation.scene_modes import score_modes
from megavrc.evaluation.scene_scores import SceneScore, score_scenes
from megavrc.files import sha256_json, write_json
from megavrc.model import VRC, ClipRequest, Sampling, SamplingSettings, VideoPipeline
from megavrc.progress import progress
from megavrc.tokenizers import OmniTokenizer
from megavrc.training.averaging import AVERAGE
from megavrc.training.tasks.vrc import VRCTask
from megavrc.training.tasks.vrc_config import RunConfig
from megavrc.video.scenes import Scene, from_attributes

BATCH = 32  # clips drawn together; a clip does not depend on the others


def sample(
    run: Path,
    checkpoint: int,
    out: Path,
    entry: Literal["given", "free", "real"] = "given",
    prompts: int = 512,
    draws: int = 1,
    untold: bool = False,
    first_temperature: float = 1.0,
    later_temperature: float = 1.0,
    top_p: float = 1.0,
    later_passes: list[int] | None = None,
    split: str = "test",
    seed: int = 0,
) -> None:
    """Draw clips from the averaged weights of a checkpoint, as ids.

    Draw j of prompt i has the sampling seed SEED + i x DRAWS + j, whatever the run.

    Args:
        run: folder of the run.
        checkpoint: step.
        out: .npz file that gets them, with the rows of the split and the settings.
        entry: `given`: from the true first frame; `free`: from the condition alone; `real`: the data's own ids.
        prompts: the first so many samples of the split.
        draws: clips for each.
        untold: only samples whose motions are not all told.
        first_temperature: of the first frame.
        later_temperature: of the later ones.
        top_p: of both.
        later_passes: of a run with refinement, passes of the later frames; missing ones are 1.
        split: of the run's data.
        seed: see above.
    """
    config = load_config(RunConfig, [f"--config={run / 'config.yaml'}"])
    config.data.split, config.data.validation = split, {}
    task = VRCTask(config)
    [data] = task.source.parts
    rows = [row for row in range(len(data)) if not untold or data.read(row)[1]["attributes"]["bits"]][
        :prompts
    ]
    if len(rows) < prompts:
        raise UserError(f"--prompts={prompts}: split {split!r} has {len(rows)}")
    jobs = [(row, seed + place * draws + draw) for place, row in enumerate(rows) for draw in range(draws)]
    parts = Sampling(first_temperature, 0, top_p), Sampling(later_temperature, 0, top_p)
    settings = SamplingSettings(*parts, later_passes=later_passes or 1)
    model = task.build()
    assert isinstance(model, VRC)
    model.load_state_dict(read_weights(run / "checkpoints" / f"step-{checkpoint:08d}", AVERAGE)[0])
    pipeline, ids = VideoPipeline(model), []
    for start in progress(range(0, len(jobs), BATCH), f"{run.name} step {checkpoint}, {entry}"):
        items = [data[row] for row, _ in jobs[start : start + BATCH]]
        true = torch.stack([item["ids"] for item in items])
        if entry != "real":
            first = true[:, :1] if entry == "given" else None
            seeds = [number for _, number in jobs[start : start + BATCH]]
            true = pipeline.generate(ClipRequest(task.condition(items), seeds, settings, first), "ids")
        ids.append(true.numpy().astype(np.int16))
    out.parent.mkdir(parents=True, exist_ok=True)
    how = {
        "checkpoint": checkpoint,
        "entry": entry,
        "prompts": prompts,
        "draws": draws,
        "untold": untold,
        "temperatures": [first_temperature, later_temperature],
        "top_p": top_p,
        "later_passes": later_passes or 1,
        "split": split,
        "seed": seed,
    }
    unfinished = out.with_suffix(".unfinished.npz")
    np.savez(unfinished, ids=np.concatenate(ids), rows=[row for row, _ in jobs], how=json_format.dumps(how))
    unfinished.replace(out)


def score(run: Path, samples: Path, json: Path) -> None:
    """Decode the clips of `sample` and score them by the detectors of scenes.

    Args:
        run: folder of the run.
        samples: the .npz file.
        json: gets the scores: mean, interval over clips (with draws, over first frames), and each clip's own.
    """
    config = load_config(RunConfig, [f"--config={run / 'config.yaml'}"])
    content = np.load(samples)
    how = json_format.loads(str(content["how"]))
    data = TokenDataset(config.data.path, split=how["split"])
    scenes = [from_attributes(data.read(int(row))[1]["attributes"]) for row in content["rows"]]
    clips = _decoded(OmniTokenizer.from_checkpoint(config.data.video_tokenizer), content["ids"], samples.stem)
    if how["draws"] > 1:
        scores = score_modes(_by_prompt(scenes, list(clips), how["draws"]))
    else:
        scores = score_scenes(clips, scenes)
    keys = [data.key(int(row)) for row in content["rows"]]
    write_json(
        json,
        how
        | {
            "n": len(scenes),
            "clips": sha256_json(keys),
            "scores": {name: found.to_dict() for name, found in scores.items()},
            "by_clip": {name: _line(found) for name, found in scores.items() if found.values.ndim == 1}
            | {"objects": " ".join(str(len(scene.objects)) for scene in scenes[:: how["draws"]])},
        },
    )


def decode(run: Path, samples: Path, out: Path) -> None:
    """Decode the clips of `sample`, for the metrics of `megavrc evaluate`.

    Args:
        run: folder of the run.
        samples: the .npz file.
        out: .npz file that gets the clips with their keys and captions.
    """
    config = load_config(RunConfig, [f"--config={run / 'config.yaml'}"])
    content = np.load(samples)
    data = TokenDataset(config.data.path, split=json_format.loads(str(content["how"]))["split"])
    captions = [data.read(int(row))[1]["caption"] for row in content["rows"]]
    tokenizer = OmniTokenizer.from_checkpoint(config.data.video_tokenizer)
    clips = np.stack(list(_decoded(tokenizer, content["ids"], samples.stem)))
    keys = [data.key(int(row)) for row in content["rows"]]
    np.savez(out, clips=clips, keys=np.array(keys), prompts=np.array(captions))


def _decoded(tokenizer: OmniTokenizer, ids: NDArray[np.int16], label: str) -> Iterator[NDArray[np.uint8]]:
    for start in progress(range(0, len(ids), BATCH), label):
        yield from tokenizer.decode(torch.from_numpy(ids[start : start + BATCH]).long()).numpy()


def _by_prompt(
    scenes: Sequence[Scene], clips: Sequence[NDArray[np.uint8]], draws: int
) -> list[tuple[Scene, Sequence[NDArray[np.uint8]]]]:
    return [(scenes[start], clips[start : start + draws]) for start in range(0, len(scenes), draws)]


def _line(found: SceneScore) -> str:
    """Each clip's value; "-" where it says nothing."""
    values: list[Any] = found.values.tolist()
    return " ".join("-" if value != value else f"{value:.3g}" for value in values)
