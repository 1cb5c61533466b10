"""Scores of scenes (megavrc make_scenes): real clips, what a video tokenizer makes of them, and generated ones."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megavrc.errors import UserError, check_least
from megavrc.evaluation.clip_source import ClipSource, Part, pairs, read_whole, source_facts
from megavrc.evaluation.quality import psnr
from megavrc.evaluation.scene_modes import score_modes
from megavrc.evaluation.scene_scores import SceneScore, score_scenes
from megavrc.files import sha256_file
from megavrc.generation.clip_sources import open_source
from megavrc.generation.evaluate import checked_settings, read_videos, reconstruct
from megavrc.generation.evaluate_clips import check_outputs
from megavrc.generation.folder import Folder, load_folder
from megavrc.hardware import check_device
from megavrc.model import SamplingSettings
from megavrc.progress import progress
from megavrc.results import Metric, case, markdown, metric, result, shown, write_result
from megavrc.tokenizers import OmniTokenizer
from megavrc.video import contact_sheet, write_png
from megavrc.video.manifest import read_manifest
from megavrc.video.scenes import Scene, from_attributes, render_scene

Clips = NDArray[np.uint8]  # [B, T, H, W, 3]

EXAMPLES = 6  # clips of each set on the sheet
OPEN = 8  # first frames from which `draws` clips each are generated
INTERVAL = (
    "95%, bootstrap over clips (modes: first frames); of shares that are equal in all, as wide as Wilson's"
)
UNITS = {"psnr": "dB", "flight": "px", "bounce": "px", "path_by_frame": "px", "jitter": "px a frame"}


def scenes(
    manifest: Path,
    split: str = "val",
    tokenizer: Path | None = None,
    model: Path | None = None,
    n: int | None = None,
    first_temperature: float = 1.0,
    later_temperature: float = 1.0,
    guidance: float = 1.0,
    later_passes: list[int] | int | None = None,
    draws: int = 0,
    seed: int = 0,
    batch: int = 16,
    device: str = "auto",
    json: Path | None = None,
    sheet: Path | None = None,
    clips: Path | None = None,
) -> None:
    """Score clips of scenes (made by megavrc make_scenes): attributes, whole objects, paths, permanence, drift.

    The sets: `real`; `reconstructed` by the video tokenizer, which is the ceiling for every model on it; with --model
    `from_first_frame`, generated from the caption and the true first frame, and `generated`, from the caption alone;
    with --clips `clips`, which any program made for the captions of the split.

    Args:
        manifest: manifest.jsonl of the clips.
        split: split to score.
        tokenizer: folder or .ckpt of the video tokenizer (default: the model's, if one is given).
        model: converted folder.
        n: number of clips, the first ones of the split (default: all).
        first_temperature: sampling temperature of the first frame.
        later_temperature: sampling temperature of the later frames.
        guidance: classifier-free guidance scale; 1 is none.
        later_passes: passes of each later frame, for a model with refinement: 8 1 1 1, where missing ones are 1; or one
            number for all (default: 1, whatever the folder says).
        draws: clips drawn from each of eight first frames whose motion the caption does not tell, to see whether every
            future is drawn as often as it should be (`modes`); 256 for a number to quote. 0: none.
        seed: clip i is generated with the seed SEED + i.
        batch: clips that are reconstructed or generated together.
        device: `cpu` or `cuda`; auto is cuda where there is one.
        json: file to write the scores to, with 95% intervals.
        sheet: contact sheet to write (PNG), with the first clips of every set.
        clips: clips of these captions to score, as for megavrc evaluate fvd; exactly the first N of the split.
    """
    check_outputs(json, sheet)
    passes = 1 if later_passes is None else later_passes
    settings = checked_settings(first_temperature, later_temperature, guidance, later_passes=passes)
    check_least(batch=(batch, 1), n=(1 if n is None else n, 1))
    if draws < 0 or (draws and model is None):
        raise UserError(f"--draws={draws}: at least 0, and clips of a model: give --model")
    device = str(check_device(device))
    rows = scene_rows(manifest, split)[:n]
    folder = load_folder(model, device) if model else None
    video = folder.video_tokenizer if folder else None
    if tokenizer:
        video = OmniTokenizer.from_checkpoint(tokenizer, device)
    sets = {"real": read_clips(manifest, [path for _, path, _ in rows])}
    if video:
        sets["reconstructed"] = reconstruct_all(video, sets["real"], batch, manifest)
    if folder:
        captions, seeds = [caption for caption, _, _ in rows], range(seed, seed + len(rows))
        sets["from_first_frame"] = make_set(folder, captions, seeds, settings, batch, sets["real"][:, 0])
        sets["generated"] = make_set(folder, captions, seeds, settings, batch)
    given = given_clips(clips, Path(f"{manifest}:{split}"), len(rows), device) if clips else None
    if given:
        sets["clips"] = _read(given)
    scores = score_sets(sets, [scene for _, _, scene in rows])
    if folder and video and draws:
        chosen = open_rows(rows)
        drawn = draw_each(folder, chosen, sets["real"][:, 0], draws, seed, settings, batch)
        scores["from_first_frame"] |= score_modes(drawn)
        left = every_future(video, chosen, sets["real"].shape[1:3], batch, manifest)
        scores["reconstructed"] |= score_modes(left, each_once=True, beside=draws)
    metrics = {name: dict(measured(each)) for name, each in scores.items()}
    print(set_table(metrics))
    if json:
        config: dict[str, Any] = {"split": split, "temperature": [first_temperature, later_temperature]}
        config |= {"guidance": guidance, "later_passes": passes}
        facts = {"clips": len(rows), "draws": draws, "seed": seed}
        _write(json, metrics, config, facts, manifest, video, folder, given, device)
    if sheet:
        first = range(min(EXAMPLES, len(rows)))
        rows_of = [(f"{name}: {rows[i][0]}", made[i]) for name, made in sets.items() for i in first]
        write_png(sheet, contact_sheet(rows_of))


def _write(
    json: Path,
    metrics: dict[str, dict[str, Metric]],
    config: dict[str, Any],
    facts: dict[str, Any],
    manifest: Path,
    video: OmniTokenizer | None,
    folder: Folder | None,
    given: ClipSource | None,
    device: str,
) -> None:
    protocol = facts | {
        "sources": [source_facts(given)] if given else [],
        "manifest_sha256": sha256_file(manifest),
        "tokenizer": video.sha256 if video else None,
        "model": folder.identity() if folder else None,
        "interval": INTERVAL,
    }
    cases = [case(name, found) for name, found in metrics.items()]
    write_result(json, result("evaluate scenes", config, cases, {}, protocol, device))


def scene_rows(manifest: Path, split: str) -> list[tuple[str, str, Scene]]:
    """Caption, path and scene of every clip of a split; UserError where there is none."""
    try:
        rows = [row for row in read_manifest(manifest) if row["split"] == split]
        found = [(row["caption"], row["path"], from_attributes(row["attributes"])) for row in rows]
    except (KeyError, TypeError):
        raise UserError(
            f"{manifest}: a clip without a scene; make the clips with megavrc make_scenes"
        ) from None
    if not found:
        raise UserError(f"{manifest}: no clips of the split {split}")
    return found


def read_clips(manifest: Path, paths: Sequence[str]) -> Clips:
    """All clips, which have one size and length."""
    clips = [read_videos(manifest, path) for path in progress(paths, "read")]
    return _stacked(str(manifest), paths, clips)


def given_clips(clips: Path, real: Path, count: int, device: str) -> ClipSource:
    """Clips that answer the first `count` captions of a split, in its order."""
    true = Part(open_source(real), range(count))
    source = open_source(clips, like=true, device=device)
    return Part(source, pairs(true, source))


def _read(source: ClipSource) -> Clips:
    frames = [read_whole(source, index) for index in progress(range(len(source.clips)), source.name)]
    return _stacked(source.name, [clip.key for clip in source.clips], frames)


def _stacked(name: str, keys: Sequence[str], clips: list[NDArray[np.uint8]]) -> Clips:
    odd = [key for key, frames in zip(keys, clips, strict=True) if frames.shape != clips[0].shape]
    if odd:
        raise UserError(f"{name}: {odd[0]} has another size or length than {keys[0]}")
    return np.stack(clips)


def reconstruct_all(tokenizer: OmniTokenizer, clips: Clips, batch: int, manifest: Path) -> Clips:
    """The clips, encoded and decoded batch by batch."""
    parts = batches(len(clips), batch, "reconstruct")
    return np.concatenate([reconstruct(tokenizer, clips[part], manifest) for part in parts])


def make_set(
    folder: Folder,
    captions: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    batch: int,
    first_frames: Clips | None = None,
) -> Clips:
    """A clip a caption, from its first frame (uint8 [B, H, W, 3]) if these are given."""
    made = []
    for part in batches(len(captions), batch, "generate" if first_frames is None else "from first frame"):
        first = None if first_frames is None else torch.from_numpy(first_frames[part])
        _, frames = folder.generate(
            captions[part], seed=seeds[part], settings=settings, first_frame=first, batch_size=batch
        )
        made.append(frames.cpu().numpy())
    return np.concatenate(made)


def open_rows(rows: Sequence[tuple[str, str, Scene]]) -> dict[int, tuple[str, str, Scene]]:
    """The first rows, by their place, with a motion that the caption does not tell; UserError where there is none."""
    found = {at: row for at, row in enumerate(rows) if row[2].bits}
    if not found:
        raise UserError("--draws: the caption of every clip tells a motion, so no future is open")
    return dict(list(found.items())[:OPEN])


def draw_each(
    folder: Folder,
    chosen: dict[int, tuple[str, str, Scene]],
    first_frames: Clips,
    draws: int,
    seed: int,
    settings: SamplingSettings,
    batch: int,
) -> Iterator[tuple[Scene, list[NDArray[np.uint8]]]]:
    """Clips drawn from the first frame of each chosen row; draw j of row i with the seed SEED + i x DRAWS + j."""
    for at, (caption, _, scene) in chosen.items():
        seeds = range(seed + at * draws, seed + (at + 1) * draws)
        first = np.repeat(first_frames[at : at + 1], draws, axis=0)
        yield scene, list(make_set(folder, [caption] * draws, seeds, settings, batch, first))


def every_future(
    video: OmniTokenizer,
    chosen: dict[int, tuple[str, str, Scene]],
    shape: tuple[int, int],
    batch: int,
    manifest: Path,
) -> Iterator[tuple[Scene, list[NDArray[np.uint8]]]]:
    """What the tokenizer makes of every future of each chosen row, of so many frames and pixels.

    A motion has to be whole to count, so `modes` of these clips is what many draws of the true distribution get.
    """
    for _, _, scene in chosen.values():
        clips = [render_scene(scene.moved(motions), *shape) for motions in scene.futures]
        yield scene, list(reconstruct_all(video, np.stack(clips), batch, manifest))


def batches(total: int, batch: int, label: str) -> Iterator[slice]:
    """Batches of `total` clips, which are counted."""
    parts = [slice(start, min(start + batch, total)) for start in range(0, total, batch)]
    return progress(parts, label, total, units=lambda part: part.stop - part.start)


def score_sets(sets: dict[str, Clips], wanted: Sequence[Scene]) -> dict[str, dict[str, SceneScore]]:
    """All scores of each set; PSNR against the first, the real one, where a set has the same frames to show."""
    real = next(iter(sets.values()))
    scores = {
        name: score_scenes(
            progress(made, f"score {name}"), wanted, [f"{name} {index}" for index in range(len(made))]
        )
        for name, made in sets.items()
    }
    if "reconstructed" in sets:
        ratios = [psnr(a, b) for a, b in zip(real, sets["reconstructed"], strict=True)]
        scores["reconstructed"]["psnr"] = SceneScore(np.array(ratios))
    return scores


def measured(scores: dict[str, SceneScore]) -> Iterator[tuple[str, Metric]]:
    """Each score as a metric with its interval; a curve as one metric a place, `name/0` and so on."""
    for name, score in scores.items():
        found = score.to_dict()
        unit = UNITS.get(name, "")
        if not isinstance(found["value"], list):
            yield name, metric(found["value"], unit, found["n"], found["low"], found["high"])
            continue
        for place, values in enumerate(zip(*(found[key] for key in ("value", "low", "high")), strict=True)):
            yield f"{name}/{place}", metric(values[0], unit, found["n"], *values[1:])


def set_table(sets: dict[str, dict[str, Metric]]) -> str:
    """One row a score that is no curve: its mean in every set, its interval, the clips that it is taken over."""
    names = dict.fromkeys(name for each in sets.values() for name in each if "/" not in name)
    rows = [[name, *(_cell(each.get(name)) for each in sets.values())] for name in names]
    return markdown(["", *sets], rows)


def _cell(found: Metric | None) -> str:
    return f"{shown(found)}, n {found['n']}" if found and found["n"] else "-"
