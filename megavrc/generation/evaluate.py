"""Evaluation of a converted model: do its clips show what the prompts say, and how long does one take."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megavrc.errors import UserError, check_least
from megavrc.evaluation.alignment import Score, evaluate, measure_alignment
from megavrc.files import read_json, write_json
from megavrc.generation.clip_sources import open_source
from megavrc.generation.evaluate_clips import check_outputs, publish_report
from megavrc.generation.folder import load_folder
from megavrc.hardware import check_device
from megavrc.model import Sampling, SamplingSettings
from megavrc.model.sampling import PLAUSIBILITY
from megavrc.tokenizers import OmniTokenizer
from megavrc.video import VideoError, contact_sheet, count_frames, read_clip, write_png
from megavrc.video.manifest import read_manifest
from megavrc.video.shapes import Combination

Clips = NDArray[np.uint8]  # [B, T, H, W, 3]


def alignment(
    model: Path | None = None,
    manifest: Path | None = None,
    prompts: int = 144,
    first_temperature: float = 0.7,
    later_temperature: float = 0.5,
    guidance: float = 1.0,
    later_guidance: float | None = None,
    plausibility: float = PLAUSIBILITY,
    speculative: int = 0,
    later_passes: list[int] | int | None = None,
    seed: int = 0,
    device: str = "auto",
    json: Path | None = None,
    sheet: Path | None = None,
    clips: Path | None = None,
    planned: Path | None = None,
) -> None:
    """Detect colour, shape and direction in real, reconstructed and generated clips (made by megavrc make_shapes).

    Scores are fractions of clips, 0 to 1, with 95% intervals: over prompts, and of real and reconstructed clips
    Wilson's. `generated_t1` samples at temperature 1 throughout, as the paper does;
    `heldout` asks for combinations that training never showed together. With --clips, clips that any program made
    are measured instead, against their captions.

    Args:
        model: converted folder.
        manifest: manifest.jsonl of the clips; with --clips, its split val is measured too.
        prompts: clips to generate for each of generated, generated_t1 and heldout; rounded so that each
            combination comes equally often.
        first_temperature: sampling temperature of the first frame.
        later_temperature: sampling temperature of the later frames.
        guidance: classifier-free guidance scale of all generated clips; 1 is none. Otherwise the set `unguided`
            repeats `generated` without it.
        later_guidance: guidance of the later frames (default: as guidance).
        plausibility: guidance chooses among tokens at least this times as likely as the most likely one; 0 is all.
        speculative: draft tokens that a pass verifies in the first frame; 0 draws token by token.
        later_passes: passes of each later frame, for a model with refinement: 8 1 1 1, where missing ones are 1; or one
            number for all (default: 1, whatever the folder says).
        seed: clip i is generated with the seed SEED + i.
        device: `cpu` or `cuda`; auto is cuda where there is one.
        json: file to write the scores to.
        sheet: contact sheet to write (PNG).
        clips: clips to measure instead of real, reconstructed and generated ones, given as for megavrc
            evaluate fvd.
        planned: list of the clips that must be there, or be generated: JSON lines with id and caption.
    """
    check_least(prompts=(prompts, 1))
    check_places(json, sheet)
    if clips:
        return _alignment_of(clips, manifest, planned, seed, device, json)
    if model is None or manifest is None:
        raise UserError("required: --model and --manifest, or --clips (see --help)")
    guided = {"later_guidance": later_guidance, "plausibility": plausibility}
    always = {"speculative": speculative, "later_passes": 1 if later_passes is None else later_passes}
    checked_settings(first_temperature, later_temperature, guidance, **always, **guided)  # before any work
    loaded = load_folder(model, device)
    entries = _all_entries(manifest)

    def generate(texts: list[str], seeds: list[int], first: float, later: float, scale: float) -> Clips:
        more = guided if scale == guidance else {}  # the set `unguided` is without any
        settings = checked_settings(first, later, scale, **always, **more)
        return loaded.generate(texts, seed=seeds, settings=settings, batch_size=len(seeds))[1].cpu().numpy()

    report = evaluate(
        real=[(combination, read_videos(manifest, path)) for combination, path in entries["val"]],
        reconstruct=lambda clips: reconstruct(loaded.video_tokenizer, clips, manifest),
        generate=generate,
        trained=sorted({combination for combination, _ in entries["train"]}),
        heldout=sorted({combination for combination, _ in entries["heldout"]}),
        prompts=prompts,
        temperatures=(first_temperature, later_temperature),
        guidance=guidance,
        seed=seed,
    )
    for name, scores in report.scores.items():
        print(f"{name:14s}{_row(scores)}")
    if json:
        write_json(json, report.scores)
    if sheet:
        write_png(sheet, contact_sheet(report.examples))


def _row(scores: Score) -> str:
    """Keys and values, with intervals where there are any."""
    ends = {key: (scores[f"{key}_low"], scores[f"{key}_high"]) for key in scores if f"{key}_low" in scores}
    spans = {key: f" ({low:.3g} to {high:.3g})" for key, (low, high) in ends.items()}
    shown = [key for key in scores if not key.endswith(("_low", "_high"))]
    return "".join(f" {key} {scores[key]:.4g}{spans.get(key, '')}" for key in shown)


def check_places(json: Path | None, sheet: Path | None = None) -> None:
    """Refuse to replace another file than a picture, a result, or scores as `alignment` writes them."""
    check_outputs(None, sheet)
    try:
        check_outputs(json)
    except UserError:
        assert json
        content = read_json(json) if json.is_file() and json.read_bytes().startswith(b"{") else None
        rows = content.values() if isinstance(content, dict) else [None]
        if not all(isinstance(row, dict) and "colour" in row for row in rows):
            raise


def _alignment_of(
    clips: Path, manifest: Path | None, planned: Path | None, seed: int, device: str, json: Path | None
) -> None:
    check_outputs(json)
    device = str(check_device(device))
    true = open_source(Path(f"{manifest}:val")) if manifest else None
    report = measure_alignment(open_source(clips, planned, true, seed, device=device), true)
    config = {"clips": clips, "manifest": manifest, "planned": planned}
    publish_report("alignment", report, config, json, device)


def checked_settings(first: float, later: float, guidance: float, **more: Any) -> SamplingSettings:
    """The settings of a command's options; UserError for what cannot be."""
    try:
        return SamplingSettings(Sampling(first), Sampling(later), guidance, **more)
    except ValueError as error:
        raise UserError(str(error)) from None


def reconstruct(tokenizer: OmniTokenizer, clips: Clips, manifest: Path) -> Clips:
    """The clips of a manifest, encoded and decoded; UserError where the tokenizer does not take them."""
    try:
        return tokenizer.decode(tokenizer.encode(torch.from_numpy(clips))).cpu().numpy()
    except ValueError as error:
        raise UserError(f"{manifest}: clips that the video tokenizer does not take: {error}") from None


def _all_entries(manifest: Path) -> dict[str, list[tuple[Combination, str]]]:
    entries = {split: shape_entries(manifest, split) for split in ("train", "val", "heldout")}
    if not entries["val"] or not entries["train"]:
        raise UserError(
            f"{manifest}: needs clips of the splits train and val; make them with megavrc make_shapes"
        )
    return entries


def shape_entries(manifest: Path, split: str) -> list[tuple[Combination, str]]:
    """Attributes of the clips of a split, and their paths."""
    try:
        rows = [row for row in read_manifest(manifest) if row["split"] == split]
        return [(Combination(**row["attributes"]), row["path"]) for row in rows]
    except (KeyError, TypeError):
        raise UserError(
            f"{manifest}: a clip without attributes; alignment needs megavrc make_shapes's clips"
        ) from None


def read_videos(manifest: Path, path: str) -> Clips:
    """One whole clip as it is, [T, H, W, 3]."""
    try:
        return read_clip(manifest.parent / path, 0, count_frames(manifest.parent / path), size=None)
    except VideoError as error:
        raise UserError(str(error)) from None
