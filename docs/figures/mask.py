"""Draw the mask of a sequence from the visible ends of its rows: docs/images/mask.svg."""

from canvas import Canvas

from megavrc.model.config import CompressionConfig, ConditionConfig, ModelConfig
from megavrc.model.layout import CONDITION, RAW, Layout, make_layout

KINDS = {CONDITION: "condition", RAW: "raw"}
TOP, SPAN = 46, 330


def drawing() -> str:
    """The figure as SVG: every pair of a small sequence, and the rectangles of the real one."""
    text = ConditionConfig(slots=4, vocab=1)
    small = make_layout(ModelConfig("b", grid=4, frames=3, condition=text, compression=CompressionConfig(4)))
    real = make_layout(ModelConfig("b", condition=ConditionConfig(vocab=1)))
    canvas = Canvas(456, "The mask: row i sees the keys before its end")
    _small(canvas, small)
    _real(canvas, real)
    x = 48
    for kind, words in (("condition", "condition"), ("raw", "first frame"), ("compressed", "segments")):
        canvas.box(x, 430, 12, 12, kind)
        canvas.text(x + 18, 441, words, "small")
        x += 100
    canvas.text(
        x + 10,
        441,
        "A row's end: i + 1 in the condition and the first frame, then the end of its segment.",
        "small quiet",
    )
    return canvas.svg()


def _small(canvas: Canvas, layout: Layout) -> None:
    """A cell for each pair of a query row and a key that it sees."""
    left, side = 48, SPAN / layout.length
    kinds = [KINDS.get(kind, "compressed") for kind in layout.kinds_S.tolist()]
    canvas.text(left, 24, f"{layout.length} rows: 4 + 16 + 3 segments of 4", "bold")
    canvas.cells(left, TOP, side, [kinds[:end] for end in layout.ends_S.tolist()])
    canvas.text(left + SPAN / 2, TOP + SPAN + 20, "keys", "small quiet", "middle")
    canvas.text(left - 8, TOP + 4, "rows", "small quiet", "end")
    steps = (0, layout.condition, layout.condition + layout.raw)
    for name, step in zip(("c", "x", "z"), steps, strict=True):
        canvas.text(left - 8, TOP + step * side + 26, name, "bold", "end")


def _real(canvas: Canvas, layout: Layout) -> None:
    """The same mask as few rectangles and triangles, which attention computes one by one."""
    left, scale = 500, SPAN / layout.length
    mask = layout.mask()
    canvas.text(left, 24, f"{layout.length} rows of a 17-frame clip: {len(mask.blocks)} blocks", "bold")
    for block in mask.blocks:
        kind = "compressed" if block.start >= layout.condition + layout.raw else "raw"
        y, z, x = TOP + block.start * scale, TOP + block.stop * scale, left + block.keys * scale
        if block.kind == "full":
            canvas.shape([(left, y), (x, y), (x, z), (left, z)], kind)
            size = f"{block.stop - block.start} x {block.keys}"
            canvas.text((left + x) / 2, (y + z) / 2 + 4, size, "small", "middle")
        else:
            canvas.shape([(left, y), (x - (z - y), y), (x, z), (left, z)], kind)
            canvas.text(left + 12, z - 12, f"{block.stop - block.start} rows, causal", "small")
    share = mask.area / layout.length**2
    canvas.text(
        left, TOP + SPAN + 20, f"{mask.area:,} visible pairs, {share:.0%} of the square", "small quiet"
    )
