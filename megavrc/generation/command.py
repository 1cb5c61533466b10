"""`megavrc generate`: video from a converted folder, for texts, classes or a file of prompts, which resumes."""

import logging
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from megavrc.errors import UserError
from megavrc.generation.folder import Folder, load_folder
from megavrc.generation.to_files import clips_to_write, generate_files, read_end, read_image, read_prompts
from megavrc.model.clips import SAMPLING_OPTIONS, sampling_settings
from megavrc.model.sampling import Draft, SamplingSettings
from megavrc.quantization.quantize import Format


def generate(
    model: Path,
    out: Path,
    prompt: list[str] | str | None = None,
    prompts: Path | None = None,
    label: list[int | str] | None = None,
    seed: int = 0,
    guidance: float | None = None,
    later_guidance: float | None = None,
    plausibility: float | None = None,
    temperature: float | None = None,
    frames: int | None = None,
    device: str = "auto",
    clips_per_prompt: int = 1,
    first_image: Path | None = None,
    clip: Path | None = None,
    clip_frames: int | None = None,
    overlap: int | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    first_temperature: float | None = None,
    first_top_k: int | None = None,
    first_top_p: float | None = None,
    later_temperature: float | None = None,
    later_top_k: int | None = None,
    later_top_p: float | None = None,
    speculative: int | None = None,
    draft: Draft | None = None,
    later_passes: list[int] | int | None = None,
    row_passes: int | None = None,
    dtype: Literal["fp32", "bf16"] | None = None,
    quantize: Format | None = None,
    text_encoder: Path | None = None,
    batch_size: int = 4,
    fps: float = 8,
    scale: int = 1,
) -> None:
    """Generate video. Writes NAME.mp4 and NAME.gif of each clip, sheet.png and prompts.jsonl, a list of all clips.

    Clips that are in the output folder, made from the same model, precision, prompt, seed and sampling, are not made
    again; others are added to it.

    Args:
        model: folder written by megavrc convert_checkpoint to-hf.
        out: output folder.
        prompt: one or several texts that say what the clips show: --prompt "a red square moves left" "a blue circle
            moves up".
        prompts: file with one prompt a line, or a .csv or .jsonl with a column caption (or text, prompt), instead of
            prompt.
        label: one or several classes, for a class-conditioned model, by name or number: --label bike 3.
        seed: seed of the first clip; prompt i uses SEED + i, and clip j of it SEED + i + j x prompts.
        guidance: classifier-free guidance; 1 is none. This and the sampling below default to the folder's own.
        temperature: temperature of all tokens; 0 takes the most likely.
        frames: frames of a clip, 1 + 4k (default: as many as the model was trained for; more are made in windows).
        device: `cpu` or `cuda`; auto is cuda where there is one.
        clips_per_prompt: clips of each prompt or label, each with its own seed.
        first_image: picture that every clip starts with; its centre is cut to a square.
        clip: video that every clip continues.
        clip_frames: number of its last frames that the model sees, 1 + 4k; they are the first frames of the result
            (default: 5).
        overlap: frames that a window takes over from the one before, 1 + 4k (default: about half a window).
        top_k: keep only the k most likely tokens (0: all).
        top_p: keep the most likely tokens whose probabilities first reach this sum (1: all).
        later_guidance: guidance of the later frames (default: as guidance).
        plausibility: guidance chooses among tokens at least this times as likely as the most likely one; 0 is all.
        first_temperature: temperature of the first frame only.
        first_top_k: top_k of the first frame only.
        first_top_p: top_p of the first frame only.
        later_temperature: temperature of the later frames only.
        later_top_k: top_k of the later frames only.
        later_top_p: top_p of the later frames only.
        speculative: draft tokens that a pass verifies in the first frame (0: none): the same distribution in fewer
            passes, other clips for a seed.
        draft: first guess of a draft token: its neighbour, a repeat of the newest token, or a random one.
        later_passes: passes of each later frame, for a model with refinement: --later_passes 8 1 1 1, where missing
            ones are 1; or one number for all.
        row_passes: passes of each row of the first frame, for a model with refinement that draws it in rows.
        dtype: type of the generator's weights (default: the folder's); the video tokenizer stays fp32.
        quantize: keep the generator's matrices in fewer bits: int8 (on a CPU it saves time), fp8, int4 (CUDA) or nf4.
        text_encoder: folder of the encoder that made the features, for a model of text features.
        batch_size: clips generated at once.
        fps: frames a second of the files.
        scale: enlarge each pixel this many times in the files.
    """
    sampling = {name: value for name, value in locals().items() if name in SAMPLING_OPTIONS}
    logging.basicConfig(format="%(message)s")
    logging.getLogger("megavrc").setLevel(logging.INFO)  # accepted tokens a pass; which kernels run, and why
    if sum(given is not None for given in (prompt, prompts, label)) != 1:
        raise UserError("give one of --prompt, --prompts and --label")
    if first_image and clip:
        raise UserError("give --first_image or --clip, not both")
    if clip_frames is not None and clip is None:
        raise UserError("--clip_frames: of which video? give it with --clip")
    texts = read_prompts(prompts) if prompts else [prompt] if isinstance(prompt, str) else prompt or []
    folder = load_folder(model, device, dtype, quantize, text_encoder)
    labels = folder.condition(label=[str(one) for one in label]).values.tolist() if label else []  # names win
    wanted = clips_to_write(texts, labels, seed, clips_per_prompt)
    settings = _settings(folder, sampling)
    window = 1 + folder.model.config.frames * folder.video_tokenizer.config.temporal_patch
    if overlap is not None and (frames or 0) <= window:
        raise UserError(f"--overlap: these clips are one window; give it with --frames above {window}")
    beginning = _beginning(folder, first_image, clip, 5 if clip_frames is None else clip_frames)
    count = generate_files(folder, wanted, out, settings, beginning, frames, overlap, batch_size, fps, scale)
    print(f"{out}: {count} clips generated, {len(wanted) - count} were there; look at {out}/sheet.png")


def _settings(folder: Folder, sampling: dict[str, Any]) -> SamplingSettings:
    """The folder's sampling with these options."""
    try:
        settings = sampling_settings(folder.sampling, sampling)
    except ValueError as error:
        raise UserError(str(error)) from None
    if sampling["draft"] and not settings.speculative:
        raise UserError("--draft: of how many tokens? give it with --speculative")
    return settings


def _beginning(
    folder: Folder, first_image: Path | None, clip: Path | None, clip_frames: int
) -> Tensor | None:
    """The first frames of all clips, uint8 [1 + 4k, H, W, 3], if a picture or a video gives them."""
    tokenizer = folder.video_tokenizer.config
    side = folder.model.config.grid * tokenizer.patch
    if first_image:
        return read_image(first_image, side)[None]
    if not clip:
        return None
    end = read_end(clip, side, clip_frames)
    try:
        tokenizer.latent_frames(clip_frames)
    except ValueError as error:
        raise UserError(f"--clip_frames: {error}") from None
    return end
