"""The code length of clips in nats when their frames are drawn in several passes: a likelihood, like that of one pass.

A pass predicts its cells independently, given those of the passes before it, and the order is drawn without a look at
the clip. So the probabilities of all clips, for one order, sum to 1.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .condition import ConditionLike
from .refinement import frame_passes, kept_cells
from .sampling import SamplingSettings
from .vrc import VRC


@torch.no_grad()
def code_length(
    model: VRC,
    ids_BTHW: Tensor,
    condition: ConditionLike,
    order_BTN: Tensor,
    later_passes: Sequence[int] | int = 1,
    row_passes: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Nats of each frame, [B, 1 + F], teacher-forced; in eval mode, with `feedback: tokens`, the code length of what
    generation draws.

    Args:
        model: without guidance and filters.
        ids_BTHW: long [B, 1 + F, g, g].
        condition: as `VRC.forward` takes it.
        order_BTN: of the cells, see `orders`.
        later_passes, row_passes: see `SamplingSettings`.
        backend: of `segment_attention`.

    Raises:
        ValueError: passes that the model cannot make.
    """
    config = model.config
    count, side = config.tokens_per_frame, config.grid
    passes = frame_passes(config, SamplingSettings(later_passes=later_passes, row_passes=row_passes))
    parts = [slice(frame * count, frame * count + count) for frame in range(1, 1 + config.frames)]
    kept = [[0, *kept_cells(count, number)] for number in passes[1:]]
    if config.first_frame == "row":
        parts += [slice(row * side, row * side + side) for row in range(side)]
        kept += [[0, *kept_cells(side, passes[0])]] * side
    order_BS, ids_BS = order_BTN.flatten(1), ids_BTHW.flatten(1)
    last_BS = torch.zeros_like(ids_BS, dtype=torch.bool)  # what the last passes see
    for part, counts in zip(parts, kept, strict=True):
        last_BS[:, part].scatter_(1, order_BS[:, part][:, : counts[-2]], True)

    def nats(known_BS: Tensor) -> Tensor:
        known = known_BS.view(ids_BTHW.shape) if config.refine else None
        out = model(ids_BTHW, condition, known=known, logits=True, backend=backend)
        assert out.logits_first is not None and out.logits_later is not None
        logits = torch.cat([out.logits_first[:, None], out.logits_later], dim=1).flatten(1, 2)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(wide.transpose(1, 2), ids_BS, reduction="none")

    total_BS = nats(last_BS)
    for part, counts in zip(parts, kept, strict=True):
        order = order_BS[:, part]
        for before, upto in pairwise(counts[:-1]):
            known_BS = last_BS.clone()
            known_BS[:, part] = torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, :before], True)
            cells = order[:, before:upto]
            total_BS[:, part].scatter_(1, cells, nats(known_BS)[:, part].gather(1, cells))
    return total_BS.unflatten(1, ids_BTHW.shape[1:2] + (count,)).sum(2)
