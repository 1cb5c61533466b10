"""Draw what a clip becomes as a sequence, and what each part of it predicts: docs/images/sequence.svg.

The rows are those of `make_layout` for a 17-frame clip of 256x256 pixels.
"""

from canvas import Canvas

from megavrc.model.config import ConditionConfig, ModelConfig
from megavrc.model.layout import make_layout

LEFT, SPAN = 20, 820


def drawing() -> str:
    """The figure as SVG."""
    config = ModelConfig(preset="b", condition=ConditionConfig(vocab=1))
    layout = make_layout(config)
    side, count, frames = config.grid, config.tokens_per_frame, config.frames
    width = SPAN / layout.length
    canvas = Canvas(352, "A clip as a sequence: condition, first frame, segments, and what each predicts")

    # What comes in: the latent frames.
    more = f"17 frames of 256 x 256 pixels are {1 + frames} frames of {side} x {side} tokens"
    canvas.title(LEFT, 26, "latent frames", more)
    begin = LEFT + layout.condition * width
    first = begin + layout.raw * width
    segment = layout.segments / frames * width
    centres = [begin + layout.raw * width / 2, *(first + (k + 0.5) * segment for k in range(frames))]
    _frame(canvas, centres[0] - 24, 42, "raw", "0")
    for k in range(frames):
        _frame(canvas, centres[1 + k] - 24, 42, "raw" if k == 0 else "compressed", str(k))

    # The input rows, as wide as they are many.
    canvas.arrow((centres[0], 94), (centres[0], 136))
    canvas.text(centres[0] + 8, 118, "embed", "small quiet")
    for k in range(frames):
        canvas.arrow((centres[1 + k], 94), (centres[1 + k], 136))
        canvas.text(centres[1 + k] - 5, 118, "compress", "small quiet", "end")
    canvas.box(LEFT, 138, begin - LEFT, 44, "condition", "c", str(layout.condition))
    canvas.box(begin, 138, layout.raw * width, 44, "raw", "x: the first frame, raw", f"{layout.raw} rows")
    for k in range(frames):
        rows = layout.segments // frames
        canvas.box(first + k * segment, 138, segment, 44, "compressed", f"z{chr(0x2080 + k)}", f"{rows} rows")

    # What is predicted.
    middle = (LEFT + first) / 2
    canvas.arrow((middle, 184), (middle, 252))
    canvas.text(middle + 8, 222, "next token, one by one", "small quiet")
    _frame(canvas, middle - 24, 254, "raw", "0")
    canvas.text(middle, 322, f"{count} passes", "small", "middle")
    for k in range(frames):
        x = first + (k + 0.5) * segment
        canvas.arrow((x, 184), (x, 252))
        canvas.text(x - 5, 222, "decompress", "small quiet", "end")
        _frame(canvas, x - 24, 254, "compressed", str(k + 1))
        canvas.text(x, 322, "1 pass", "small", "middle")
    canvas.text(
        LEFT,
        342,
        f"{layout.length} rows in training; {count + frames} passes to generate the clip",
        "small quiet",
    )
    return canvas.svg()


def _frame(canvas: Canvas, x: float, y: float, kind: str, name: str) -> None:
    canvas.cells(x, y, 12, [[kind] * 4] * 4)
    canvas.text(x + 54, y + 28, name, "bold")
