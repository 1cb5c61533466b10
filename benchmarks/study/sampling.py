"""Clips of a finished run: drawn as ids from one of its checkpoints, then decoded and scored from pixels."""

import json as json_format
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megavrc.checkpoint import checkpoint_folder, read_weights
from megavrc.config import load_config
from megavrc.data.dataset import TokenDataset
from megavrc.errors import UserError
from megavrc.evaluation.scene_modes import score_modes
from megavrc.evaluation.scene_scores import SceneScore, score_scenes
from megavrc.files import read_json, sha256_json, write_json
from megavrc.model import VRC, ClipRequest, Sampling, SamplingSettings, VideoPipeline
from megavrc.progress import progress
from megavrc.tokenizers import OmniTokenizer
from megavrc.training.averaging import AVERAGE
from megavrc.training.tasks.vrc import VRCTask
from megavrc.training.tasks.vrc_config import RunConfig
from megavrc.video.scenes import Scene, from_attributes

Entry = Literal["given", "free", "each", "real"]

STILL = 9  # times a first frame is shown, for the detectors look for motion
BATCH = 32  # clips drawn together; a clip does not depend on the others


def sample(
    run: Path,
    checkpoint: int,
    out: Path,
    entry: Entry = "given",
    prompts: int = 512,
    draws: int = 1,
    untold: bool = False,
    first_temperature: float = 1.0,
    later_temperature: float = 1.0,
    top_p: float = 1.0,
    tuning: Path | None = None,
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
        entry: `given`: from the true first frame; `free`: from the condition alone; `each`: each later frame from all
            true ones before it, with the numbers that `given` draws it with; `real`: the data's own ids.
        prompts: the first so many samples of the split.
        draws: clips for each.
        untold: only samples whose motions are not all told.
        first_temperature: of the first frame.
        later_temperature: of the later ones.
        top_p: of both.
        tuning: what `tune` wrote: its best of this entry (of `given` for `each`) take the place of these three.
        later_passes: of a run with refinement, passes of the later frames; missing ones are 1.
        split: of the run's data.
        seed: see above.
    """
    opened = OpenRun(run, checkpoint, split)
    rows = [row for row in range(len(opened.data)) if not untold or opened.attributes(row)["bits"]][:prompts]
    if len(rows) < prompts:
        raise UserError(f"--prompts={prompts}: split {split!r} has {len(rows)}")
    jobs = [(row, seed + place * draws + draw) for place, row in enumerate(rows) for draw in range(draws)]
    temperatures = first_temperature, later_temperature, top_p
    if tuning:
        chosen = read_json(tuning)["best"]["free" if entry == "free" else "given"]
        temperatures = (*chosen["temperatures"], chosen["top_p"])
    ids = opened.draw(jobs, entry, temperatures, later_passes)
    out.parent.mkdir(parents=True, exist_ok=True)
    how = {
        "checkpoint": checkpoint,
        "entry": entry,
        "prompts": prompts,
        "draws": draws,
        "untold": untold,
        "temperatures": list(temperatures[:2]),
        "top_p": temperatures[2],
        "later_passes": later_passes or 1,
        "split": split,
        "seed": seed,
    }
    unfinished = out.with_suffix(".unfinished.npz")
    np.savez(unfinished, ids=ids, rows=[row for row, _ in jobs], how=json_format.dumps(how))
    unfinished.replace(out)


def kept_checkpoints(run: Path, config: RunConfig, steps: Sequence[int]) -> list[int]:
    """Those of the steps and the run's last one whose checkpoints it has kept; UserError where there are none."""
    wanted = sorted({*steps, config.train.steps})
    kept = [step for step in wanted if checkpoint_folder(run, step).is_dir()]
    if not kept:
        raise UserError(f"{run}: none of the checkpoints {wanted} is there")
    return kept


class OpenRun:
    """A finished run: its weights of a checkpoint (averaged), and a split of its data.

    Attributes:
        task, data, model: of the run.
        tokenizer: that decodes its ids.
    """

    def __init__(self, run: Path, checkpoint: int, split: str) -> None:
        config = load_config(RunConfig, [f"--config={run / 'config.yaml'}"])
        config.data.split, config.data.validation = split, {}
        self.task, self.label = VRCTask(config), f"{run.name} step {checkpoint}"
        [self.data] = self.task.source.parts
        self.model = self.task.build()
        assert isinstance(self.model, VRC)
        self.model.load_state_dict(read_weights(checkpoint_folder(run, checkpoint), AVERAGE)[0])
        self.model.eval()
        self.tokenizer = config.data.video_tokenizer

    def attributes(self, row: int) -> dict[str, Any]:
        """What the manifest says of a clip."""
        found: dict[str, Any] = self.data.read(row)[1]["attributes"]
        return found

    def draw(
        self,
        jobs: Sequence[tuple[int, int]],
        entry: Entry,
        temperatures: Sequence[float] = (1.0, 1.0, 1.0),
        later_passes: list[int] | None = None,
    ) -> NDArray[np.int16]:
        """Clips as ids, [jobs, 1 + F, g, g].

        Args:
            jobs: (row, sampling seed) of each.
            entry, later_passes: see `sample`.
            temperatures: of the first frame, of the later ones, and top-p of both.
        """
        first, later, top_p = temperatures
        parts = Sampling(first, 0, top_p), Sampling(later, 0, top_p)
        settings = SamplingSettings(*parts, later_passes=later_passes or 1)
        pipeline, ids = VideoPipeline(self.model), []
        for start in progress(range(0, len(jobs), BATCH), f"{self.label}, {entry}"):
            items = [self.data[row] for row, _ in jobs[start : start + BATCH]]
            seeds = [number for _, number in jobs[start : start + BATCH]]
            request = ClipRequest(self.task.condition(items), seeds, settings)
            true = torch.stack([item["ids"] for item in items])
            ids.append(_drawn(pipeline, request, entry, true).numpy().astype(np.int16))
        return np.concatenate(ids)


def _drawn(pipeline: VideoPipeline, request: ClipRequest, entry: Entry, true_BTHW: Tensor) -> Tensor:
    if entry == "real":
        return true_BTHW
    if entry != "each":
        first = true_BTHW[:, :1] if entry == "given" else None
        return pipeline.generate(replace(request, beginning=first), "ids")
    drawn = [true_BTHW[:, :1]]
    for frame in range(1, true_BTHW.shape[1]):
        asked = replace(request, beginning=true_BTHW[:, :frame], frames=frame + 1)
        drawn.append(pipeline.generate(asked, "ids")[:, -1:])
    return torch.cat(drawn, dim=1)


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
    tokenizer = OmniTokenizer.from_checkpoint(config.data.video_tokenizer)
    clips = decoded(tokenizer, content["ids"], samples.stem)
    if how["draws"] > 1:
        scores = score_modes(_by_prompt(scenes, list(clips), how["draws"]))
    elif how["entry"] == "each":
        true = np.stack([data.read(int(row))[0] for row in content["rows"]])
        scores = {"whole_by_latent": _score_each(tokenizer, content["ids"], true, scenes, samples.stem)}
    else:
        scores = score_scenes(clips, scenes)
        if how["entry"] == "free":
            scores["first_frame"] = _score_first(tokenizer, content["ids"], scenes, samples.stem)
    keys = [data.key(int(row)) for row in content["rows"]]
    write_json(
        json,
        how
        | {
            "n": len(scenes),
            "clips": sha256_json(keys),
            "scores": {name: found.to_dict() for name, found in scores.items()},
            "by_clip": dict(_lines(scores))
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
    clips = np.stack(list(decoded(tokenizer, content["ids"], samples.stem)))
    keys = [data.key(int(row)) for row in content["rows"]]
    np.savez(out, clips=clips, keys=np.array(keys), prompts=np.array(captions))


def decoded(tokenizer: OmniTokenizer, ids: NDArray[np.int16], label: str) -> Iterator[NDArray[np.uint8]]:
    """The clips of ids [N, 1 + F, g, g], uint8 [T, H, W, 3] each."""
    for start in progress(range(0, len(ids), BATCH), label):
        yield from tokenizer.decode(torch.tensor(ids[start : start + BATCH]).long()).numpy()


def _by_prompt(
    scenes: Sequence[Scene], clips: Sequence[NDArray[np.uint8]], draws: int
) -> list[tuple[Scene, Sequence[NDArray[np.uint8]]]]:
    return [(scenes[start], clips[start : start + draws]) for start in range(0, len(scenes), draws)]


def _score_first(
    tokenizer: OmniTokenizer, ids_NTHW: NDArray[np.int16], scenes: Sequence[Scene], label: str
) -> SceneScore:
    """Whether the first frame alone is whole, [clips].

    `whole_by_latent` does not say it: shapes are found in all frames of a clip, so torn later ones count there.
    """
    stills = decoded(tokenizer, ids_NTHW[:, :1], f"{label}, first frame")
    return score_scenes((np.repeat(frame_1HWC, STILL, axis=0) for frame_1HWC in stills), scenes)["whole"]


def _score_each(
    tokenizer: OmniTokenizer,
    ids_NTHW: NDArray[np.int16],
    true_NTHW: NDArray[np.int16],
    scenes: Sequence[Scene],
    label: str,
) -> SceneScore:
    """Whole by latent frame, each frame drawn from true ones and judged among true ones: [clips, 1 + F]; 0 is nan."""
    columns = [np.full(len(scenes), np.nan)]
    for frame in range(1, ids_NTHW.shape[1]):
        clips_NTHW = true_NTHW.copy()
        clips_NTHW[:, frame] = ids_NTHW[:, frame]
        found = score_scenes(decoded(tokenizer, clips_NTHW, f"{label}, frame {frame}"), scenes)
        columns.append(found["whole_by_latent"].values[:, frame])
    return SceneScore(np.stack(columns, axis=1))


def _lines(scores: dict[str, SceneScore]) -> Iterator[tuple[str, str]]:
    """Each clip's values by score; of curves those of wholeness alone, a line a point."""
    for name, found in scores.items():
        if found.values.ndim == 1:
            yield name, line(found.values)
        elif name == "whole_by_latent":
            yield from ((f"{name}_{place}", line(points)) for place, points in enumerate(found.values.T))


def line(values_N: NDArray[np.float64]) -> str:
    """Each clip's value; "-" where it says nothing."""
    values: list[Any] = values_N.tolist()
    return " ".join("-" if value != value else f"{value:.3g}" for value in values)
