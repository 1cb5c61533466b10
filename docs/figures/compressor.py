"""Draw compressor and decompressor, layer by layer, from the modules: docs/images/compressor.svg."""

from canvas import Canvas
from torch import Tensor, empty, nn

from megavrc.model.compressor import Compressor, Decompressor
from megavrc.model.config import CompressionConfig, ConditionConfig, ModelConfig

BOX, GAP, TALL = 104, 14, 56


def drawing() -> str:
    """The figure as SVG: the sizes are those of tensors that went through."""
    config = ModelConfig("b", condition=ConditionConfig(vocab=1))
    side, width = config.grid, config.width
    canvas = Canvas(322, "Compressor and decompressor of rate 4")
    canvas.title(20, 26, "compressor", "a frame's embedded tokens to the rows of a segment")
    small = _row(
        canvas, 42, Compressor(config.compression, width).to("meta"), side, ("raw", "tokens"), "segment"
    )
    canvas.title(20, 150, "decompressor", "the trunk's states of that segment to the next frame")
    module = Decompressor(config.compression, width).to("meta")
    _row(canvas, 166, module, small, ("compressed", "states"), "to the head")
    lines = []
    for rate in (16, 64):
        nets = [part(CompressionConfig(rate), 8).net for part in (Compressor, Decompressor)]
        convolutions = [
            sum(isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) for layer in net) for net in nets
        ]
        rows = (side // CompressionConfig(rate).side) ** 2
        lines.append(f"Rate {rate}: {convolutions[0]} convolutions on either side, {rows} rows a segment.")
    canvas.text(
        20,
        272,
        f"Width D = {width} everywhere (preset b). Spatial only: frames are folded into the batch.",
        "quiet",
    )
    canvas.text(20, 296, " ".join(lines), "quiet")
    return canvas.svg()


def _row(
    canvas: Canvas,
    y: float,
    module: Compressor | Decompressor,
    side: int,
    before: tuple[str, str],
    after: str,
) -> int:
    """One of the two; returns the side of what comes out."""
    x = 20.0
    canvas.box(x, y, BOX, TALL, before[0], before[1], f"{side} x {side} x D")
    found: Tensor = empty(1, module.net[0].in_channels, side, side, device="meta")  # type: ignore[operator]
    for layer in module.net:
        found = layer(found)
        x += BOX + GAP
        canvas.arrow((x - GAP, y + TALL / 2), (x - 1, y + TALL / 2))
        lines = [_name(layer)]
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            lines.append(f"{found.shape[2]} x {found.shape[3]} x D")
        canvas.box(x, y, BOX, TALL, "plain", *lines)
    x += BOX + GAP
    canvas.arrow((x - GAP, y + TALL / 2), (x - 1, y + TALL / 2))
    canvas.box(
        x,
        y,
        BOX,
        TALL,
        "compressed" if before[0] == "raw" else "raw",
        after,
        f"{found.shape[2] * found.shape[3]} rows",
    )
    return int(found.shape[2])


def _name(layer: nn.Module) -> str:
    """A layer in a few words."""
    if isinstance(layer, nn.ConvTranspose2d):
        return f"up-conv {layer.kernel_size[0]}x{layer.kernel_size[1]} /{layer.stride[0]}"
    if isinstance(layer, nn.Conv2d):
        stride = f" /{layer.stride[0]}" if layer.stride[0] > 1 else ""
        return f"conv {layer.kernel_size[0]}x{layer.kernel_size[1]}{stride}"
    return type(layer).__name__
