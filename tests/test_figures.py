"""The figures of the pages are what the code draws now, and what they claim is what the code does."""

import re
import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from PIL import Image

from megavrc.model import VRC, ModelConfig
from megavrc.model.config import ConditionConfig
from megavrc.model.cuda_graphs import Workspace
from megavrc.model.decoder import Decoder
from megavrc.model.generate import Sampler
from megavrc.model.sampling import SamplingSettings

ROOT = Path(__file__).resolve().parents[1]
FIGURES, IMAGES = ROOT / "docs" / "figures", ROOT / "docs" / "images"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def drawings() -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FIGURES)
        found: dict[str, str] = runpy.run_path(str(FIGURES / "canvas.py"))["drawings"]()
    return found


def test_figures_are_those_of_the_code(drawings: dict[str, str]) -> None:
    assert len(drawings) >= 10
    for name, drawn in drawings.items():
        assert (IMAGES / name).read_text() == drawn, f"{name}: python docs/figures/draw.py draws it"


def test_figures_stand_in_a_page_with_words_in_their_place(drawings: dict[str, str]) -> None:
    shown = {
        Path(target).name: words
        for page in PAGES
        for words, target in re.findall(r"!\[([^]]*)\]\(([^)\s]+)\)", page.read_text())
    }
    assert {*drawings, "demo.gif"} <= set(shown)
    assert all(len(shown[name]) > 20 for name in drawings)


def test_figures_can_be_read_on_light_and_dark(drawings: dict[str, str]) -> None:
    """Ink on every ground that carries text: the contrast that WCAG asks of text, 4.5, in both schemes."""
    colours = runpy.run_path(str(FIGURES / "canvas.py"))
    for place, ground in ((0, 0), (1, 2)):
        for kind, values in colours["COLOURS"].items():
            for ink in ("text", "quiet"):
                assert contrast(colours["INK"][ink][place], values[ground]) >= 4.5, (kind, ink)
    for drawn in drawings.values():
        assert "prefers-color-scheme:dark" in drawn and 'class="sheet"' in drawn


def contrast(first: str, second: str) -> float:
    def luminance(colour: str) -> float:
        levels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_figures_stay_inside_their_sheet(drawings: dict[str, str]) -> None:
    """Boxes do; a text does, reckoned at half an em a letter."""
    for name, drawn in drawings.items():
        root = ET.fromstring(drawn)
        width, height = map(float, root.attrib["viewBox"].split()[2:])
        for item in root.iter():
            tag = item.tag.rpartition("}")[2]
            if tag == "rect":
                right = float(item.attrib["x"]) + float(item.attrib["width"])
                assert right <= width and float(item.attrib["y"]) + float(item.attrib["height"]) <= height, (
                    name
                )
            elif tag == "text":
                text = "".join(item.itertext())
                size = 11 if re.search("small|code", item.get("class", "")) else 13
                long = 0.5 * size * len(text)
                x = float(item.attrib["x"])
                left = x - long * {"middle": 0.5, "end": 1.0}.get(item.get("text-anchor", ""), 0.0)
                assert left >= -2 and left + long <= width + 2, f"{name}: {text}"


@pytest.mark.parametrize("kind", [{}, {"prediction": "token"}, {"first_frame": "row"}])
def test_the_figure_counts_the_passes_that_generation_makes(kind: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FIGURES)
        passes = runpy.run_path(str(FIGURES / "passes.py"))["passes"]
    text = ConditionConfig(vocab=8, slots=4)
    config = ModelConfig("debug", layers=1, heads=1, width=16, grid=4, frames=2, condition=text, **kind)
    model = VRC(config).eval()
    with torch.inference_mode():
        decoder = Decoder(model, model.null_condition(1), 1)
        sampler = Sampler(decoder, SamplingSettings(), Workspace(model, 1))
        sampler.take(None)
        counts = []
        for frame in range(1 + config.frames):
            before = decoder.passes
            sampler.frame(frame)
            counts.append(decoder.passes - before)
    assert counts == passes(config)


def test_the_moving_picture_moves_and_is_small() -> None:
    path = IMAGES / "demo.gif"
    assert path.stat().st_size < 1_500_000
    with Image.open(path) as picture:
        assert picture.n_frames > 16
