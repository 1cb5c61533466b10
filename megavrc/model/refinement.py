"""Refinement (not in the paper): a frame drawn in several passes, each of which sees the cells that are known so far.

A segment's pass predicts the cells of a frame independently of each other, so what the context leaves open is decided
once in every cell, and differently. Rows of a model with `refine` take in the cells that are known, as masked
generation does (MaskGIT, arXiv 2202.04200); what they add is exactly zero where no cell is known.
"""

import math

import torch
from torch import Tensor, nn

from .compressor import RESETTABLE, ChannelRMSNorm, Compressor
from .config import CompressionConfig, ModelConfig
from .inputs import brief
from .sampling import SamplingSettings

NOTHING = 0.3  # share of training frames of which no cell is known


class Partial(nn.Module):
    """The known cells of a frame (or of a row of it), as something to add to the rows that predict it.

    Attributes:
        hole: [D] stands for an unknown cell.
    """

    def __init__(self, net: nn.Sequential, width: int) -> None:
        super().__init__()
        self.hole = nn.Parameter(torch.empty(width))
        self.net = net

    @torch.no_grad()
    def init_weights(self, std: float) -> None:
        """Nothing is added at first, whatever is known: the last 1x1 is zero."""
        nn.init.normal_(self.hole, std=std)
        for module in self.net:
            if isinstance(module, RESETTABLE):
                module.reset_parameters()
        last = self.net[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, tokens_BHWD: Tensor, known_BHW: Tensor) -> Tensor:
        """Embeddings of cells and which of them are known, to [B, h, w, D]; zero for a sample without known cells."""
        seen_BHWD = torch.where(known_BHW[..., None], tokens_BHWD, self.hole)
        added_BHWD = self.net(seen_BHWD.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return added_BHWD.where(known_BHW.any((1, 2), keepdim=True)[..., None], added_BHWD.new_zeros(()))


def frame_partial(config: ModelConfig) -> Partial:
    """The compressor of the known cells for the M rows of a segment, with `rms` since the share of known cells
    varies.
    """
    compression = CompressionConfig(config.compression.rate, "conv", "rms")
    return Partial(Compressor(compression, config.width).net, config.width)


def row_partial(config: ModelConfig) -> Partial:
    """The compressor of the known cells for the g rows that predict one row of the first frame, a picture [1, g]."""
    width = config.width
    around = nn.Conv2d(width, width, (1, 3), padding=(0, 1))
    net = nn.Sequential(around, ChannelRMSNorm(width), nn.ReLU(), nn.Conv2d(width, width, 1))
    return Partial(net, width)


def kept_cells(cells: int, passes: int) -> list[int]:
    """The number of cells known after each of 1 to `cells` passes: few at first, all in the end (the cosine schedule of
    MaskGIT).
    """
    kept = [0]
    for number in range(1, passes + 1):
        share = math.cos(math.pi / 2 * number / passes)
        wanted = cells - int(cells * share)
        kept.append(min(max(wanted, kept[-1] + 1), cells - passes + number))  # every pass keeps a cell
    return kept[1:]


def frame_passes(config: ModelConfig, settings: SamplingSettings) -> list[int]:
    """Passes of each frame (of each row of the first one), 1 + F.

    Raises:
        ValueError: passes that the model cannot make.
    """
    later = settings.later_passes
    later = [later] * config.frames if isinstance(later, int) else [*later]
    if len(later) > config.frames:
        raise ValueError(f"later_passes: {brief(later)} for {config.frames} later frames")
    passes = [settings.row_passes, *later, *[1] * (config.frames - len(later))]
    if max(passes) > 1 and not config.refine:
        name = "row_passes" if passes[0] > 1 else "later_passes"
        raise ValueError(
            f"{name}: this model was trained without refinement (refine), a frame takes one pass"
        )
    if settings.row_passes > 1 and config.first_frame != "row":
        raise ValueError("row_passes: this model does not draw its first frame row by row")
    for name, cells, most in (
        ("row_passes", config.grid, passes[0]),
        ("later_passes", config.tokens_per_frame, max(passes[1:], default=1)),
    ):
        if most > cells:
            raise ValueError(f"{name}: {brief(most)} for {cells} cells, which take 1 to {cells}")
    return passes


def order_cells(numbers: Tensor) -> Tensor:
    """The order in which cells become known, long [..., N], from a uniform number for each."""
    return numbers.argsort(-1)


def orders(config: ModelConfig, numbers_BTN: Tensor) -> Tensor:
    """Orders of the cells of all frames, long [B, T, N]; with `first_frame: row` the first one's rows have their
    own.
    """
    order_BTN = order_cells(numbers_BTN)
    if config.first_frame == "row":
        rows = numbers_BTN[:, 0].unflatten(1, (config.grid, -1))
        order_BTN[:, 0] = order_cells(rows).flatten(1)
    return order_BTN


def draw_known(config: ModelConfig, seed: int) -> Tensor:
    """The cells of a training sample that are known to the rows that predict their frame, bool [1 + F, g, g].

    For each frame (and, with `first_frame: row`, each row of the first one) nothing with probability NOTHING, else a
    share of cells at random as between the passes of generation; never all.
    """
    generator = torch.Generator().manual_seed(seed)
    side, frames = config.grid, config.frames

    def drawn(parts: int, cells: int) -> Tensor:
        nothing, share = torch.rand(2, parts, generator=generator)
        count = (cells * (1 - torch.cos(math.pi / 2 * share))).long().clamp(1, cells - 1)
        count = count.where(nothing >= NOTHING, 0)
        order = order_cells(torch.rand(parts, cells, generator=generator))
        return torch.zeros(parts, cells, dtype=torch.bool).scatter(
            1, order, torch.arange(cells) < count[:, None]
        )

    later = drawn(frames, side * side).view(frames, side, side)
    rows = drawn(side, side) if config.first_frame == "row" else torch.zeros(side, side, dtype=torch.bool)
    return torch.cat([rows[None], later])


def noisy_context(config: ModelConfig, ids_THW: Tensor, seed: int) -> Tensor:
    """Frames 0..F-1 of a training sample as they are compressed, long [F, g, g]: a share of tokens are random ones."""
    generator = torch.Generator().manual_seed(seed)
    context = ids_THW[:-1]
    replaced = torch.rand(context.shape, generator=generator) < config.context_noise
    return torch.randint(config.vocab, context.shape, generator=generator).where(replaced, context)
