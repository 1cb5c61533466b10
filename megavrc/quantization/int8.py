"""Int8 matrices that a CPU computes with: a product with few rows takes the time of reading the weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

READ_AT_ONCE = 16  # inputs that torch's kernel reads; it does not look where a row ends


class Int8Linear(nn.Module):
    """A linear layer with an int8 weight and a scale for each output channel, for inference on a CPU.

    Inputs and products are rounded to bfloat16, sums are float32. A row's result does not depend on the other rows.

    Attributes:
        weight: int8 [O, I], zeros behind the inputs up to a multiple of READ_AT_ONCE.
        scale: bfloat16 [O].
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        self.padding = -weight.shape[1] % READ_AT_ONCE
        scale = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
        whole = F.pad((weight / scale.float()[:, None]).round().to(torch.int8), (0, self.padding))
        self.weight = nn.Parameter(whole.contiguous(), requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """[.., I] of any float type to [.., O] of the same."""
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        if self.padding:
            rows = F.pad(rows, (0, self.padding))
        product = torch._weight_int8pack_mm(rows, self.weight, self.scale).to(x.dtype)
        product = product.reshape(*x.shape[:-1], len(self.weight))
        return product if self.bias is None else product + self.bias
