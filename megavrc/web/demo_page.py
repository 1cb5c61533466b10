"""The web page of `megavrc serve`: what `megavrc generate` offers, in a browser; shows frames as they arrive.

Notable: nothing leaves the machine. Gradio's analytics, web fonts and run history (which would use the hub token of
whoever runs the server) are off, it listens on this host alone unless told otherwise, and it reads no file but those
that were uploaded to it (`uploads.py`). Texts that are not ours (names of models and classes, captions, errors about
prompts) are escaped wherever the page would read them as HTML.
"""

import html
import json
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from megavrc.errors import UserError
from megavrc.generation.folder import Folder
from megavrc.generation.folder_format import read_config
from megavrc.web.address import check_address, shown_address
from megavrc.web.clip_maker import (
    ALWAYS,
    KEEP,
    MORE,
    MOST_CLIPS,
    MOST_WINDOWS,
    SHOWN,
    WAITING,
    ClipMaker,
    clip_maker,
)
from megavrc.web.uploads import SmallRequests, only_uploads, uploaded

log = logging.getLogger(__name__)
MAX_UPLOAD = "32mb"
HISTORY = 12  # clips
CSS = "footer {display: none !important} #clip img, #frames img {image-rendering: pixelated}"
OFFERED: tuple[dict[str, tuple[str, float, float, float]], ...] = (  # sampling: label, from, to, step
    {
        "guidance": ("Guidance, first frame (1: none)", 1, 5, 0.1),
        "later_guidance": ("Guidance, later frames (1: none)", 1, 5, 0.1),
    },
    {
        "first_temperature": ("Temperature, first frame", 0, 2, 0.05),
        "later_temperature": ("Temperature, later frames", 0, 2, 0.05),
    },
    {
        "first_top_k": ("Top-k, first frame (0: all)", 0, 1000, 1),
        "later_top_k": ("Top-k, later frames (0: all)", 0, 1000, 1),
    },
    {
        "first_top_p": ("Top-p, first frame (1: all)", 0.01, 1, 0.01),
        "later_top_p": ("Top-p, later frames (1: all)", 0.01, 1, 0.01),
    },
    {
        "plausibility": ("Plausibility (0: guidance lifts any token)", 0, 1, 0.01),
        "speculative": ("Draft tokens a pass (0: none)", 0, 64, 1),
    },
)
REFINED: dict[str, tuple[str, float, float, float]] = {
    "later_passes": ("Passes of the first later frame (1: VRC as in the paper)", 1, 16, 1)
}
# At once, before the server answers: what another clip left on the page is not that of this one.
CLEAR = f"() => [null, null, {WAITING!r}, '']"


def build_page(folder: Folder, uploads: Path, waiting: int) -> Any:
    """The page as Gradio blocks; what is uploaded to it lies in `uploads`, at most `waiting` wait for their turn."""
    config = read_config(folder.path)
    maker = clip_maker(folder, uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported
    os.environ["GRADIO_RUN_HISTORY"] = "False"  # before launching; not an argument in every gradio 6
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # before its components are made
    import gradio as gr

    full = f"too many wait, at most {waiting}; try again in a while"
    name = "/".join(folder.path.resolve().parts[-2:])
    with gr.Blocks(title=f"VRC: {name}", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        gr.HTML(_heading(name, folder, maker, config["training"]))
        with gr.Row():
            with gr.Column(scale=2):
                inputs, video, start, stop = _inputs(gr, maker, config["training"])
            with gr.Column(scale=3):
                outputs, again = _outputs(gr)
                history = gr.Gallery(
                    label="History of this page",
                    columns=6,
                    fit_columns=False,
                    object_fit="contain",
                    height=280,
                    interactive=False,
                    buttons=["download"],
                )
        source, seed = inputs[0], inputs[2]
        clip, strip, status, save, about = outputs
        outputs = [*outputs, seed]
        wanted = [start.click] if maker.classes else [start.click, source.submit]
        quiet: dict[str, Any] = {"queue": False, "api_visibility": "private"}
        gr.on(wanted, None, None, [clip, strip, status, about], js=CLEAR, **quiet)
        # Without Gradio's own reading of inputs: it would open any picture that a request names.
        one: dict[str, Any] = {"preprocess": False, "concurrency_limit": 1, "concurrency_id": "model"}
        making = _making(gr, maker)
        event = gr.on(
            wanted,
            making,
            inputs,
            outputs,
            api_name="generate_clips",
            show_progress_on=status,
            **one,
        )
        event.success(
            partial(_remember, uploads=uploads),
            [history, clip, about],
            history,
            preprocess=False,
            show_progress="hidden",
            **quiet,
        )
        event.failure(lambda said: full if said == WAITING else said, status, status, **quiet)
        stop.click(lambda: "stopped", None, status, cancels=[event], **quiet)
        again.click(lambda file: file, save, video, **quiet)
        # The same for programs, with the inputs that nobody can leave out.
        gr.Button(visible=False).click(making, inputs[:6], outputs, api_name="generate", **one)
    return page


def _making(gr: Any, maker: ClipMaker) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """A ClipMaker as Gradio runs it: what stays is skipped, errors are shown as texts."""

    def make(*inputs: Any) -> Iterator[tuple[Any, ...]]:
        try:
            for shown in maker(*inputs):
                values = [gr.skip() if value is KEEP else value for value in shown]
                if shown.save is not KEEP:
                    values[3] = gr.update(value=shown.save, interactive=shown.save is not None)
                yield tuple(values)
        except UserError as error:
            said = str(error)
        except Exception:  # ours, not the visitor's: its text may hold what must not leave the server
            log.exception("the page could not make a clip")
            said = "this failed on the server; its log says why"
        else:
            return
        yield (None, None, said, *[gr.skip()] * 3)
        raise gr.Error(html.escape(said), print_exception=False)

    return make


def _heading(name: str, folder: Folder, maker: ClipMaker, training: dict[str, Any]) -> str:
    """Which model this is, as HTML."""
    millions = folder.model.parameter_counts()["total"] / 1e6
    facts = [
        f"{millions:.1f} million parameters",
        f"{maker.window} frames of {maker.side} x {maker.side} pixels",
    ]
    if training.get("step"):
        facts.append(f"trained for {training['step']} steps")
    facts.append(f"weights {folder.identity()}")
    return (
        f"<h1>VRC: {html.escape(name)}</h1><p>{html.escape(', '.join(facts))}. "
        "The same seed and settings give the same clip.</p>"
    )


def _inputs(gr: Any, maker: ClipMaker, training: dict[str, Any]) -> tuple[list[Any], Any, Any, Any]:
    """The arguments of a ClipMaker, in order; the one of them that takes a video; the buttons."""
    moves = maker.window > 1  # a model of stage 1 draws single frames
    if maker.classes:
        source = gr.Dropdown([(name, i) for i, name in enumerate(maker.classes)], value=0, label="Class")
    else:
        examples = [text for text in training.get("examples") or [training.get("example")] if text]
        source = gr.Textbox(label="Prompt", placeholder="what the clip shows", max_lines=3)
        if examples:
            shown = gr.Dataset(components=[source], samples=[[text] for text in examples], label="Examples")
            chosen = f"index => {json.dumps(examples)}[index]"  # in the browser: no need to ask the server
            shown.click(None, shown, source, js=chosen, queue=False, api_visibility="private")
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=120)
        chance = gr.Checkbox(False, label="Random", info="a new number each time", min_width=120)
    with gr.Row():
        clips = gr.Slider(
            1, MOST_CLIPS, 1, step=1, label="Clips", info="numbers from this one on", min_width=120
        )
        frames = gr.Slider(
            1,
            max(1 + MOST_WINDOWS * (maker.window - 1), 2),  # a slider has more than one place
            maker.window,
            step=maker.patch,
            label="Frames",
            info=f"above {maker.window} in windows",
            min_width=120,
            visible=moves,
        )
    with gr.Row():
        start, stop = (
            gr.Button("Generate", variant="primary", min_width=120),
            gr.Button("Stop", min_width=120),
        )
    picture = gr.Image(label="First frame (optional)", sources=["upload", "clipboard"], height=200)
    with gr.Accordion("Continue a clip", open=False, visible=moves):
        video = gr.File(label="Clip to continue", file_types=["video", ".gif"], height=120)
        taken = gr.Slider(
            1,
            max(maker.window, 2),
            min(5, maker.window),
            step=maker.patch,
            label="Of its end, frames to continue",
        )
    with gr.Accordion("Sampling", open=False):
        sliders = {}
        for pair in (*OFFERED, REFINED) if maker.refined else OFFERED:
            with gr.Row():
                for name, (label, least, most, step) in pair.items():
                    value = maker.own[name]
                    sliders[name] = gr.Slider(
                        least, max(most, value), value, step=step, label=label, min_width=120
                    )
    inputs = [source, picture, seed, *(sliders[name] for name in ALWAYS)]
    inputs += [frames, clips, chance, video, taken, *(sliders[name] for name in MORE if name in sliders)]
    return inputs, video, start, stop


def _outputs(gr: Any) -> tuple[list[Any], Any]:
    """What a ClipMaker yields, in order, but for the seed; and the button that continues a clip."""
    status = gr.Textbox(label="Status", interactive=False, elem_id="status")
    clip = gr.Image(label="Clip", height=SHOWN + 32, elem_id="clip", interactive=False, buttons=[])
    about = gr.Textbox(label="Made of", interactive=False, elem_id="about")
    frames = gr.Image(label="Frames", elem_id="frames", interactive=False, height=130, buttons=[])
    with gr.Row():
        save = gr.DownloadButton("Save as mp4", interactive=False)
        again = gr.Button("Continue this clip")
    return [clip, frames, status, save, about], again


def _remember(history: Any, clip: Any, about: Any, uploads: Path) -> list[tuple[str, str]]:
    """The history with a clip in front, as pairs of file and caption; the arguments are JSON from the browser."""
    shown = [(clip, about), *((item["image"], item["caption"]) for item in history or [])]
    return [(str(uploaded(_place(file), uploads)), caption) for file, caption in shown[:HISTORY]]


def _place(file: dict[str, Any]) -> str:
    """Path of a file that the page shows: the browser may know its address alone."""
    return file.get("path") or unquote(file["url"].partition("/file=")[2])


# --- the server --------------------------------------------------------------------------------------------------


def serve(folder: Folder, host: str, port: int, waiting: int) -> None:
    """Show the page until interrupted. Raises UserError when it cannot listen there."""
    check_address(host, port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the uploads are removed
    with tempfile.TemporaryDirectory(prefix="megavrc-page-") as private:
        uploads = Path(private).resolve()
        page = build_page(folder, uploads, waiting)
        import fastapi
        import gradio as gr
        from starlette.middleware import Middleware

        theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        try:
            page.queue(max_size=waiting).launch(
                server_name=host,
                server_port=port,
                theme=theme,
                css=CSS,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                max_file_size=MAX_UPLOAD,
                app_kwargs={
                    "dependencies": [fastapi.Depends(only_uploads(uploads))],
                    "middleware": [Middleware(SmallRequests)],
                },
            )
            print(f"{folder.path}: open {shown_address(host, port)} in a browser; Ctrl-C ends it", flush=True)
            threading.Event().wait()
        except OSError:
            raise UserError(f"port: {port} on {host} is taken; choose another --port") from None
        except KeyboardInterrupt:
            print("ended")
        finally:
            page.close(verbose=False)
