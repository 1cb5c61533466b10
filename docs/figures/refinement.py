"""Draw a later frame in four passes, with the code's own schedule and order: docs/images/refinement.svg."""

import torch
from canvas import Canvas

from megavrc.model.refinement import kept_cells, order_cells

SIDE, PASSES, CELL = 8, 4, 18


def drawing() -> str:
    """The figure as SVG: which cells are known before a pass, and which it draws."""
    kept = kept_cells(SIDE * SIDE, PASSES)
    order = order_cells(torch.rand(SIDE * SIDE, generator=torch.Generator().manual_seed(0))).tolist()
    canvas = Canvas(262, "A frame in four passes, each of which sees the cells that are known")
    for number, upto in enumerate(kept):
        before = kept[number - 1] if number else 0
        kinds = ["empty"] * (SIDE * SIDE)
        for cell in order[:before]:
            kinds[cell] = "raw"
        for cell in order[before:upto]:
            kinds[cell] = "compressed"
        x = 26 + number * 212
        canvas.title(x, 28, f"pass {number + 1}", f"draws {upto - before} of {SIDE * SIDE}")
        canvas.cells(x, 42, CELL, [kinds[row * SIDE :][:SIDE] for row in range(SIDE)])
        if number < PASSES - 1:
            canvas.arrow((x + SIDE * CELL + 12, 114), (x + 204, 114))
    for x, kind, words in (
        (26, "raw", "known"),
        (110, "compressed", "drawn now"),
        (220, "empty", "unknown (hole)"),
    ):
        canvas.box(x, 208, 12, 12, kind)
        canvas.text(x + 18, 219, words, "small")
    rows = "rows that predict frame k = z(k-1) + partial(known cells of frame k)"
    canvas.title(26, 246, rows, "nothing is added where no cell is known")
    return canvas.svg()
