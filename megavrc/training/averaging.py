"""An exponential moving average of the weights and buffers.

The average of a parameter lies beside AdamW's moments, as one more of them. So it is sharded as they are at every ZeRO
stage, and goes in and out of checkpoints (group `ema`) as they do.
"""

import torch
from torch import Tensor

AVERAGE = "ema"


class Average:
    """Averages what an engine trains.

    Args:
        decay: of the average; smaller in the first steps: (1 + n) / (10 + n) after n updates.
        state: the optimizer's, by fp32 tensor (a parameter, or this rank's partition of many).
        buffers: of the module, by name.

    Attributes:
        buffers: averages of the floating ones by name, in fp32; part of the group `ema` too.
    """

    def __init__(
        self, decay: float, state: dict[Tensor, dict[str, Tensor]], buffers: dict[str, Tensor]
    ) -> None:
        self._decay, self._state = decay, state
        self._sources = {name: tensor for name, tensor in buffers.items() if tensor.is_floating_point()}
        self.buffers = {name: torch.empty_like(tensor) for name, tensor in self._sources.items()}
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew from the weights as they are, whatever the averages hold: lerp keeps a NaN even at share 1."""
        for tensor, entry in self._state.items():
            entry[AVERAGE].copy_(tensor)
        for name, buffer in self._sources.items():
            self.buffers[name].copy_(buffer)

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Take in the weights after `updates` applied steps."""
        share = 1.0 - min(self._decay, (1 + updates) / (10 + updates))
        for tensor, entry in self._state.items():
            entry[AVERAGE].lerp_(tensor.detach(), share)
        for name, buffer in self._sources.items():
            self.buffers[name].lerp_(buffer, share)
