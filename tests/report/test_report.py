"""Figures and pages: written as their name says, the same every time, with texts escaped; the demo's old times."""

import html
import json
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager

from megavrc import __version__
from megavrc.demo.report import _seconds, write_report
from megavrc.errors import UserError
from megavrc.files import write_json
from megavrc.model import ConditionConfig, ModelConfig, SamplingSettings
from megavrc.report.figures import FONTS, panels, save, stacked_shares, svg
from megavrc.report.page import picture, render
from megavrc.results import case, median_of, result, write_result


def drawn() -> object:
    figure, axes = panels(4)
    assert len(axes) == 4
    axes[0].plot([1, 2], [3, 4], label="a")
    return figure


def test_a_figure_is_written_as_it_is_named_and_always_the_same(tmp_path: Path) -> None:
    save(drawn(), tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    for name in ("a.svg", "b.svg"):
        save(drawn(), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert svg(drawn()).startswith("<svg")


def test_letters_that_no_font_has_are_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And where a machine has a font for them they are drawn with it."""

    def drawn(name: str) -> str:
        figure, (axis,) = panels(1)
        axis.set_title(name)
        caplog.clear()
        return svg(figure)

    drawn("runs/\ue000é\ue001\ue000")
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("a figure has boxes for \ue000\ue001: install a font")
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((0, 700))
    pen.lineTo((700, 700))
    pen.closePath()
    names = [".notdef", "mine"]
    font = FontBuilder(1000)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({0xE000: "mine"})
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (800, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": FONTS[0], "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "mine.ttf")
    before = list(fontManager.ttflist)
    try:
        fontManager.addfont(tmp_path / "mine.ttf")
        drawn("\ue000")
    finally:
        fontManager.ttflist[:] = before
    assert not caplog.messages


def test_a_bar_of_shares_is_as_long_as_they_are() -> None:
    shares = [
        {"value": 0.6, "low": 0.5, "high": 0.7},
        {"value": 0.1},
        {"value": 0.3, "low": 0.2, "high": 0.4},
    ]
    figure = stacked_shares({"a": shares, "b": shares[::-1]}, ["one", "tie", "two"])
    (axes,) = figure.axes
    assert [round(bar.get_width()) for bar in axes.patches] == [60, 10, 30, 30, 10, 60]
    lines = [sorted(map(round, line.get_xdata())) for line in axes.lines]
    assert lines == [[50, 70], [60, 80], [20, 40], [30, 50]]
    assert svg(figure).count("<path") > 6


def test_a_page_escapes_texts_and_misses_no_value(tmp_path: Path) -> None:
    template = tmp_path / "page.html"
    template.write_text(
        '{% extends "base.html" %}{% block body %}{{ text }} {{ share | percent }}{% endblock %}'
    )
    page = render(template, text="<b>", share=0.125)
    assert "&lt;b&gt; 12.5%" in page and page.startswith("<!doctype html>")
    with pytest.raises(jinja2.UndefinedError):
        render(template, text="x")


def test_a_picture_stands_in_the_page(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    assert picture(tmp_path / "a.gif", 'two "words"').startswith(
        '<img alt="two &#34;words&#34;" src="data:image/gif;'
    )
    with pytest.raises(UserError, match=r"b\.png: no such picture"):
        picture(tmp_path / "b.png", "")


def test_times_of_older_demos_are_read(tmp_path: Path) -> None:
    seconds = {"segment": [1.0, 2.0, 4.0], "token": [5.0, 6.0, 9.0]}
    old = {
        name: {"median": 0, "minimum": 0, "maximum": 0, "seconds": found} for name, found in seconds.items()
    }
    (tmp_path / "old.json").write_text(json.dumps({"format": 1, "seconds_per_clip": old, "ratio": 3.0}))
    cases = [case(name, {"seconds": median_of(found, "s")}) for name, found in seconds.items()]
    write_result(tmp_path / "new.json", result("evaluate speed", {}, cases))
    assert _seconds(tmp_path / "old.json") == _seconds(tmp_path / "new.json")
    assert _seconds(tmp_path / "new.json")["token"]["value"] == 6.0


def leave_files(tmp_path: Path) -> ModelConfig:
    """Files as the demo's commands leave them."""
    scores = {"colour": 1.0, "shape": 0.5, "direction": 1.0, "all": 0.5, "n": 8}
    sets = {name: scores for name in ("real", "generated", "generated_t1", "heldout")}
    config = ModelConfig(condition=ConditionConfig(kind="class", classes=3))
    files = {
        "alignment.json": {"reconstructed": scores | {"psnr": 29.64}, **sets},
        "timing.json": [{"step": "make clips", "command": "make --of=<script>", "seconds": 2.4}],
        "hf/config.json": {"vrc": config.to_dict()},
        "demo.json": {"format": 1, "part": 0.25, "seed": 41, "processes": 2},
    }
    for name, content in files.items():
        write_json(tmp_path / name, content)
    cases = [
        case(name, {"seconds": median_of([1.0 + n, 2.0 + n])}) for n, name in enumerate(("segment", "token"))
    ]
    write_result(tmp_path / "speed.json", result("evaluate speed", {}, cases))
    for run in ("tokenizer", "stage1", "stage2"):
        (tmp_path / run).mkdir()
        lines = [{"step": step, "loss": 3 / step, "psnr": step, "first": 2, "later": 1} for step in (1, 2)]
        (tmp_path / run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "samples").mkdir()
    for name in ("comparison.gif", "comparison.png"):
        (tmp_path / "samples" / name).write_bytes(b"picture")
    return config


def test_shares_have_their_intervals(tmp_path: Path) -> None:
    """Those of the file, also where a share is 1; files of before, which have none, are shown without."""
    leave_files(tmp_path)
    page = write_report(tmp_path, SamplingSettings()).read_text()
    assert "100.0%</td>" in page and "61.0% to 100.0%" not in page
    scores = json.loads((tmp_path / "alignment.json").read_text())
    scores["heldout"] |= {"colour_low": 0.61, "colour_high": 1.0}
    write_json(tmp_path / "alignment.json", scores)
    page = write_report(tmp_path, SamplingSettings()).read_text()
    assert '100.0%<br><span class="error">61.0% to 100.0%</span></td>' in page


EVIL = "<img src=http://127.0.0.1:9/x.png onerror=alert(1)></script><script>alert(2)</script>"


def test_texts_of_files_are_no_html(tmp_path: Path) -> None:
    """Whatever the files of a demo hold: no element comes of it."""
    leave_files(tmp_path)
    plain = write_report(tmp_path, SamplingSettings(), [("next", "do --this")]).read_text()
    scores = json.loads((tmp_path / "alignment.json").read_text())
    write_json(tmp_path / "alignment.json", scores | {EVIL: scores["real"]})
    write_json(tmp_path / "timing.json", [{"step": EVIL, "command": EVIL, "seconds": 1.0}])
    write_json(tmp_path / "demo.json", {"part": EVIL, "seed": EVIL, "processes": EVIL})
    page = write_report(tmp_path, SamplingSettings(), [(EVIL, EVIL)]).read_text()
    assert EVIL not in page and html.unescape(page).count(EVIL) == 8
    assert Counter(re.findall(r"<[a-z]+", page)) == Counter(re.findall(r"<[a-z]+", plain))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("alignment.json", [], "expected an object"),
        ("alignment.json", {}, "generated is missing"),
        ("alignment.json", {"generated": {}, "reconstructed": {}}, "generated: colour is missing"),
        ("alignment.json", {"generated": {"colour": "x"}, "reconstructed": {}}, "generated is {'colour'"),
        ("alignment.json", ("reconstructed", "psnr", None), "psnr is missing"),
        ("alignment.json", ("real", "all_low", "x"), "real is {'colour'"),
        ("alignment.json", ("real", "all", 1.5), "real: shares are from 0 to 1, of n clips"),
        ("alignment.json", ("real", "n", 0), "real: shares are from 0 to 1, of n clips"),
        ("timing.json", {}, "expected a list of steps"),
        ("timing.json", [{"step": "a", "command": "b"}], "seconds is missing"),
        ("timing.json", [3], "expected an object, got 3"),
        ("demo.json", [1], "expected an object"),
        ("hf/config.json", {"model_type": "llama"}, "vrc is missing"),
        ("hf/config.json", {"vrc": {"layers": -3}}, "layers: -3"),
        ("speed.json", [], "not a result file"),
        ("speed.json", ("metrics", "x", 1), "not a whole result file"),
        ("speed.json", {"seconds_per_clip": {"segment": {"seconds": [1.0]}}}, "token is missing"),
        ("speed.json", {"seconds_per_clip": {"segment": {}, "token": {}}}, "seconds is missing"),
        (
            "speed.json",
            {"seconds_per_clip": {"segment": {"seconds": []}, "token": {"seconds": [1]}}},
            "segment: expect",
        ),
        (
            "speed.json",
            {"seconds_per_clip": {"segment": {"seconds": [0]}, "token": {"seconds": [1]}}},
            "0 seconds",
        ),
    ],
)
def test_files_of_something_else_are_one_line(tmp_path: Path, name: str, content: Any, said: str) -> None:
    leave_files(tmp_path)
    if isinstance(content, tuple):
        part, key, value = content
        whole = json.loads((tmp_path / name).read_text())
        whole[part][key] = value
        if value is None:
            del whole[part][key]
        content = whole
    write_json(tmp_path / name, content)
    with pytest.raises(UserError, match=rf"{name}: .*{said}|{name}: {said}"):
        write_report(tmp_path, SamplingSettings())


def test_lines_of_metrics_without_numbers_are_left_out(tmp_path: Path) -> None:
    leave_files(tmp_path)
    plain = write_report(tmp_path, SamplingSettings()).read_text()
    for run in ("tokenizer", "stage1", "stage2"):
        with open(tmp_path / run / "metrics.jsonl", "a") as file:
            file.write(
                '{"loss": 1, "first": 2}\n{"step": "3", "loss": 1, "first": 1}\n{"step": 3, "first": "x"}\n'
            )
    assert write_report(tmp_path, SamplingSettings()).read_text() == plain
    (tmp_path / "stage1" / "metrics.jsonl").write_text('{"step": 1}\n')
    assert write_report(tmp_path, SamplingSettings()).read_text().count("<svg") == 3


def test_the_report_of_a_demo(tmp_path: Path) -> None:
    """From files as the demo's commands leave them; texts in them are escaped."""
    config = leave_files(tmp_path)
    page = write_report(tmp_path, SamplingSettings(), [("what <next>", "do --this")]).read_text()
    assert page.count("data:image/") == 2 and page.count("<svg") == 3
    assert "50.0%" in page and "29.6" in page and "1.7 times" in page and "&lt;script&gt;" in page
    assert str(config.tokens_per_frame + config.frames) in page
    assert "what &lt;next&gt;" in page and "<pre>do --this</pre>" in page
    assert "<td>41</td>" in page and __version__ in page and f"{datetime.now(UTC):%Y-%m-%d}" in page
    numbers, pictures = page.index("50.0%"), page.index("data:image/")
    assert numbers < page.index("1.7 times") < pictures
