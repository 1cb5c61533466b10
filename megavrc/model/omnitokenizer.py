"""The OmniTokenizer network (arXiv 2406.09399): video to ids and back, compatible with the published VQ weights.

Notable: state dict keys and shapes are those of the published video VQ checkpoints, quirks included. The first frame
has its own patch embedding and pixel head, so a clip is 1 + 4k frames and an image is a clip of one frame. There is no
absolute position, and the per-patch input norm removes gain and offset of every patch (`patch_norm`).
"""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .omnitokenizer_layers import EPS, Transformer
from .quick_start import DRAWN_ON

DISTANCE_ROWS = 8192  # vectors compared with the codebook at once, to bound memory


@dataclasses.dataclass
class OmniTokenizerConfig:
    """Sizes of the network; the defaults are the published video VQ models', except `temporal_peg`.

    Attributes:
        width: width of the transformers.
        heads: attention heads.
        dim_head: channels of a head in `t` layers (window layers use width / heads).
        patch: pixels of a patch's side.
        temporal_patch: frames of a patch after the first frame.
        enc_block: spatial encoder layers, one letter each: `t` full attention, `w` window attention.
        dec_block: spatial decoder layers, likewise.
        temporal_depth: temporal layers of the encoder, and of the decoder.
        patch_norm: normalise the pixels of each patch before they are projected, as the published models do; its
            brightness and contrast are lost there. No published checkpoint goes without.
        temporal_encoder: give the encoder temporal layers. Without them, and with an `enc_block` of `w`
            alone, the ids of a latent frame are a function of its own pixels (the position generator of `t`
            sees two frames back), and where nothing changes they repeat. No published checkpoint is of this
            kind.
        window: side of a window in cells.
        codes: codebook rows.
        code_dim: codebook columns.
        ff_mult: feed-forward hidden size is int(2/3 * ff_mult * width).
        temporal_peg: `causal`: ids of a latent frame do not depend on later frames. `original`: the memory
            reinterpretation that the published weights were trained with, which makes all frames depend on all.
    """

    width: int = 512
    heads: int = 8
    dim_head: int = 64
    patch: int = 8
    temporal_patch: int = 4
    enc_block: str = "ttww"
    dec_block: str = "tttt"
    temporal_depth: int = 4
    patch_norm: bool = True
    temporal_encoder: bool = True
    window: int = 8
    codes: int = 8192
    code_dim: int = 8
    ff_mult: float = 4.0
    temporal_peg: str = "causal"

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ValueError("OmniTokenizerConfig: " + "; ".join(problems))

    def _problems(self) -> Any:
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if not isinstance(value, (kind, int) if kind is float else kind) or (
                kind is int and isinstance(value, bool)
            ):
                yield f"{field.name} must be {kind.__name__}, got {value!r}"
                return
        for name in ("enc_block", "dec_block"):
            letters = getattr(self, name)
            if not letters or set(letters) - set("tw"):
                yield f"{name} must be one or more letters t and w, got {letters!r}"
        if self.temporal_peg not in ("causal", "original"):
            yield f"temporal_peg must be causal or original, got {self.temporal_peg!r}"
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            most = 1000 if field.name.endswith("depth") else 1 << 20
            if not isinstance(value, str | bool) and not 0 < value <= most:
                yield f"{field.name} must be positive and at most {most}, got {value}"
        if "w" in self.enc_block + self.dec_block and self.heads > 0 and self.width % self.heads:
            yield f"width {self.width} must be divisible by heads {self.heads} for window layers"
        if self.dim_head % 4:
            yield f"dim_head must be a multiple of 4 (two-axis RoPE), got {self.dim_head}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types. The two youngest fields are left out at their default: hashes cover this."""
        content = dataclasses.asdict(self)
        for name in ("temporal_encoder", "patch_norm"):
            if content[name]:
                del content[name]
        return content

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "OmniTokenizerConfig":
        """The inverse of `to_dict`; ValueError on unknown keys."""
        unknown = sorted(set(content) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"OmniTokenizerConfig: unknown keys {', '.join(unknown)}")
        return cls(**content)

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a clip; ValueError unless it has 1 + k * temporal_patch frames."""
        if frames < 1 or (frames - 1) % self.temporal_patch:
            raise ValueError(f"a clip has 1 + {self.temporal_patch}k frames, got {frames}")
        return 1 + (frames - 1) // self.temporal_patch

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of ids of a frame; ValueError unless square, of whole patches and whole windows."""
        cell = self.patch * (self.window if "w" in self.enc_block + self.dec_block else 1)
        if height != width or height < cell or height % cell:
            raise ValueError(
                f"frames must be square with a side that is a multiple of {cell}, got {height}x{width}"
            )
        return height // self.patch, width // self.patch


class Codebook(nn.Module):
    """Code vectors, and the moving statistics that training maintains (unused in inference)."""

    embeddings: Tensor
    N: Tensor
    z_avg: Tensor
    codebook_usage: Tensor

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        rows = F.normalize(torch.randn(codes, dim, device=DRAWN_ON), dim=-1)
        self.register_buffer("embeddings", rows)
        self.register_buffer("N", torch.ones(codes))
        self.register_buffer("z_avg", rows.clone())
        self.register_buffer("codebook_usage", torch.zeros(codes))

    def nearest(self, z: Tensor) -> Tensor:
        """Ids [...] of the rows nearest to z [..., dim]. Rows are not normalised, so |e|^2 counts; float32."""
        rows = self.embeddings.float()
        square = rows.square().sum(1)
        flat = z.float().reshape(-1, z.shape[-1])
        ids = [
            (part.square().sum(1, keepdim=True) - 2 * part @ rows.T + square).argmin(1)
            for part in flat.split(DISTANCE_ROWS)
        ]
        return torch.cat(ids).view(z.shape[:-1])

    def forward(self, ids: Tensor) -> Tensor:
        """Code vectors [..., dim] of ids [...]."""
        return F.embedding(ids, self.embeddings)


class PixelEncoder(nn.Module):
    def __init__(self, config: OmniTokenizerConfig) -> None:
        super().__init__()
        self.patch, self.temporal_patch = config.patch, config.temporal_patch
        self.to_patch_emb_first_frame = _embedding(3 * config.patch**2, config)
        self.to_patch_emb = _embedding(3 * config.patch**2 * config.temporal_patch, config)
        self.enc_spatial_transformer = _spatial(config, config.enc_block)
        self.enc_temporal_transformer = _temporal(config) if config.temporal_encoder else nn.Identity()

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        x = self.to_patch_emb_first_frame(to_patches(x_BCTHW[:, :, :1], 1, self.patch))
        if x_BCTHW.shape[2] > 1:
            later = self.to_patch_emb(to_patches(x_BCTHW[:, :, 1:], self.temporal_patch, self.patch))
            x = torch.cat([x, later], dim=1)
        return self.enc_temporal_transformer(self.enc_spatial_transformer(x))


class PixelDecoder(nn.Module):
    def __init__(self, config: OmniTokenizerConfig) -> None:
        super().__init__()
        self.patch, self.temporal_patch = config.patch, config.temporal_patch
        self.dec_spatial_transformer = _spatial(config, config.dec_block)
        self.dec_temporal_transformer = _temporal(config)
        self.to_pixels_first_frame = nn.Sequential(nn.Linear(config.width, 3 * config.patch**2))
        self.to_pixels = nn.Sequential(nn.Linear(config.width, 3 * config.patch**2 * config.temporal_patch))

    def forward(self, x_BTHWD: Tensor) -> Tensor:
        x = self.dec_spatial_transformer(self.dec_temporal_transformer(x_BTHWD))
        pixels = to_pixels(self.to_pixels_first_frame(x[:, :1]), 1, self.patch)
        if x.shape[1] > 1:
            later = to_pixels(self.to_pixels(x[:, 1:]), self.temporal_patch, self.patch)
            pixels = torch.cat([pixels, later], dim=2)
        return pixels


class OmniTokenizerNet(nn.Module):
    """Encoder, quantiser and decoder. Pixels are floats, x / 255 - 0.5; reconstructions are not clamped.

    `encode` and `decode` never change the codebook, in train mode either. Codebook and distances stay float32.
    """

    def __init__(self, config: OmniTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = PixelEncoder(config)
        self.decoder = PixelDecoder(config)
        self.codebook = Codebook(config.codes, config.code_dim)
        # Slot 0 of the published pair is a reshape.
        self.pre_vq_conv = nn.Sequential(nn.Identity(), nn.Linear(config.width, config.code_dim))
        self.post_vq_conv = nn.Sequential(nn.Identity(), nn.Linear(config.code_dim, config.width))

    def to_latents(self, x_BCTHW: Tensor) -> Tensor:
        """Pixels [B, 3, 1 + k * temporal_patch, H, W] to unit vectors [B, T, h, w, code_dim] before quantisation.

        Raises:
            ValueError: a size that the configuration cannot take, with the rule.
        """
        if x_BCTHW.dim() != 5 or x_BCTHW.shape[1] != 3:
            raise ValueError(f"expected pixels [B, 3, T, H, W], got {list(x_BCTHW.shape)}")
        self.config.latent_frames(x_BCTHW.shape[2])
        self.config.grid(*x_BCTHW.shape[3:])
        return F.normalize(self.pre_vq_conv(self.encoder(x_BCTHW)), dim=-1)

    def to_pixels(self, codes_BTHWC: Tensor) -> Tensor:
        """Code vectors [B, T, h, w, code_dim] to pixels [B, 3, 1 + (T - 1) * temporal_patch, H, W]."""
        return self.decoder(self.post_vq_conv(codes_BTHWC))

    def encode(self, x_BCTHW: Tensor) -> Tensor:
        """Pixels to ids, long [B, 1 + k, h, w]; a clip is encoded whole (see `temporal_peg`)."""
        return self.codebook.nearest(self.to_latents(x_BCTHW))

    def decode(self, ids_BTHW: Tensor) -> Tensor:
        """Ids to pixels [B, 3, 1 + k * temporal_patch, H, W]; ValueError for a grid that is not square."""
        if ids_BTHW.dim() != 4 or ids_BTHW.shape[2] != ids_BTHW.shape[3]:
            raise ValueError(f"expected ids [B, T, h, w] on a square grid, got {list(ids_BTHW.shape)}")
        if "w" in self.config.dec_block and ids_BTHW.shape[2] % self.config.window:
            raise ValueError(
                f"the grid's side must be a multiple of {self.config.window}, got {ids_BTHW.shape[2]}"
            )
        return self.to_pixels(self.codebook(ids_BTHW))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Reconstruction of the pixels through the ids."""
        return self.decode(self.encode(x_BCTHW))


def to_patches(x_BCTHW: Tensor, frames: int, patch: int) -> Tensor:
    """Patches [B, T / frames, H / patch, W / patch, C * frames * patch^2], channel slowest, then frame, row, column."""
    b, c, t, h, w = x_BCTHW.shape
    cut = x_BCTHW.reshape(b, c, t // frames, frames, h // patch, patch, w // patch, patch)
    return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def to_pixels(x_BTHWP: Tensor, frames: int, patch: int) -> Tensor:
    """The inverse of `to_patches`."""
    cut = x_BTHWP.unflatten(4, (3, frames, patch, patch))
    joined = cut.permute(0, 4, 1, 5, 2, 6, 3, 7)
    return joined.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _embedding(features: int, config: OmniTokenizerConfig) -> nn.Sequential:
    of_pixels = nn.LayerNorm(features, eps=EPS) if config.patch_norm else nn.Identity()
    return nn.Sequential(
        nn.Identity(), of_pixels, nn.Linear(features, config.width), nn.LayerNorm(config.width, eps=EPS)
    )


def _spatial(config: OmniTokenizerConfig, blocks: str) -> Transformer:
    return Transformer(blocks, **_sizes(config))


def _temporal(config: OmniTokenizerConfig) -> Transformer:
    scrambled = config.temporal_peg == "original"
    return Transformer("t" * config.temporal_depth, **_sizes(config), temporal=True, scrambled=scrambled)


def _sizes(config: OmniTokenizerConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("width", "heads", "dim_head", "window", "ff_mult")}
