"""Figures with matplotlib: one style, written as PNG or SVG, or put into a page."""

import io
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from megavrc.files import check_picture_place

log = logging.getLogger("megavrc")

# What may have the letters of names that matplotlib's own font has not, as far as a machine has it.
FONTS: tuple[str, ...] = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei")
FONTS += ("Droid Sans Fallback", "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Arial Unicode MS")
FONTS += ("Noto Emoji", "Symbola")
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b7791f", "#4a5568")
STYLE = {
    "axes.prop_cycle": f"cycler(color={list(COLOURS)})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "savefig.dpi": 200,
    "svg.hashsalt": "megavrc",  # the same figure gives the same file
}


def panels(
    count: int, columns: int = 3, width: float = 4.6, height: float = 3.0, text: float = 10
) -> tuple[Any, list[Any]]:
    """A figure and `count` axes in rows of up to `columns`, each `width` x `height` inches, in `text` points."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.font_manager import fontManager

    columns = min(columns, count)
    rows = -(-count // columns)
    known = fontManager.get_font_names()
    fonts = ["DejaVu Sans", *(name for name in FONTS if name in known)]
    matplotlib.rcParams.update(STYLE | {"font.family": fonts})
    matplotlib.rcParams.update({"font.size": text, "axes.titlesize": text + 1})
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    for empty in axes.flat[count:]:
        empty.set_axis_off()
    return figure, list(axes.flat[:count])


def legend(axes: Any, handles: Sequence[Any], names: Sequence[str], **options: Any) -> None:
    """A legend of names as they are, whoever chose them: no formula, nothing hidden for its _."""
    made = axes.legend(handles, [str(place) for place in range(len(names))], **options)
    for text, name in zip(made.get_texts(), names, strict=True):
        text.set(text=name, parse_math=False)


SHARE_COLOURS = ("#2b6cb0", "#e2e8f0", "#f0b27a")  # dark, light and middle in grey too


def stacked_shares(rows: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str]) -> Any:
    """A figure of a bar a row, cut into up to three shares that fill it.

    Args:
        rows: name to shares, metrics of a result file; the first and the last show their intervals, if they have any.
        names: of the shares, for the legend.
    """
    figure, (axes,) = panels(1, width=3.4, height=0.8 + 0.55 * len(rows), text=8)
    for place, shares in enumerate(rows.values()):
        left = 0.0
        for share, colour in zip(shares, SHARE_COLOURS, strict=True):
            width = 100 * share["value"]
            axes.barh(place, width, 0.5, left, color=colour, edgecolor="white")
            ink = "white" if colour == SHARE_COLOURS[0] else "#1c2330"
            if width > 3:
                inside = width > 16  # percent; else it stands above its bar
                axes.text(
                    left
                    + (width / 2 if inside else width - 1.5 * (left + width < 99)),  # apart from the last
                    place - (0 if inside else 0.38),
                    f"{width:.3g}%",
                    ha="center" if inside else "right",
                    va="center",
                    color=ink if inside else "#1c2330",
                    size=7 if inside else 6.5,
                )
            left += width
        for share, turned, down, colour in (
            (shares[0], False, 0.33, "#2b6cb0"),
            (shares[-1], True, 0.41, "#c05621"),
        ):
            if share.get("low") is not None and share.get("high") is not None:
                ends = [100 * (1 - share[end] if turned else share[end]) for end in ("low", "high")]
                axes.plot(ends, [place + down] * 2, color=colour, marker="|", markersize=5, linewidth=1.4)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(xlim=(0, 100), ylim=(len(rows) - 0.4, -0.5), xlabel="answers, %; lines: 95% intervals")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    bars = axes.containers[: len(names)]
    legend(axes, bars, names, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(names), columnspacing=1)
    return figure


def banner(figure: Any, words: str) -> None:
    """Write a warning across the top of a figure, which grows by its height."""
    figure.set_figheight(figure.get_figheight() + 0.5)
    figure.suptitle(
        words, fontsize="medium", color="white", backgroundcolor="#a3262a", weight="bold", wrap=True
    )


def save(figure: Any, *paths: Path) -> None:
    """Write a figure as the names end (.png, .svg), and close it; UserError for other endings, and where something else
    than such a picture lies."""
    for path in paths:
        check_picture_place(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(figure, path, path.suffix[1:])


def svg(figure: Any) -> str:
    """The `<svg>` element of a figure, which is closed."""
    drawn = io.StringIO()
    _write(figure, drawn, "svg")
    text = drawn.getvalue()
    return text[text.index("<svg") :]


def _write(figure: Any, target: Any, kind: str) -> None:
    import matplotlib.pyplot as plt

    with warnings.catch_warnings(record=True) as said:
        warnings.filterwarnings("always", "Glyph .* missing from font")
        figure.tight_layout()
        figure.savefig(target, format=kind, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)
    lost: dict[str, None] = {}
    for each in said:
        if found := re.match(r"Glyph (\d+) .* missing from font", str(each.message)):
            lost[chr(int(found[1]))] = None
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if lost:
        log.warning(
            "a figure has boxes for %s: install a font for them (%s)", "".join(lost), ", ".join(FONTS)
        )
