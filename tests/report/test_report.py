"""Figures and pages: written as their name says, the same every time, with texts escaped; the demo's old times."""

import json
from pathlib import Path

import jinja2
import pytest

from megavrc.demo.report import _seconds
from megavrc.errors import UserError
from megavrc.report.figures import panels, save, svg
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
