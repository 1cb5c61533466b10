"""tools/serve.py in headless Chromium."""

import io
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_source import Source, converted
from pages import served
from PIL import Image

from megavrc.errors import UserError
from megavrc.generation.folder import load_folder
from megavrc.model import ConditionConfig
from megavrc.model.clips import sampling_settings
from megavrc.video import write_png
from megavrc.web.demo_page import serve, stream

pytest.importorskip("gradio", reason="needs the extra serve")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DONE = "17 of 17 frames"
SCALE = 448 // 16  # that the page enlarges the tiny model's pixels by

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as control:
        opened = control.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def open_page(browser: Any, port: int) -> Any:
    """The page; it records every status that was shown, and what it asked other hosts for."""
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.elsewhere = []
    page.on(
        "request",
        lambda r: (
            page.elsewhere.append(r.url) if r.url.startswith("http") and "127.0.0.1" not in r.url else None
        ),
    )
    page.goto(f"http://127.0.0.1:{port}")
    page.get_by_role("button", name="Generate").wait_for()
    page.evaluate(
        "window.seen = []; setInterval(() => {"
        " const text = document.querySelector('#status textarea, #status input').value;"
        " if (text && window.seen.at(-1) !== text) window.seen.push(text) }, 5)"
    )
    return page


def wait_for_status(page: Any, text: str) -> None:
    page.wait_for_function("text => window.seen.at(-1)?.includes(text)", arg=text)


def shown_clip(page: Any) -> np.ndarray:
    """The frames of the animation on the page, at the model's size."""
    source = page.locator("#clip img").get_attribute("src")
    picture = Image.open(io.BytesIO(page.request.get(source).body()))
    frames = []
    for index in range(picture.n_frames):
        picture.seek(index)
        frames.append(np.asarray(picture.convert("RGB"))[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE])
    return np.stack(frames)


@needs_browser
def test_a_clip_appears_frame_by_frame_and_wrong_inputs_are_one_line(
    folder, browser, free_port, tmp_path
) -> None:
    with served(folder, free_port, tmp_path):
        for _ in range(
            8
        ):  # the clip takes half a second: a busy browser may draw several of its states at once
            page = open_page(browser, free_port)
            page.get_by_label("Prompt").fill("a blue dog")
            page.get_by_label("Seed").fill("6")
            page.get_by_role("button", name="Generate").click()
            wait_for_status(page, "done")
            drawn = [text for text in page.evaluate("window.seen") if " of 17 frames" in text]
            if len(drawn) > 2:
                break
        assert len(drawn) > 2
        expected = load_folder(folder).generate(["a blue dog"], seed=[6])[1][0].numpy()
        assert np.array_equal(shown_clip(page), expected)
        with page.expect_download() as download:
            page.get_by_role("button", name="Save as mp4").click()
        assert Path(download.value.path()).read_bytes()[4:8] == b"ftyp"

        page.get_by_label("Prompt").fill("a blue dog " * 12)
        page.get_by_role("button", name="Generate").click()
        wait_for_status(page, "tokens, the model takes 15; shorten it")
        assert page.get_by_text("the model takes 15; shorten it").count()

        (tmp_path / "wrong.png").write_text("no picture")
        page.get_by_label("Prompt").fill("a blue dog")
        page.locator("input[type=file]").first.set_input_files(tmp_path / "wrong.png")
        page.get_by_role("button", name="Generate").click()
        wait_for_status(page, "the picture: not a picture that can be read")
        assert str(tmp_path) not in page.evaluate("window.seen").pop()
        assert not page.elsewhere


@needs_browser
def test_a_class_and_a_first_picture(browser, free_port, tmp_path) -> None:
    source = Source(tmp_path, ConditionConfig(kind="class", classes=3))
    folder = converted(source, tmp_path / "hf")
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    write_png(tmp_path / "first.png", picture)
    with served(folder, free_port, tmp_path):
        page = open_page(browser, free_port)
        page.get_by_label("Class").click()
        page.get_by_role("option", name="2").click()
        page.locator("input[type=file]").first.set_input_files(tmp_path / "first.png")
        page.get_by_role("button", name="Remove Image").wait_for()
        page.get_by_role("button", name="Generate").click()
        wait_for_status(page, "done")
        first = torch.from_numpy(picture)[None]
        expected = load_folder(folder).generate(label=[2], seed=[0], first_frame=first)[1][0].numpy()
        assert np.array_equal(shown_clip(page), expected)


def test_a_stream_grows_to_the_clip_and_stops_when_nobody_listens(folder) -> None:
    loaded = load_folder(folder)
    clips = list(stream(loaded, "a red square", None, 4, {}, None))
    assert [len(clip) for clip in clips] == [1, 5, 9, 13, 17]
    assert torch.equal(clips[-1], loaded.generate(["a red square"], seed=[4])[1][0])
    growing = stream(loaded, "a red square", None, 4, {"guidance": 2.0}, None)
    assert len(next(growing)) == 1
    growing.close()
    settings = sampling_settings(loaded.sampling, {"guidance": 2.0})
    last = list(stream(loaded, "a red square", None, 4, {"guidance": 2.0}, None))[-1]
    assert torch.equal(last, loaded.generate(["a red square"], seed=[4], settings=settings)[1][0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(prompt="a red square " * 20), "shorten it"),
        (dict(prompt=None, label=1), "generated from prompts"),
        (dict(sampling={"first_temperature": -1.0}), "temperature"),
        (dict(first=torch.zeros(8, 8, dtype=torch.uint8)), "first_frame: shape"),
    ],
)
def test_wrong_inputs_end_the_stream(folder, changes, message) -> None:
    arguments = dict(prompt="a", label=None, seed=0, sampling={}, first=None) | changes
    with pytest.raises(UserError, match=message):
        next(stream(load_folder(folder), **arguments))


def test_a_port_in_use_is_one_line(folder, free_port) -> None:
    with socket.create_server(("127.0.0.1", free_port)):
        with pytest.raises(UserError, match=rf"port: {free_port} on 127\.0\.0\.1 is taken"):
            serve(load_folder(folder), "127.0.0.1", free_port)
