"""The web page of `megavrc serve`: prompt or class, first picture, seed and sampling; shows frames as they arrive.

Notable: nothing leaves the machine. Gradio's analytics and web fonts are off, it listens on this host alone unless
told otherwise, and it reads no file but those that were uploaded to it (`uploads.py`).
"""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from megavrc.errors import UserError
from megavrc.generation.folder import Folder
from megavrc.generation.folder_format import read_config
from megavrc.model.clips import sampling_settings
from megavrc.video import VideoError, read_picture, write_mp4
from megavrc.web.uploads import only_uploads, read_upload

FPS = 8
MAX_UPLOAD = "32mb"
SHOWN = 448  # pixels that a clip is enlarged to, by whole factors
Frames = NDArray[np.uint8]  # [T, H, W, 3]
PENDING = 225  # grey of a frame that is not there yet
CSS = "footer {display: none !important} #clip img, #frames img {image-rendering: pixelated}"


def stream(
    folder: Folder,
    prompt: str | None,
    label: int | str | None,
    seed: int,
    sampling: dict[str, Any],
    first: Tensor | None,
) -> Iterator[Tensor]:
    """Generate one clip; after each latent frame yield all frames so far, uint8 [T, H, W, 3].

    Args:
        folder: the model.
        prompt, label: what the model is conditioned on, one of them.
        seed: of the clip.
        sampling: options that override the folder's.
        first: uint8 [H, W, 3], the first frame.

    Raises:
        UserError: inputs that do not fit the model.
    """
    ids: list[Tensor] = []
    for ids_B1HW in folder.stream(prompt, label, seed=seed, first_frame=first, output="ids", **sampling):
        ids.append(ids_B1HW)
        yield folder.video_tokenizer.decode(torch.cat(ids, dim=1))[0].cpu()


@dataclass(frozen=True)
class ClipMaker:
    """What the page's button does, and what it makes.

    Attributes:
        folder: the model.
        uploads: where the page's uploads lie.
        side: of a frame in pixels. total: frames of a clip. classes: 0 for a model of prompts.
    """

    folder: Folder
    uploads: Path
    side: int
    total: int
    classes: int

    def __call__(
        self,
        source: Any,
        picture: Any,
        seed: Any,
        guidance: Any,
        first_temperature: Any,
        later_temperature: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Yields clip, strip of frames, status, and file to save, as the page shows them.

        The arguments are JSON as it came from whoever asked: text or class, {"path": upload} or None, numbers.
        """
        import gradio as gr

        sampling = dict(
            guidance=guidance, first_temperature=first_temperature, later_temperature=later_temperature
        )
        yield None, None, "waiting for the first frame", gr.update(interactive=False)
        try:
            with tempfile.TemporaryDirectory(prefix="megavrc-serve-") as files:
                for update in self._make(Path(files), source, picture, seed, sampling):
                    yield *update, gr.skip()
                saved = str(Path(files) / "clip.mp4")
                yield gr.skip(), gr.skip(), f"{update[2]}: done", gr.update(value=saved, interactive=True)
        except UserError as error:
            yield None, None, str(error), gr.skip()
            raise gr.Error(str(error), print_exception=False) from None

    def _make(
        self, files: Path, source: Any, picture: Any, seed: Any, sampling: dict[str, Any]
    ) -> Iterator[tuple[str, Frames, str]]:
        """File of the animation, strip and status after each latent frame; writes clip.mp4 at the end."""
        seed = _number("seed", seed, int)
        if not 0 <= seed < 2**63:
            raise UserError(f"seed: {seed} is not a whole number from 0 to 2**63 - 1")
        sampling = {name: _number(name, value, float) for name, value in sampling.items()}
        image = self._first_frame(picture["path"]) if picture else None
        prompt, label = (None, source) if self.classes else (str(source).strip(), None)
        if not isinstance(label, str | None):
            label = _number("class", label, int)
        started = time.monotonic()
        for clip in stream(self.folder, prompt, label, seed, sampling, image):
            frames = clip.numpy()
            path = files / f"{len(frames)}.webp"
            _write_webp(path, frames)
            status = f"{len(frames)} of {self.total} frames, {time.monotonic() - started:.1f} s"
            yield str(path), _strip(frames, self.total), status
        write_mp4(files / "clip.mp4", frames, FPS, _scale(frames))

    def _first_frame(self, path: Any) -> Tensor:
        try:
            return torch.from_numpy(read_picture(read_upload(path, self.uploads), self.side))
        except VideoError as error:
            raise UserError(f"the picture: not a picture that can be read ({error.reason})") from None


def _number(name: str, value: Any, kind: type) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{name}: give a number, not {str(value)[:40]!r}") from None


def clip_maker(folder: Folder, uploads: Path) -> ClipMaker:
    """For this model; UserError if a page cannot give it what it is generated from."""
    model, tokenizer = folder.model.config, folder.video_tokenizer.config
    classes = model.condition.classes if model.condition.is_class else 0
    if not classes and folder.text_tokenizer is None:
        raise UserError(
            f"{folder.path}: this model is generated from text features, which a page cannot give"
        )
    total = 1 + model.frames * tokenizer.temporal_patch
    return ClipMaker(folder, uploads, model.grid * tokenizer.patch, total, classes)


def build_page(folder: Folder, uploads: Path) -> Any:
    """The page as Gradio blocks; what is uploaded to it lies in `uploads`."""
    maker = clip_maker(folder, uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # before its components are made
    import gradio as gr

    with gr.Blocks(title="VRC", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(
            f"# VRC\n{maker.total} frames of {maker.side} x {maker.side} pixels. The same seed gives the same clip."
        )
        with gr.Row():
            with gr.Column(scale=2):
                inputs = _inputs(gr, maker)
                with gr.Row():
                    start = gr.Button("Generate", variant="primary")
                    stop = gr.Button("Stop")
            with gr.Column(scale=3):
                outputs = _outputs(gr)
        source, status = inputs[0], outputs[2]
        wanted = [start.click] if maker.classes else [start.click, source.submit]
        # Without Gradio's own reading of inputs: it would open any picture that a request names.
        event = gr.on(
            wanted,
            maker.__call__,
            inputs,
            outputs,
            api_name="generate",
            preprocess=False,
            concurrency_limit=1,
            show_progress="hidden",
        )
        stop.click(lambda: "stopped", None, status, cancels=[event], queue=False, api_visibility="private")
    return page


def _inputs(gr: Any, maker: ClipMaker) -> list[Any]:
    """The arguments of a ClipMaker, in order."""
    if maker.classes:
        source = gr.Dropdown(
            [(name, i) for i, name in enumerate(maker.folder.class_names)], value=0, label="Class"
        )
    else:
        example = read_config(maker.folder.path)["training"].get("example", "")
        source = gr.Textbox(label="Prompt", placeholder=example, max_lines=3)
    defaults = sampling_settings(maker.folder.sampling)
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        guidance = gr.Slider(
            1, max(5, defaults.guidance), defaults.guidance, step=0.1, label="Guidance (1: none)"
        )
    with gr.Accordion("Temperature", open=False), gr.Row():
        first = gr.Slider(0, 2, defaults.first.temperature, step=0.05, label="First frame")
        later = gr.Slider(0, 2, defaults.later.temperature, step=0.05, label="Later frames")
    picture = gr.Image(label="First frame (optional)", sources=["upload", "clipboard"], height=200)
    return [source, picture, seed, guidance, first, later]


def _outputs(gr: Any) -> list[Any]:
    """What a ClipMaker yields, in order."""
    clip = gr.Image(label="Clip", height=SHOWN + 32, elem_id="clip", interactive=False, buttons=[])
    frames = gr.Image(label="Frames", elem_id="frames", interactive=False, height=130, buttons=[])
    with gr.Row():
        status = gr.Textbox(label="Status", interactive=False, scale=3, elem_id="status")
        save = gr.DownloadButton("Save as mp4", interactive=False, scale=1)
    return [clip, frames, status, save]


def serve(folder: Folder, host: str, port: int) -> None:
    """Show the page until interrupted. Raises UserError when the port is taken."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the uploads are removed
    with tempfile.TemporaryDirectory(prefix="megavrc-page-") as private:
        uploads = Path(private).resolve()
        page = build_page(folder, uploads)
        import fastapi
        import gradio as gr

        theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        try:
            page.queue(max_size=16).launch(
                server_name=host,
                server_port=port,
                theme=theme,
                css=CSS,
                share=False,
                show_error=True,
                ssr_mode=False,
                max_file_size=MAX_UPLOAD,
                app_kwargs={"dependencies": [fastapi.Depends(only_uploads(uploads))]},
            )
        except OSError:
            taken = f"port: {port} on {host} is taken or not allowed; choose another --port"
            raise UserError(taken) from None


def _scale(frames: Frames) -> int:
    return max(1, SHOWN // frames.shape[1])


def _write_webp(path: Path, frames_THWC: Frames) -> None:
    """An endless animation without loss."""
    size = frames_THWC.shape[1] * _scale(frames_THWC)
    first, *later = (
        Image.fromarray(frame).resize((size, size), Image.Resampling.NEAREST) for frame in frames_THWC
    )
    first.save(
        path, save_all=True, append_images=later, duration=1000 // FPS, loop=0, lossless=True, method=0
    )


def _strip(frames_THWC: Frames, total: int) -> Frames:
    """All frames side by side, those that are still to come in grey."""
    count, side = frames_THWC.shape[:2]
    step = side + -(-side // 8)
    strip = np.full((side, total * step, 3), PENDING, np.uint8)
    for index in range(count):
        strip[:, index * step : index * step + side] = frames_THWC[index]
    scale = max(1, 64 // side)
    return strip.repeat(scale, axis=0).repeat(scale, axis=1)
