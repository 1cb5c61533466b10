"""Transformer layers of OmniTokenizer (arXiv 2406.09399), with the parameter names of the published weights.

Notable: everything is carried as x_BTHWD (batch, latent frames, grid rows, grid columns, width); a layer folds the
axes that it attends over. Keys and values come from the un-normalised stream, only queries see the layer norm. Some
parameters exist only because the published weights hold them; they are frozen and never read.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .quick_start import DRAWN_ON

EPS = 1e-5
COSINE_SCALE = 8.0  # of the logits of normalised queries and keys, at every head size
ROPE_BASE = 10000.0


class GammaNorm(nn.Module):
    """Layer norm with a learned gain; its offset is a stored buffer of zeros."""

    beta: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.register_buffer("beta", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta, EPS)


class PositionGenerator(nn.Module):
    """Depthwise 3x3x3 convolution, causal in time (PEG); the only source of position besides RoPE.

    Args:
        width: channels.
        scrambled: reinterpret memory as the published temporal layers do: the tensor laid out as (row, column, frame)
            is read as (frame, row, column) without moving anything. It mixes later frames into earlier ones.
    """

    def __init__(self, width: int, scrambled: bool) -> None:
        super().__init__()
        self.dsconv = nn.Conv3d(width, width, 3, padding=(0, 1, 1), groups=width)
        self.scrambled = scrambled

    def forward(self, x_BTHWD: Tensor) -> Tensor:
        shape = x_BTHWD.shape
        if not self.scrambled:
            return self._convolve(x_BTHWD)
        x_BHWTD = x_BTHWD.permute(0, 2, 3, 1, 4).contiguous()
        y_BHWTD = self._convolve(x_BHWTD.view(shape)).contiguous().view(x_BHWTD.shape)
        return y_BHWTD.permute(0, 3, 1, 2, 4)

    def _convolve(self, x_BTHWD: Tensor) -> Tensor:
        padded = F.pad(x_BTHWD, (0, 0, 0, 0, 0, 0, 2, 0))
        # The permuted view is channels_last_3d, the layout in which depthwise convolution is quick.
        return self.dsconv(padded.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)


class UnusedPositionBias(nn.Module):
    """The continuous position bias of the published temporal layers: stored there, read by no layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(2, width)),
                nn.Sequential(nn.Linear(width, width)),
                nn.Linear(width, heads),
            ]
        )


class CosineAttention(nn.Module):
    """Attention with normalised queries and keys: over the grid of one frame, or causally over one cell's frames.

    Args:
        width: of the stream.
        heads: number of heads.
        dim_head: channels of a head; a multiple of 4 for the spatial form (two-axis RoPE).
        temporal: attend over time (causal, no RoPE) instead of over the grid (full, RoPE).
    """

    def __init__(self, width: int, heads: int, dim_head: int, temporal: bool) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.temporal = temporal
        self.q_scale = nn.Parameter(torch.ones(dim_head))
        self.k_scale = nn.Parameter(torch.ones(dim_head))
        if temporal:
            self.spatial_rel_pos_bias = UnusedPositionBias(width, heads).requires_grad_(False)
        self.norm = GammaNorm(width)
        self.context_norm = GammaNorm(width).requires_grad_(False)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, x_BTHWD: Tensor) -> Tensor:
        q = self.to_q(self.norm(x_BTHWD))
        k, v = self.to_kv(x_BTHWD).chunk(2, dim=-1)
        attend = self._over_time if self.temporal else self._over_grid
        return self.to_out(attend(q, k, v))

    def _over_grid(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, t, h, w, _ = q.shape
        q, k, v = (a.reshape(b * t, h * w, self.heads, -1).transpose(1, 2) for a in (q, k, v))
        table = grid_rope_table(h * w, q.shape[-1], q.device)
        q, k = self._normalise(rotate_grid(q, table), rotate_grid(k, table))
        out = F.scaled_dot_product_attention(q, k, v, scale=COSINE_SCALE)
        return out.transpose(1, 2).reshape(b, t, h, w, -1)

    def _over_time(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, t, h, w, inner = q.shape
        q, k, v = (
            a.view(b, t, h * w, self.heads, -1).permute(0, 2, 3, 1, 4).flatten(0, 1) for a in (q, k, v)
        )
        q, k = self._normalise(q, k)
        out = F.scaled_dot_product_attention(q, k, v, scale=COSINE_SCALE, is_causal=True)
        return out.view(b, h * w, self.heads, t, -1).permute(0, 3, 1, 2, 4).reshape(b, t, h, w, inner)

    def _normalise(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(q, dim=-1) * self.q_scale, F.normalize(k, dim=-1) * self.k_scale


class WindowAttention(nn.Module):
    """Attention within non-overlapping square windows of one frame, with a learned relative position bias."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.relative_position_bias_table = nn.Parameter(
            torch.randn((2 * window - 1) ** 2, heads, device=DRAWN_ON) * 0.02
        )
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.norm = GammaNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTHWD: Tensor) -> Tensor:
        b, t, h, w, d = x_BTHWD.shape
        s = self.window
        windows = (
            self.norm(x_BTHWD).view(b * t, h // s, s, w // s, s, d).transpose(2, 3).reshape(-1, s * s, d)
        )
        q, k, v = self.qkv(windows).view(-1, s * s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(s * s, s * s, self.heads).permute(2, 0, 1)
        logits = (q * (d // self.heads) ** -0.5) @ k.transpose(-1, -2) + bias
        out = (logits.softmax(-1) @ v).transpose(1, 2).reshape(-1, h // s, w // s, s, s, d)
        return self.proj(out.transpose(2, 3).reshape(b, t, h, w, d))


class GatedGelu(nn.Module):
    """Value half times the exact GELU of the gate half."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)


def feed_forward(width: int, mult: float) -> nn.Sequential:
    """Layer norm, gated GELU, no biases; slots 2 and 3 (activation, dropout) hold no parameters."""
    hidden = int(mult * (2 / 3) * width)
    return nn.Sequential(
        nn.LayerNorm(width, eps=EPS),
        nn.Linear(width, 2 * hidden, bias=False),
        GatedGelu(),
        nn.Identity(),
        nn.Linear(hidden, width, bias=False),
    )


class Transformer(nn.Module):
    """A stack of layers, one letter each: `t` (position generator, cosine attention, feed-forward) or `w` (window).

    Args:
        blocks: the letters.
        width, heads, dim_head, window, ff_mult: sizes.
        temporal: attend over time.
        scrambled: the published memory reinterpretation of temporal position generators.
    """

    def __init__(
        self,
        blocks: str,
        *,
        width: int,
        heads: int,
        dim_head: int,
        window: int,
        ff_mult: float,
        temporal: bool = False,
        scrambled: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for letter in blocks:
            peg: nn.Module = nn.Identity()
            attention: nn.Module = WindowAttention(width, heads, window)
            if letter == "t":
                peg = PositionGenerator(width, scrambled)
                attention = CosineAttention(width, heads, dim_head, temporal)
            # Slot 2 is the cross-attention that the published layers leave empty.
            self.layers.append(nn.ModuleList([peg, attention, nn.Identity(), feed_forward(width, ff_mult)]))
        self.norm_out = GammaNorm(width)

    def forward(self, x_BTHWD: Tensor) -> Tensor:
        x = x_BTHWD
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            peg, attention, _, feed = layer
            if isinstance(peg, PositionGenerator):
                x = x + peg(x)
            x = x + attention(x)
            x = x + feed(x)
        return self.norm_out(x)


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each (query, key) of a window, long [window^2, window^2]."""
    side = torch.arange(window, device=DRAWN_ON)
    cells = torch.cartesian_prod(side, side)
    rows, columns = (cells[:, None] - cells[None] + window - 1).unbind(-1)
    return rows * (2 * window - 1) + columns


@functools.lru_cache(maxsize=32)
def grid_rope_table(cells: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two-axis rotary table for a square grid of `cells` cells in row-major order.

    Pair 2m turns by column * f_m and pair 2m + 1 by row * f_m, f_m = base^(-4m / dim). Returned as (cos, sin) [cells,
    dim], the sine signed for `rotate_grid`. Cached outside the modules: loading on the meta device would lose a buffer.
    """
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training
        side = int(cells**0.5)
        frequencies = ROPE_BASE ** (-torch.arange(0, dim, 4, device=device, dtype=torch.float32) / dim)
        cell = torch.arange(cells, device=device)
        column = (cell % side).float()[:, None] * frequencies
        row = (cell // side).float()[:, None] * frequencies
        angles = torch.stack([column, row], dim=-1).flatten(1).repeat_interleave(2, dim=1)
        sign = torch.tensor([-1.0, 1.0], device=device).repeat(dim // 2)
        return angles.cos(), angles.sin() * sign


def rotate_grid(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn adjacent channel pairs of x [..., cells, dim] by the angles of `grid_rope_table`, in float32."""
    cos, sin = table
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (x * cos + swapped * sin).to(x.dtype)
