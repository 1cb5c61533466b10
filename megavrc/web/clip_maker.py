"""The page's button: inputs as they came from a browser to clips, which are shown while they grow."""

import math
import secrets
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from megavrc.errors import UserError
from megavrc.generation.folder import Folder
from megavrc.generation.to_files import read_end
from megavrc.model import SamplingSettings
from megavrc.model.clips import SAMPLING, sampling_settings
from megavrc.video import VideoError, read_picture, write_mp4
from megavrc.web.uploads import uploaded

FPS = 8
SHOWN = 448  # pixels that a clip is enlarged to, by whole factors
SEEDS = 2**53  # a browser's numbers are exact below it
MOST_CLIPS = 8  # at once
MOST_WINDOWS = 8  # of a clip
MOST_PIXELS = 2**26  # of a picture: a small file can hold more than fits into memory
PENDING = 225  # grey of a frame that is not there yet
ON_STRIP = 17  # frames
GAP = 8  # pixels between clips
WAITING = "waiting for its turn"
ALWAYS = ("guidance", "first_temperature", "later_temperature")  # sampling that every request has
MORE = (
    "later_guidance",
    "plausibility",
    "first_top_k",
    "later_top_k",
    "first_top_p",
    "later_top_p",
    "speculative",
    "later_passes",  # of the first later frame, for a model with refinement
)
Frames = NDArray[np.uint8]  # [T, H, W, 3]


def stream(folder: Folder, frames: int, window: int, **options: Any) -> Iterator[Tensor]:
    """Generate clips; after each latent frame yield all frames so far, uint8 [B, T, H, W, 3].

    Args:
        folder: the model.
        frames: frames of each clip. Longer ones than `window`, which the model was trained for, grow by windows.
        options: see `Folder.request`.

    Raises:
        UserError: inputs that do not fit the model.
    """
    parts: list[Tensor] = []
    if frames > window:
        for chunk in folder.stream(frames=frames, by_frame=False, **options):
            parts.append(chunk)
            yield torch.cat(parts, dim=1)
        return
    for ids_B1HW in folder.stream(frames=frames, output="ids", **options):
        parts.append(ids_B1HW)
        yield folder.video_tokenizer.decode(torch.cat(parts, dim=1)).cpu()


KEEP = object()  # what is shown stays


class Shown(NamedTuple):
    """Outputs of the page, in order: animation, strip of frames, status, file to save, what was asked for, seed.

    None clears a field.
    """

    clip: Any = KEEP
    strip: Any = KEEP
    status: Any = KEEP
    save: Any = KEEP
    about: Any = KEEP
    seed: Any = KEEP


@dataclass(frozen=True)
class ClipMaker:
    """Makes clips of what a page's visitor asks for.

    Attributes:
        folder: the model.
        uploads: where the page's uploads lie.
        side: of a frame in pixels. window: frames that the model was trained for. patch: frames of a latent one.
        classes: names of a model's classes, empty for a model of prompts.
        own: the folder's sampling, by the names of ALWAYS and MORE.
        rest: passes of the later frames after the first, of the folder's own.
    """

    folder: Folder
    uploads: Path
    side: int
    window: int
    patch: int
    classes: tuple[str, ...]
    own: dict[str, float]
    rest: tuple[int, ...]

    def __call__(
        self,
        source: Any,
        picture: Any,
        seed: Any,
        guidance: Any,
        first_temperature: Any,
        later_temperature: Any,
        frames: Any = None,
        clips: Any = 1,
        random_seed: Any = False,
        video: Any = None,
        video_frames: Any = 5,
        *more: Any,
    ) -> Iterator[Shown]:
        """Yield what there is to show; a file to save is there until the next step.

        The arguments are JSON as it came from whoever asked: text or class, {"path": upload} or None, numbers, a
        truth value; `more` are those of MORE, None for the folder's own.

        Raises:
            UserError: an argument that cannot be.
        """
        always = (guidance, first_temperature, later_temperature)
        given = dict(zip((*ALWAYS, *MORE), (*always, *more), strict=False))
        yield Shown(None, None, "waiting for the first frame", None)
        with tempfile.TemporaryDirectory(prefix="megavrc-serve-") as folder:
            files = Path(folder)
            number = secrets.randbelow(2**32) if random_seed else _whole("seed", seed, 0, SEEDS - 1)
            options = self._options(source, picture, video, video_frames, clips, number)
            options |= {name: _real(name, value) for name, value in given.items() if value not in (None, "")}
            if "later_passes" in options and self.refined:
                options["later_passes"] = [options["later_passes"], *self.rest]
            length = self._length(frames)
            about = self._about(source, length, given, options)
            for clip, strip, status in self._grow(files, length, options):
                yield Shown(clip, strip, status, KEEP, about, number)
            saved = next(files.glob("clip*.[mz]*"))
            yield Shown(status=f"{status}: done", save=str(saved))

    @property
    def refined(self) -> bool:
        """Whether a later frame can have several passes."""
        config = self.folder.model.config
        return bool(config.refine and config.frames)

    def _options(
        self, source: Any, picture: Any, video: Any, video_frames: Any, clips: Any, seed: int
    ) -> dict[str, Any]:
        """The arguments of `Folder.request`, but for the sampling."""
        count = _whole("clips", clips, 1, MOST_CLIPS)
        options: dict[str, Any] = {"seed": [seed + i for i in range(count)]}
        if picture:
            options["first_frame"] = self._picture(picture)
        if video:
            taken = _whole("frames to continue", video_frames, 1, self.window)
            if (taken - 1) % self.patch:
                raise UserError(f"frames to continue: {taken} is not 1 + {self.patch}k")
            options["clip"] = self._end(video, taken).expand(count, -1, -1, -1, -1)
        if self.classes:
            return options | {"label": [self._class(source)] * count}
        return options | {"prompt": [_prompt(source)] * count}

    def _class(self, source: Any) -> int:
        """The number of a class, which is given by number or name."""
        if source in self.classes:
            return self.classes.index(source)
        return _whole("class", source, 0, len(self.classes) - 1)

    def _length(self, frames: Any) -> int:
        if frames is None:
            return self.window
        most = 1 + MOST_WINDOWS * (self.window - 1)
        length = _whole("frames", frames, 1, most)
        if (length - 1) % self.patch:
            raise UserError(f"frames: {length} is not 1 + {self.patch}k")
        return length

    def _about(self, source: Any, frames: int, given: dict[str, Any], options: dict[str, Any]) -> str:
        what = self.classes[self._class(source)] if self.classes else _prompt(source)
        first, last = options["seed"][0], options["seed"][-1]
        seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
        begun = ["from a picture"] * ("first_frame" in options)
        if "clip" in options:
            begun.append(f"after {options['clip'].shape[1]} frames of a clip")
        changed = [
            f"{name.replace('_', ' ')} {value:g}"
            for name, value in given.items()
            if isinstance(value, int | float) and value != self.own[name]
        ]
        return ", ".join([what, *begun, seeds, f"{frames} frames", *changed])

    def _grow(self, files: Path, length: int, options: dict[str, Any]) -> Iterator[tuple[str, Frames, str]]:
        """File of the animation, strip and status after each step; writes what is saved at the end."""
        started = time.monotonic()
        for clips_BTHWC in stream(self.folder, length, self.window, **options):
            clips = clips_BTHWC.numpy()
            path = files / f"{clips.shape[1]}.webp"
            _write_webp(path, side_by_side(clips))
            status = f"{clips.shape[1]} of {length} frames, {time.monotonic() - started:.1f} s"
            yield str(path), _strip(clips, length), status
        _write_mp4s(files, clips, options["seed"])

    def _picture(self, picture: Any) -> Tensor:
        try:
            content = uploaded(_path(picture), self.uploads).read_bytes()
            return torch.from_numpy(read_picture(content, most_pixels=MOST_PIXELS))
        except VideoError as error:
            raise UserError(f"the picture: not a picture that can be read ({error.reason})") from None

    def _end(self, video: Any, frames: int) -> Tensor:
        path = uploaded(_path(video), self.uploads)
        try:
            return read_end(path, self.side, frames)
        except UserError as error:
            raise UserError(str(error).replace(str(path), path.name)) from None


def clip_maker(folder: Folder, uploads: Path) -> ClipMaker:
    """A function that makes the clips of the page, for this model and a folder of uploads; UserError if a page cannot
    give what it is generated from.
    """
    model, tokenizer = folder.model.config, folder.video_tokenizer.config
    if not model.condition.is_class and folder.text_tokenizer is None and folder.text_encoder is None:
        raise UserError(f"{folder.path}: this model needs its text encoder: give --text_encoder")
    settings = sampling_settings(folder.sampling)
    given = settings.later_passes
    later = [given] * max(model.frames, 1) if isinstance(given, int) else [*given] or [1]
    return ClipMaker(
        folder,
        uploads,
        side=model.grid * tokenizer.patch,
        window=1 + model.frames * tokenizer.temporal_patch,
        patch=tokenizer.temporal_patch,
        classes=tuple(folder.class_names),
        own=_own(settings) | {"later_passes": later[0]},
        rest=tuple(later[1:]),
    )


def _own(settings: SamplingSettings) -> dict[str, float]:
    parts = {"first": settings.first, "later": settings.later}
    own = {f"{part}_{name}": getattr(each, name) for part, each in parts.items() for name in SAMPLING}
    whole = {name: getattr(settings, name) for name in ("plausibility", "speculative")}
    whole |= {"guidance": settings.guidance_of(0), "later_guidance": settings.guidance_of(1)}
    return {**own, **whole}


def _path(file: Any) -> Any:
    """Of an upload, as Gradio sends one: {"path": ..}, or a list of one."""
    file = file[0] if isinstance(file, list) and len(file) == 1 else file
    return file.get("path") if isinstance(file, dict) else file


def _prompt(source: Any) -> str:
    if not isinstance(source, str):
        raise UserError(f"prompt: give a text, not {source!r:.40}")
    return source.strip()


def _real(name: str, value: Any) -> float | int:
    """A number; a whole one where it is a count."""
    name = name.replace("_", " ")
    if name.endswith(("top k", "passes")) or name == "speculative":
        return _whole(name, value, int(name.endswith("passes")), 2**31)
    return _number(name, value, "a number")


def _whole(name: str, value: Any, least: int, most: int) -> int:
    said = f"a whole number from {least} to {most}"
    number = _number(name, value, said)
    if not (least <= number <= most and number == int(number)):
        raise UserError(f"{name}: give {said}, not {value!s:.40}")
    return int(number)


def _number(name: str, value: Any, said: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{name}: give {said}, not {str(value)[:40]!r}") from None
    if not math.isfinite(number):
        raise UserError(f"{name}: give {said}, not {number}")
    return number


# --- pictures and files ------------------------------------------------------------------------------------------


def _scale(side: int) -> int:
    return max(1, SHOWN // side)


def side_by_side(clips_BTHWC: NDArray[np.uint8]) -> Frames:
    """Clips as one, enlarged: in rows of about as many as there are rows."""
    count = len(clips_BTHWC)
    columns = math.ceil(math.sqrt(count))
    scale = max(1, _scale(clips_BTHWC.shape[2]) // columns)
    clips = clips_BTHWC.repeat(scale, axis=2).repeat(scale, axis=3)
    if count == 1:
        return clips[0]
    rows = -(-count // columns)
    _, length, height, width, _ = clips.shape
    canvas = np.full((length, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for index, clip in enumerate(clips):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        canvas[:, top : top + height, left : left + width] = clip
    return canvas


def _write_webp(path: Path, frames_THWC: Frames) -> None:
    """An endless animation without loss."""
    first, *later = map(Image.fromarray, frames_THWC)
    first.save(
        path, save_all=True, append_images=later, duration=1000 // FPS, loop=0, lossless=True, method=0
    )


def _write_mp4s(files: Path, clips_BTHWC: NDArray[np.uint8], seeds: list[int]) -> None:
    """clip-seedN.mp4; of several clips clips.zip with one each."""
    names = [files / f"clip-seed{seed}.mp4" for seed in seeds]
    for name, clip in zip(names, clips_BTHWC, strict=True):
        write_mp4(name, clip, FPS, _scale(clip.shape[1]))
    if len(names) == 1:
        return
    with zipfile.ZipFile(files / "clips.zip", "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            archive.write(name, name.name)
            name.unlink()


def _strip(clips_BTHWC: NDArray[np.uint8], total: int) -> Frames:
    """Frames side by side, a row a clip, those that are still to come in grey; of long clips some."""
    there, side = clips_BTHWC.shape[1:3]
    shown = np.linspace(0, total - 1, min(total, ON_STRIP)).round().astype(int)
    step = side + -(-side // 8)
    strip = np.full((len(clips_BTHWC) * step - step + side, len(shown) * step, 3), PENDING, np.uint8)
    for row, clip in enumerate(clips_BTHWC):
        for column, index in enumerate(shown[shown < there]):
            top, left = row * step, column * step
            strip[top : top + side, left : left + side] = clip[index]
    scale = max(1, 64 // side)
    return strip.repeat(scale, axis=0).repeat(scale, axis=1)
