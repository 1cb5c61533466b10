"""Draw the forward passes that a clip takes, VRC beside token-by-token prediction: docs/images/passes.svg."""

from canvas import Canvas

from megavrc.model.config import ConditionConfig, ModelConfig
from megavrc.model.refinement import frame_passes
from megavrc.model.sampling import SamplingSettings

LEFT, SPAN = 20, 820


def passes(config: ModelConfig) -> list[int]:
    """Forward passes of each latent frame, sequential decoding."""
    count = config.tokens_per_frame
    if config.prediction == "token":
        return [count] * (1 + config.frames)
    first, *later = frame_passes(config, SamplingSettings())
    return [count if config.first_frame == "token" else config.grid * first, *later]


def drawing() -> str:
    """The figure as SVG."""
    text = ConditionConfig(vocab=1)
    rows = [
        ("token by token", "prediction: token", ModelConfig("b", condition=text, prediction="token")),
        ("VRC", "the paper", ModelConfig("b", condition=text)),
        (
            "VRC, first frame row by row",
            "first_frame: row, not in the paper",
            ModelConfig("b", condition=text, first_frame="row"),
        ),
    ]
    most = sum(passes(rows[0][2]))
    canvas = Canvas(262, "Forward passes of a 17-frame clip")
    more = "17 frames of 256 x 256 pixels, sequential decoding"
    canvas.title(LEFT, 26, "forward passes of one clip", more)
    for number, (name, note, config) in enumerate(rows):
        y, x = 48 + 68 * number, float(LEFT)
        counts = passes(config)
        for frame, count in enumerate(counts):
            width = SPAN * count / most
            canvas.box(x, y, width, 30, "raw" if frame == 0 or count > 1 else "compressed", round=0)
            if width > 60:
                canvas.text(x + width / 2, y + 20, f"frame {frame}: {count}", "small", "middle")
            x += width
        if x < LEFT + SPAN - 300:
            canvas.text(x + 10, y + 13, f"{sum(counts)} passes", "bold")
            later = f"frames 1 to {config.frames} take {'a pass each' if max(counts[1:]) == 1 else 'more'}"
            canvas.text(x + 10, y + 28, f"{most / sum(counts):.1f} times fewer; {later}", "small quiet")
        canvas.text(LEFT, y + 46, name, "small")
        canvas.text(
            LEFT + SPAN, y + 46, note if number else f"{note}: {sum(counts)} passes", "small quiet", "end"
        )
    return canvas.svg()
