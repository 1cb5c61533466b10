"""Figures with matplotlib: one style, written as PNG or SVG, or put into a page."""

import io
from pathlib import Path
from typing import Any

import matplotlib

KINDS = (".png", ".svg")
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b7791f", "#4a5568")
STYLE = {
    "axes.prop_cycle": f"cycler(color={list(COLOURS)})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.hashsalt": "megavrc",  # the same figure gives the same file
}


def panels(count: int, columns: int = 3, width: float = 4.6, height: float = 3.0) -> tuple[Any, list[Any]]:
    """A figure and `count` axes in rows of up to `columns`, each `width` x `height` inches."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    columns = min(columns, count)
    rows = -(-count // columns)
    matplotlib.rcParams.update(STYLE)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    for empty in axes.flat[count:]:
        empty.set_axis_off()
    return figure, list(axes.flat[:count])


def save(figure: Any, path: Path) -> None:
    """Write a figure as its name ends (one of KINDS), and close it."""
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

    figure.tight_layout()
    figure.savefig(target, format=kind, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)
