"""A sheet to draw figures on as SVG: boxes, lines, text, in colours that keep their contrast on light and dark pages.

The sheet has a ground of its own, because a page may be dark while the reader's system is light.
"""

import runpy
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
IMAGES = HERE.parent / "images"

# kind -> (fill, stroke) on light, on dark
COLOURS = {
    "sheet": ("#ffffff", "#d0d7de", "#0d1117", "#30363d"),
    "plain": ("#f1f3f5", "#8c959f", "#21262d", "#6e7681"),
    "empty": ("#ffffff", "#afb8c1", "#0d1117", "#484f58"),
    "condition": ("#e6dbf7", "#8250df", "#3a2a5a", "#ab7df8"),
    "raw": ("#cfe3ff", "#0969da", "#1a3a63", "#58a6ff"),
    "compressed": ("#ffdfb8", "#bc4c00", "#53300d", "#f0883e"),
    "good": ("#cdf0d5", "#1a7f37", "#123d20", "#3fb950"),
    "bad": ("#ffd9d6", "#cf222e", "#5c1f22", "#f85149"),
}
INK = {"text": ("#1f2328", "#e6edf3"), "quiet": ("#59636e", "#9da7b1"), "line": ("#57606a", "#9da7b1")}


def _style() -> str:
    light, dark = [], []
    for kind, (fill, stroke, dark_fill, dark_stroke) in COLOURS.items():
        light.append(f".{kind}{{fill:{fill};stroke:{stroke}}}")
        dark.append(f".{kind}{{fill:{dark_fill};stroke:{dark_stroke}}}")
    for scheme, place in ((light, 0), (dark, 1)):
        ink = {name: pair[place] for name, pair in INK.items()}
        scheme.append(f"text{{fill:{ink['text']}}}text.quiet,tspan.quiet{{fill:{ink['quiet']}}}")
        scheme.append(f".line{{fill:none;stroke:{ink['line']}}}.head{{fill:{ink['line']}}}")
    fonts = (
        "text{font:13px system-ui,-apple-system,Segoe UI,Helvetica,Arial,sans-serif}"
        ".small{font-size:11px}.bold{font-weight:600}.code{font-family:ui-monospace,Consolas,monospace;font-size:11px}"
        ".line{stroke-width:1.4}.thin{stroke-width:.5}.faint{opacity:.45}"
    )
    return f"{fonts}{''.join(light)}@media(prefers-color-scheme:dark){{{''.join(dark)}}}"


class Canvas:
    """A drawing of `width` x `height` units; a README shows 860 of them at about their size in pixels."""

    def __init__(self, height: int, label: str, width: int = 860) -> None:
        self.width, self.height, self.label = width, height, label
        self._parts: list[str] = []

    def box(self, x: float, y: float, w: float, h: float, kind: str, *lines: str, round: int = 3) -> None:
        """A box with centred lines of text; a line that begins with a backtick is code."""
        self._parts.append(
            f'<rect class="{kind}" x="{_n(x)}" y="{_n(y)}" width="{_n(w)}" height="{_n(h)}" rx="{round}"/>'
        )
        top = y + h / 2 - 8 * (len(lines) - 1) + 4
        for number, line in enumerate(lines):
            style = "code" if line.startswith("`") else "small quiet" if number else ""
            self.text(x + w / 2, top + 16 * number, line.strip("`"), style, "middle")

    def text(self, x: float, y: float, text: str, style: str = "", anchor: str = "start") -> None:
        """A line of text. Styles: small, bold, quiet, code."""
        given = f' class="{style}"' if style else ""
        where = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._parts.append(f'<text x="{_n(x)}" y="{_n(y)}"{given}{where}>{escape(text)}</text>')

    def title(self, x: float, y: float, text: str, more: str) -> None:
        """A line that begins in bold and goes on in grey."""
        self._parts.append(
            f'<text x="{_n(x)}" y="{_n(y)}"><tspan class="bold">{escape(text)}</tspan>'
            f'<tspan class="quiet" dx="8">{escape(more)}</tspan></text>'
        )

    def cells(self, x: float, y: float, side: float, kinds: Sequence[Sequence[str]]) -> None:
        """A grid of cells, row by row, each of a kind; "" leaves one out."""
        for row, line in enumerate(kinds):
            for column, kind in enumerate(line):
                if kind:
                    self._parts.append(
                        f'<rect class="{kind} thin" x="{_n(x + column * side)}" y="{_n(y + row * side)}" '
                        f'width="{_n(side)}" height="{_n(side)}"/>'
                    )

    def shape(self, points: Iterable[tuple[float, float]], kind: str) -> None:
        """A filled polygon."""
        path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        self._parts.append(f'<polygon class="{kind}" points="{path}"/>')

    def arrow(self, *points: tuple[float, float], style: str = "", head: bool = True) -> None:
        """A line through points, with a head at its end. Styles: thin."""
        path = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        self._parts.append(f'<path class="{f"line {style}".strip()}" d="{path}"/>')
        if head:
            (a, b), (x, y) = points[-2:]
            length = max(((x - a) ** 2 + (y - b) ** 2) ** 0.5, 1e-9)
            u, v = (x - a) / length * 7, (y - b) / length * 7
            tip = [(x, y), (x - u - v / 2, y - v + u / 2), (x - u + v / 2, y - v - u / 2)]
            self.shape(tip, "head")

    def curve(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """A faint line that leaves downwards and arrives downwards."""
        (a, b), (c, d) = start, end
        bend = (d - b) / 2
        path = f"M{a:.0f} {b:.0f}C{a:.0f} {b + bend:.0f} {c:.0f} {d - bend:.0f} {c:.0f} {d:.0f}"
        self._parts.append(f'<path class="line faint" d="{path}"/>')

    def svg(self) -> str:
        """The whole drawing."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'role="img" aria-label="{escape(self.label)}"><style>{_style()}</style>\n'
            f'<rect class="sheet" x=".5" y=".5" width="{self.width - 1}" height="{self.height - 1}" rx="6"/>\n'
            + "\n".join(self._parts)
            + "\n</svg>\n"
        )


def _n(value: float) -> str:
    """A number as short as a tenth of a unit allows."""
    return f"{value:.1f}".removesuffix(".0")


def drawings() -> dict[str, str]:
    """Every figure of this folder: its file below docs/images/, and its SVG drawn anew."""
    scripts = sorted(path for path in HERE.glob("*.py") if "\ndef drawing(" in path.read_text())
    return {f"{path.stem}.svg": runpy.run_path(str(path))["drawing"]() for path in scripts}
