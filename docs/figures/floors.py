"""Draw the floors of megavrc from the import contract and the imports themselves: docs/images/floors.svg.

    python docs/figures/floors.py

Nothing is written by hand: floors come from pyproject.toml, arrows from their import statements.
Every room uses the ground (the single files), so arrows to it are left out.
"""

import ast
import tomllib
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "images" / "floors.svg"
WIDTH, ROW, BOX, GAP, LEFT = 980, 92, 44, 12, 20

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2933 }
rect { fill: #e8eef5; stroke: #7b8794; rx: 5 } .ground rect { fill: #eceff1 }
path { fill: none; stroke: #3b6ea8; stroke-width: 1.5; opacity: .4 }
@media (prefers-color-scheme: dark) {
  text { fill: #e4e7eb } rect { fill: #243447; stroke: #7b8794 } .ground rect { fill: #2b2f33 }
  path { stroke: #8fbcf0; opacity: .45 }
}
"""


def floors() -> list[list[str]]:
    """Names of the rooms that exist, from the top floor down."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    named = [[room.strip(" ()") for room in layer.split("|")] for layer in layers]
    return [[room for room in floor if files(room)] for floor in named if any(map(files, floor))]


def files(room: str) -> list[Path]:
    """The files of a room: a folder of megavrc/, or one file of it."""
    single = ROOT / "megavrc" / f"{room}.py"
    return [single] if single.is_file() else sorted((ROOT / "megavrc" / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The rooms that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("megavrc.")}


def arrows(rooms: list[str]) -> set[tuple[str, str]]:
    """(room, another that one of its files imports)."""
    found = {(room, other) for room in rooms for path in files(room) for other in imported(path)}
    return {(room, other) for room, other in found if room != other and other in rooms}


def places(rows: list[list[str]]) -> dict[str, tuple[float, float, float]]:
    """Room -> left, top and width of its box."""
    found = {}
    for row, rooms in enumerate(rows):
        width = (WIDTH - 2 * LEFT - GAP * (len(rooms) - 1)) / len(rooms)
        width = min(width, 180)
        start = (WIDTH - len(rooms) * width - GAP * (len(rooms) - 1)) / 2
        for column, room in enumerate(rooms):
            found[room] = (start + column * (width + GAP), 16 + row * ROW, width)
    return found


def drawing() -> str:
    """The picture as SVG."""
    rows = floors()
    at = places(rows)
    rooms = [room for floor in rows for room in floor]
    ground = {room for room in rooms if (ROOT / "megavrc" / f"{room}.py").is_file()}
    lines = []
    for room, other in sorted(arrows(rooms)):
        if other in ground:
            continue
        (x, y, w), (u, v, z) = at[room], at[other]
        a, b, c, d = x + w / 2, y + BOX, u + z / 2, v
        bend = (d - b) / 2
        path = f"M{a:.0f} {b:.0f}C{a:.0f} {b + bend:.0f} {c:.0f} {d - bend:.0f} {c:.0f} {d:.0f}"
        lines.append(f'<path d="{path}"/>')
    for room in rooms:
        x, y, w = at[room]
        name = f"{room}.py" if room in ground else f"{room}/"
        group = '<g class="ground">' if room in ground else "<g>"
        lines.append(
            f'{group}<rect x="{x:.0f}" y="{y}" width="{w:.0f}" height="{BOX}"/>'
            f'<text x="{x + w / 2:.0f}" y="{y + 27}" text-anchor="middle">{escape(name)}</text></g>'
        )
    height = 16 + ROW * len(rows) - (ROW - BOX) + 16
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
    return (
        f'{head} aria-label="Floors of megavrc: imports point down only"><style>{STYLE}</style>\n'
        + "\n".join(lines)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    OUT.write_text(drawing())
    print(OUT.relative_to(ROOT))
