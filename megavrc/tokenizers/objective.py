"""Training objective of the video tokenizer: weighted reconstruction, commitment, codebook by moving averages.

Notable: all state is in persistent buffers and is the same on every rank: code statistics are summed over ranks, and
the vectors that seed the codebook are gathered from all of them, so resuming and other world sizes change nothing.
"""

import dataclasses

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megavrc.model.omnitokenizer import OmniTokenizerNet

LAPLACE = 1e-7


@dataclasses.dataclass
class ObjectiveConfig:
    """Terms of the loss; the defaults weigh all pixels alike.

    Attributes:
        l1: weight of the mean absolute error (pixels span 1).
        l2: weight of the mean squared error.
        commitment: weight of the squared distance of vectors to their codes.
        first_frame: factor on the errors of frame 0 (1 of 17 frames, but 1 of 5 latent frames).
        foreground: added to the weight 1 of pixels that differ from the background (the median of frame 0).
        motion: added to the weight of pixels that changed since the frame before.
        threshold: the difference, of 1, above which a pixel differs or changed.
        decay: of the codebook's moving averages.
        warmup_steps: first steps without quantisation; the codebook is then seeded by k-means++ with the last
            vectors. 0 keeps the codebook that the network has.
        seed_vectors: how many last vectors are kept for seeding.
        seed: of the seeding's random draws.
    """

    l1: float = 1.0
    l2: float = 1.0
    commitment: float = 0.25
    first_frame: float = 1.0
    foreground: float = 0.0
    motion: float = 0.0
    threshold: float = 0.1
    decay: float = 0.99
    warmup_steps: int = 100
    seed_vectors: int = 8192
    seed: int = 0


class TokenizerObjective(nn.Module):
    """The network with its loss; `forward` in train mode also moves the codebook.

    Args:
        net: the network to train.
        config: the terms.
    """

    pool: Tensor
    pooled: Tensor
    seeded: Tensor

    def __init__(self, net: OmniTokenizerNet, config: ObjectiveConfig) -> None:
        super().__init__()
        self.net = net
        self.config = config
        self.register_buffer("pool", torch.zeros(config.seed_vectors, net.config.code_dim))
        self.register_buffer("pooled", torch.zeros((), dtype=torch.long))
        self.register_buffer("seeded", torch.tensor(config.warmup_steps == 0))

    def forward(self, clips_BTHWC: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of uint8 clips [B, 1 + k * temporal_patch, H, W, 3] at optimiser step `step` (from 0).

        Returns:
            The loss, and detached scalars: reconstruction, commitment, psnr (dB, mean over clips), perplexity and
            usage of the codebook (moving averages over all ranks).
        """
        x = to_floats(clips_BTHWC)
        z = self.net.to_latents(x)
        codes, commitment = (z, z.new_zeros(())) if step < self.config.warmup_steps else self._quantise(z)
        if self.training and step < self.config.warmup_steps:
            self._collect(z.detach())
        recon = self.net.to_pixels(codes)
        reconstruction = self._reconstruction(recon, x)
        loss = reconstruction + self.config.commitment * commitment
        metrics = {"reconstruction": reconstruction.detach(), "commitment": commitment.detach()}
        return loss, metrics | {"psnr": psnr(recon.detach(), x)} | self._codebook_metrics()

    def pixel_weights(self, x_BCTHW: Tensor) -> Tensor:
        """Weight of every pixel, [B, 1, T, H, W]."""
        config = self.config
        weights = torch.ones_like(x_BCTHW[:, :1])
        if config.foreground:
            background = x_BCTHW[:, :, 0].flatten(2).median(-1).values[..., None, None, None]
            differs = (x_BCTHW - background).abs().amax(1, keepdim=True) > config.threshold
            weights = weights + config.foreground * differs
        if config.motion:
            changed = (x_BCTHW[:, :, 1:] - x_BCTHW[:, :, :-1]).abs().amax(1, keepdim=True) > config.threshold
            weights[:, :, 1:] += config.motion * changed
        weights[:, :, 0] *= config.first_frame
        return weights

    def _reconstruction(self, recon: Tensor, x: Tensor) -> Tensor:
        error = (recon.float() - x).abs()
        return (self.pixel_weights(x) * error * (self.config.l1 + self.config.l2 * error)).mean()

    def _quantise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Codes with a straight-through gradient, and the commitment term."""
        if self.training and not self.seeded:
            self._seed_codebook()
        book = self.net.codebook
        ids = book.nearest(z.detach())
        codes = book(ids)
        commitment = (z - codes).square().mean()
        if self.training:
            self._move_codebook(z.detach(), ids)
        return z + (codes - z).detach(), commitment

    @torch.no_grad()
    def _collect(self, z: Tensor) -> None:
        flat = gather(z.float().reshape(-1, z.shape[-1]))[-len(self.pool) :]
        self.pool.copy_(torch.cat([self.pool[len(flat) :], flat]))
        self.pooled.copy_((self.pooled + len(flat)).clamp(max=len(self.pool)))

    @torch.no_grad()
    def _seed_codebook(self) -> None:
        book = self.net.codebook
        rows = kmeans_plus_plus(self.pool[len(self.pool) - int(self.pooled) :], len(book.N), self.config.seed)
        book.embeddings.copy_(rows)
        book.z_avg.copy_(rows)
        book.N.fill_(1.0)
        if distributed():
            # Equal pools give equal rows on equal machines only; ranks must not drift apart on others.
            dist.broadcast(book.embeddings, 0)
            dist.broadcast(book.z_avg, 0)
        self.seeded.fill_(True)

    @torch.no_grad()
    def _move_codebook(self, z: Tensor, ids: Tensor) -> None:
        book, decay = self.net.codebook, self.config.decay
        sums = torch.zeros(len(book.N), z.shape[-1] + 1, device=z.device)  # last column: counts
        vectors = z.float().reshape(-1, z.shape[-1])
        sums.index_add_(0, ids.flatten(), torch.cat([vectors, torch.ones_like(vectors[:, :1])], dim=1))
        if distributed():
            dist.all_reduce(sums)
        book.N.lerp_(sums[:, -1], 1 - decay)
        book.z_avg.lerp_(sums[:, :-1], 1 - decay)
        total = book.N.sum()
        smoothed = (book.N + LAPLACE) / (total + len(book.N) * LAPLACE) * total
        book.embeddings.copy_(book.z_avg / smoothed[:, None])
        book.codebook_usage.lerp_((sums[:, -1] > 0).float(), 1 - decay)

    def _codebook_metrics(self) -> dict[str, Tensor]:
        book = self.net.codebook
        share = book.N / book.N.sum()
        perplexity = (-(share * share.clamp_min(1e-12).log()).sum()).exp()
        return {"perplexity": perplexity, "usage": (book.codebook_usage > 0.01).float().mean()}


def to_floats(clips_BTHWC: Tensor) -> Tensor:
    """uint8 clips [B, T, H, W, 3] to the network's pixels [B, 3, T, H, W] in [-0.5, 0.5]."""
    planes = clips_BTHWC.permute(0, 4, 1, 2, 3)
    # Contiguous planes: elementwise work on mixed layouts costs several times as much.
    return planes.to(torch.float32, memory_format=torch.contiguous_format).div_(255).sub_(0.5)


def psnr(recon_BCTHW: Tensor, x_BCTHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, mean over clips."""
    error = (recon_BCTHW.float().clamp(-0.5, 0.5) - x_BCTHW).square().flatten(1).mean(1)
    return (-10 * error.clamp_min(1e-10).log10()).mean()


def kmeans_plus_plus(vectors_ND: Tensor, rows: int, seed: int) -> Tensor:
    """Choose `rows` spread-out vectors: each next one with probability proportional to its squared distance.

    Source: Arthur and Vassilvitskii 2007 (the seeding alone, no Lloyd steps). Drawn on the CPU, so that the choice does
    not depend on the device.
    """
    points = vectors_ND.double().cpu()
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(points), (), generator=generator))]
    nearest = torch.full((len(points),), float("inf"), dtype=points.dtype)
    for _ in range(rows - 1):
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(1))
        # Fewer distinct vectors than rows leave only zeros: then any repeats.
        chosen.append(int(torch.multinomial(nearest.clamp_min(1e-12), 1, generator=generator)))
    return vectors_ND[torch.tensor(chosen, device=vectors_ND.device)]


def distributed() -> bool:
    """Whether several ranks train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather(rows_ND: Tensor) -> Tensor:
    """The rows of all ranks, in rank order, on every rank (equal counts)."""
    if not distributed():
        return rows_ND
    parts = [torch.empty_like(rows_ND) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows_ND.contiguous())
    return torch.cat(parts)
