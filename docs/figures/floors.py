"""Draw the floors of megavrc from the import contract and the imports themselves: docs/images/floors.svg.

Nothing is written by hand: floors come from pyproject.toml, arrows from their import statements.
Every room uses the ground (the single files), so arrows to it are left out.
"""

import ast
import tomllib
from pathlib import Path

from canvas import Canvas

ROOT = Path(__file__).resolve().parents[2]
WIDTH, ROW, BOX, GAP, LEFT = 980, 92, 44, 12, 20


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
    height = 16 + ROW * len(rows) - (ROW - BOX) + 16
    canvas = Canvas(height, "Floors of megavrc: imports point down only", WIDTH)
    for room, other in sorted(arrows(rooms)):
        if other not in ground:
            (x, y, w), (u, v, z) = at[room], at[other]
            canvas.curve((x + w / 2, y + BOX), (u + z / 2, v))
    for room in rooms:
        x, y, w = at[room]
        single = room in ground
        canvas.box(x, y, w, BOX, "plain" if single else "raw", f"{room}.py" if single else f"{room}/")
    return canvas.svg()
