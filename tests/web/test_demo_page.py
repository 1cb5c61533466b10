"""tools/serve.py in headless Chromium."""

import io
import json
import socket
import zipfile
from collections.abc import Iterator
from dataclasses import replace
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
from megavrc.video import write_mp4, write_png
from megavrc.web.address import check_address
from megavrc.web.clip_maker import ALWAYS, MORE, clip_maker, side_by_side, stream
from megavrc.web.demo_page import build_page, serve

pytest.importorskip("gradio", reason="needs the extra serve")
EXAMPLE = Path(__file__).parents[2] / "examples" / "scenes"
DONE = "17 of 17 frames"
SCALE = 448 // 16  # that the page enlarges the tiny model's pixels by


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


@pytest.fixture(scope="module")
def port(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A page at which one may wait."""
    with served(folder, tmp_path_factory.mktemp("home"), "--waiting", "1") as number:
        yield number


def test_a_clip_appears_frame_by_frame_and_wrong_inputs_are_one_line(folder, browser, port, tmp_path) -> None:
    for _ in range(8):  # the clip takes half a second: a busy browser may draw several of its states at once
        page = open_page(browser, port)
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


@pytest.mark.slow
def test_a_class_and_a_first_picture(browser, tmp_path) -> None:
    source = Source(tmp_path, ConditionConfig(kind="class", classes=3))
    folder = converted(source, tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    evil = "</script><img src=http://127.0.0.1:9/x.png onerror='window.seen = []'>"
    config["id2label"] = {"0": "ball", "1": "<b>bike</b>", "2": evil}
    (folder / "config.json").write_text(json.dumps(config))
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    write_png(tmp_path / "first.png", picture)
    with served(folder, tmp_path) as port:
        page = open_page(browser, port)
        page.get_by_label("Class").click()
        assert page.locator("[role=option] :is(b, img[src^=http])").count() == 0
        page.get_by_role("option", name=evil).click()
        page.locator("input[type=file]").first.set_input_files(tmp_path / "first.png")
        page.get_by_role("button", name="Remove Image").wait_for()
        page.get_by_role("button", name="Generate").click()
        wait_for_status(page, "done")
        first = torch.from_numpy(picture)[None]
        expected = load_folder(folder).generate(label=[2], seed=[0], first_frame=first)[1][0].numpy()
        assert np.array_equal(shown_clip(page), expected)
        assert page.locator("#about textarea, #about input").first.input_value().startswith(evil)
        page.locator(".grid-wrap").get_by_text(evil).wait_for()
        assert not page.elsewhere and page.locator("img[src*=':9']").count() == 0


@pytest.mark.slow
def test_who_waits_sees_that_and_everything_the_command_offers_is_there(folder, browser, tmp_path) -> None:
    mine = tmp_path / "<b>mine"  # texts of a folder are texts
    mine.mkdir()
    for path in folder.iterdir():
        (mine / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text())
    config["training"]["examples"] = ["a blue dog", "<img src=http://127.0.0.1:9/x.png>"]
    (mine / "config.json").unlink()
    (mine / "config.json").write_text(json.dumps(config))
    with served(mine, tmp_path) as port:
        first, second = open_page(browser, port), open_page(browser, port)
        assert second.get_by_role("heading", name=f"VRC: {tmp_path.name}/<b>mine").count()
        assert not second.get_by_text("share=True").count()
        second.get_by_role("button", name="a blue dog").click()
        second.get_by_role("button", name="Generate").click()
        wait_for_status(second, "done")
        set_number(first, "Frames", 65)
        set_number(first, "Clips", 3)
        first.get_by_label("Random").check()
        first.get_by_label("Prompt").fill("a red dog")
        first.get_by_role("button", name="Generate").click()
        wait_for_status(first, "of 65 frames")
        second.get_by_role("button", name="Generate").click()
        second.get_by_text("queue: 1/").wait_for()
        assert second.locator("#clip img").count() == 0
        assert "done" not in second.locator("#status textarea, #status input").first.input_value()
        wait_for_status(first, "65 of 65 frames")
        wait_for_status(first, "done")
        seed = int(first.get_by_label("Seed").input_value())
        about = first.locator("#about textarea, #about input").first.input_value()
        assert about == f"a red dog, seeds {seed} to {seed + 2}, 65 frames" and seed > 8
        with first.expect_download() as download:
            first.get_by_role("button", name="Save as mp4").click()
        with zipfile.ZipFile(download.value.path()) as archive:
            assert archive.namelist() == [f"clip-seed{seed + i}.mp4" for i in range(3)]

        wait_for_status(second, "done")
        second.get_by_role("button", name="Continue this clip").click()
        second.get_by_text("Continue a clip").click()
        second.get_by_text("clip-seed0").first.wait_for()
        second.get_by_role("button", name="Generate").click()
        wait_for_status(second, "done")
        for page, clips in ((first, 1), (second, 3)):
            page.wait_for_function(
                "n => document.querySelectorAll('.grid-wrap img').length === n", arg=clips, timeout=60_000
            )
        assert not first.elsewhere + second.elsewhere


def set_number(page: Any, label: str, value: int) -> None:
    """The number beside a slider."""
    page.get_by_label(f"number input for {label}").fill(str(value))
    page.keyboard.press("Tab")


def test_html_in_a_prompt_is_text_and_who_cannot_wait_is_told(browser, port) -> None:
    page = open_page(browser, port)
    page.get_by_label("Prompt").fill("<img src=http://127.0.0.1:9/x.png><b>bold</b>" * 9)
    page.get_by_role("button", name="Generate").click()
    wait_for_status(page, "shorten it")
    assert page.get_by_test_id("toast-text").inner_text().startswith("prompt '<img src=http://127.0.0.1:9")
    assert not page.elsewhere
    page.get_by_label("Prompt").fill("<i>dog</i>")  # short enough: its clip is made, and named in the history
    page.get_by_role("button", name="Generate").click()
    wait_for_status(page, "done")
    page.locator(".grid-wrap img").wait_for()
    assert page.locator(".grid-wrap i, #about i").count() == 0
    assert page.locator(".grid-wrap").get_by_text("<i>dog</i>, seed 0").count()
    page.get_by_label("Prompt").fill("a dog")
    set_number(page, "Frames", 129)
    others = [open_page(browser, port) for _ in range(2)]
    page.get_by_role("button", name="Generate").click()
    wait_for_status(page, "of 129 frames")
    for other in others:
        other.get_by_role("button", name="Generate").click()
        other.wait_for_timeout(300)
    wait_for_status(others[1], "too many wait, at most 1; try again in a while")
    page.get_by_role("button", name="Stop").click()
    wait_for_status(page, "stopped")


def test_a_stream_grows_to_the_clip_and_stops_when_nobody_listens(folder) -> None:
    loaded = load_folder(folder)
    clips = list(stream(loaded, 17, 17, prompt="a red square", seed=4))
    assert [clip.shape[:2] for clip in clips] == [(1, frames) for frames in (1, 5, 9, 13, 17)]
    assert torch.equal(clips[-1], loaded.generate(["a red square"], seed=[4])[1])
    growing = stream(loaded, 17, 17, prompt="a red square", seed=4, guidance=2.0)
    assert next(growing).shape[1] == 1
    growing.close()
    settings = sampling_settings(loaded.sampling, {"guidance": 2.0})
    last = list(stream(loaded, 17, 17, prompt="a red square", seed=4, guidance=2.0))[-1]
    assert torch.equal(last, loaded.generate(["a red square"], seed=[4], settings=settings)[1])
    longer = list(stream(loaded, 25, 17, prompt=["a", "b"], seed=4))
    assert [clip.shape[:2] for clip in longer] == [(2, 17), (2, 25)]
    whole = torch.cat(list(loaded.stream(["a", "b"], seed=4, frames=25, by_frame=False)), dim=1)
    assert torch.equal(longer[-1], whole)


def test_a_model_with_refinement_has_a_slider_for_its_passes(tmp_path) -> None:
    folder = load_folder(converted(Source(tmp_path, refine=True), tmp_path / "hf"))
    for model in (folder, load_folder(EXAMPLE)):
        labels = [part["props"].get("label") for part in build_page(model, tmp_path, 4).config["components"]]
        assert "Passes of the first later frame (1: VRC as in the paper)" in labels
    maker = clip_maker(folder, tmp_path)
    assert maker.own["later_passes"] == 8
    for given, shown, rest in ((4, 4, [4] * 3), ([4, 2], 4, [2]), ([], 1, [])):  # the first is the slider
        other = clip_maker(replace(folder, sampling={"later_passes": given}), tmp_path)
        assert other.own["later_passes"] == shown and [*other.rest] == rest

    def made(passes: int) -> Any:
        inputs = ["a blue dog", None, 6, 1, 0.9, 0.9, None, 1, False, None, 5]
        more = {name: passes if name == "later_passes" else None for name in MORE}
        return list(maker(*inputs, *more.values()))[-2]

    strips = []
    for passes in (1, 5):
        shown, heat = made(passes), {"first_temperature": 0.9, "later_temperature": 0.9}
        clip = folder.generate("a blue dog", seed=6, later_passes=[passes], **heat)[1][0]
        strips.append(shown.strip[::4, ::4])
        assert np.array_equal(strips[-1][:, 18 * 4 : 18 * 4 + 16], clip[4].numpy())
        assert f"later passes {passes}" in shown.about
    assert not np.array_equal(*strips)
    with pytest.raises(UserError, match="passes: 17 for 16 cells"):
        made(17)
    for nothing in (None, ["a blue dog"]):  # as programs may send
        with pytest.raises(UserError, match="prompt: give a text, not "):
            list(maker(nothing, None, 6, 1, 0.9, 0.9))


def test_a_model_of_single_frames_has_no_slider_of_passes(tmp_path) -> None:
    """Also where stage 1 was trained with refinement, as stage 2 will be."""
    folder = load_folder(converted(Source(tmp_path, refine=True, frames=0), tmp_path / "hf"))
    labels = [part["props"].get("label") for part in build_page(folder, tmp_path, 4).config["components"]]
    assert not [label for label in labels if "Passes" in str(label)]
    maker = clip_maker(folder, tmp_path)
    more = {name: 1 if name == "later_passes" else None for name in MORE}  # as a program may send
    shown = list(maker("a blue dog", None, 6, 1, 0.9, 0.9, None, 1, False, None, 5, *more.values()))
    assert shown[-1].status.startswith("1 of 1 frames")


def test_what_a_clip_is_made_of_names_its_beginning(folder, tmp_path) -> None:
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    write_png(tmp_path / "picture.png", frames[0])
    write_mp4(tmp_path / "clip.mp4", frames)
    maker = clip_maker(load_folder(folder), tmp_path)
    begun = {"picture": None, "video": None}
    for given, name, said in (
        ("picture", "picture.png", "a blue dog, from a picture, seed 6, 17 frames"),
        ("video", "clip.mp4", "a blue dog, after 5 frames of a clip, seed 6, 17 frames"),
    ):
        beginning = begun | {given: {"path": str(tmp_path / name)}}
        own = [maker.own[key] for key in ALWAYS]
        made = list(maker("a blue dog", beginning["picture"], 6, *own, video=beginning["video"]))
        assert made[-2].about == said


def test_several_clips_stand_in_a_square() -> None:
    clips = np.arange(5, dtype=np.uint8)[:, None, None, None, None] * np.ones((1, 2, 16, 16, 3), np.uint8)
    shown = side_by_side(clips)
    assert shown.shape == (2, 2 * 144 + 8, 3 * 144 + 16, 3)  # enlarged to a third of 448 pixels
    assert [int(shown[0, y, x, 0]) for y, x in ((0, 0), (0, 160), (0, 320), (160, 0), (160, 160))] == [
        *range(5)
    ]
    assert side_by_side(clips[:1]).shape == (2, 448, 448, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(prompt="a red square " * 20), "shorten it"),
        (dict(prompt=None, label=1), "generated from prompts"),
        (dict(first_temperature=-1.0), "temperature"),
        (dict(first_frame=torch.zeros(8, 8, dtype=torch.uint8)), "first_frame: shape"),
    ],
)
def test_wrong_inputs_end_the_stream(folder, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        next(stream(load_folder(folder), 17, 17, **dict(prompt="a", seed=0) | changes))


def test_addresses_that_cannot_be_are_one_line(folder, free_port) -> None:
    with socket.create_server(("127.0.0.1", free_port)):
        with pytest.raises(UserError, match=rf"port: {free_port} on 127\.0\.0\.1 is taken"):
            serve(load_folder(folder), "127.0.0.1", free_port, 1)
    for host, port, said in (
        ("127.0.0.1", 99999, "port: 99999 is not one from 1 to 65535"),
        ("127.0.0.1", 0, "port: 0 is not one"),
        ("127.0.0.1", -5, "port: -5 is not one"),
        ("no.such.host.invalid", free_port, "host: 'no.such.host.invalid' is not known"),
        ("", free_port, "host: '' is not known"),
        ("203.0.113.7", free_port, "host: 203.0.113.7 is no address of this machine"),
    ):
        with pytest.raises(UserError, match=said):
            check_address(host, port)
    check_address("0.0.0.0", free_port)
