"""Training objective of the video tokenizer: reconstruction, commitment, perceptual and adversarial terms.

Notable: all state is in parameters and persistent buffers and is the same on every rank: code statistics are summed
over ranks, and the vectors that seed the codebook are gathered from all of them, so resuming and other world sizes
change nothing. The discriminators are part of the objective, so there is one optimizer, one checkpoint and one loop:
network and discriminators are updated in the same step, by the gradients of one sum (the original alternates two
optimizers; see `gan_terms` for how the two sides stay apart).
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from megavrc.model.compressor import several_ranks, sum_over_ranks
from megavrc.model.omnitokenizer import OmniTokenizerNet
from megavrc.tokenizers.discriminators import PatchDiscriminator, gan_terms
from megavrc.tokenizers.perceptual import Perceptual
from megavrc.tokenizers.quality import clip_psnr, ssim
from megavrc.user_files import place

LAPLACE = 1e-7
DIFFERS = 0.1  # of 1: pixels further apart than that count as different, and as changed


@dataclasses.dataclass
class ObjectiveConfig:
    """Terms of the loss; the defaults weigh all pixels alike and leave out perceptual and adversarial terms.

    Attributes:
        l1: weight of the mean absolute error (pixels span 1).
        l2: weight of the mean squared error.
        commitment: weight of the squared distance of vectors to their codes.
        first_frame: factor on the errors of frame 0 (1 of 17 frames, but 1 of 5 latent frames).
        foreground: weight added to the 1 of pixels that differ from the background (the median of frame 0).
        motion: weight added to that of pixels that changed since the frame before.
        decay: decay of the codebook's moving averages.
        warmup_steps: first steps without quantisation; the codebook is then seeded by k-means++ with the last
            vectors. 0 keeps the codebook that the network has.
        seed_vectors: number of last vectors that are kept for seeding.
        restart: replace codes whose average count in a forward pass falls below 1 by vectors of that pass.
        scales: factors of the resolution, one drawn for every step, as in [0.5, 0.75, 1, 1.25]. Empty: always 1.
        perceptual: weight of the LPIPS distance of a random frame of each clip; needs `vgg`.
        vgg: state dict of torchvision's vgg16, .pth or .safetensors (default: MEGAVRC_VGG).
        lpips_heads: the linear heads of LPIPS for VGG16. Empty: all channels weigh 1.
        gan_frame: weight of the discriminator of a random frame, in the network's loss and in its own.
        gan_clip: weight of the discriminator of the clip, likewise; it rests in steps of single frames.
        gan_start: step from which on the discriminators take part.
        gan_threshold: the discriminators' weighted loss below which their gradients are dropped.
        gan_width: channels of a discriminator's first layer.
        feature_matching: weight of the difference of the discriminators' features, for each in use.
    """

    l1: float = 1.0
    l2: float = 1.0
    commitment: float = 0.25
    first_frame: float = 1.0
    foreground: float = 0.0
    motion: float = 0.0
    decay: float = 0.99
    warmup_steps: int = 100
    seed_vectors: int = 8192
    restart: bool = False
    scales: list[float] = dataclasses.field(default_factory=list)
    perceptual: float = 0.0
    vgg: str = ""
    lpips_heads: str = ""
    gan_frame: float = 0.0
    gan_clip: float = 0.0
    gan_start: int = 0
    gan_threshold: float = 0.001
    gan_width: int = 64
    feature_matching: float = 0.0
    retired: ClassVar = {
        "threshold": (0.1, "pixels that differ by more than 0.1 differ"),
        "seed": (0, "draws depend on the step alone"),
    }

    def problems(self) -> Iterator[str]:
        """Settings that cannot be, one sentence each."""
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, str | list) and value < 0:
                yield f"objective.{name}: {value} is negative"
        if self.decay > 1:
            yield f"objective.decay: {self.decay} is above 1"
        if any(scale <= 0 for scale in self.scales):
            yield f"objective.scales: {self.scales} must be positive"
        if self.perceptual and not place("vgg", self.vgg):
            yield "objective.vgg: objective.perceptual needs the file of torchvision's vgg16 weights"
        if self.feature_matching and not (self.gan_frame or self.gan_clip):
            yield "objective.feature_matching: needs a discriminator; set objective.gan_frame or objective.gan_clip"


class TokenizerObjective(nn.Module):
    """The network with its loss; `forward` in train mode also moves the codebook.

    Args:
        net: the network to train.
        config: the terms.
        perceptual: the frozen feature network; needed where its weight is not 0.
    """

    pool: Tensor
    pooled: Tensor
    seeded: Tensor

    def __init__(
        self, net: OmniTokenizerNet, config: ObjectiveConfig, perceptual: Perceptual | None = None
    ) -> None:
        super().__init__()
        if config.perceptual and perceptual is None:
            raise ValueError("a perceptual weight needs the feature network")
        self.net = net
        self.config = config
        self.perceptual = perceptual
        self.discriminators = nn.ModuleDict(
            {
                name: PatchDiscriminator(dims, config.gan_width)
                for name, dims, weight in (("frame", 2, config.gan_frame), ("clip", 3, config.gan_clip))
                if weight
            }
        )
        self.register_buffer("pool", torch.zeros(config.seed_vectors, net.config.code_dim))
        self.register_buffer("pooled", torch.zeros((), dtype=torch.long))
        self.register_buffer("seeded", torch.tensor(config.warmup_steps == 0))

    def forward(
        self, clips_BTHWC: Tensor, step: int, frame_B: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of uint8 clips [B, 1 + k * temporal_patch, H, W, 3] at optimiser step `step` (from 0).

        Args:
            clips_BTHWC: single frames count as images.
            step: decides what takes part.
            frame_B: the frame of each clip that perceptual term, frame discriminator and SSIM look at; None: the first.

        Returns:
            The loss (the discriminators' included), and detached scalars: the terms without their weights, psnr (dB,
            mean over clips), ssim, tokens of a clip, perplexity and usage of the codebook (moving averages over all
            ranks).
        """
        x = self._rescaled(to_floats(clips_BTHWC), step)
        z = self.net.to_latents(x)
        codes, commitment = (z, z.new_zeros(())) if step < self.config.warmup_steps else self._quantise(z)
        restarted = None
        if self.training and step < self.config.warmup_steps:
            self._collect(z.detach())
        elif self.training and self.config.restart:
            restarted = self._restart_dead_codes(z.detach(), step)
        recon = self.net.to_pixels(codes)
        reconstruction = self._reconstruction(recon, x)
        loss = reconstruction + self.config.commitment * commitment
        metrics = {"reconstruction": reconstruction, "commitment": commitment}
        metrics["tokens"] = loss.new_full((), z[0, ..., 0].numel())
        rows = torch.arange(len(x), device=x.device)
        frame_B = torch.zeros_like(rows) if frame_B is None else frame_B
        frames = x[rows, :, frame_B], recon[rows, :, frame_B].float()
        for term, extra in (self._perceptual(*frames), self._adversarial((x, recon.float()), frames, step)):
            loss = loss + term
            metrics |= extra
        with torch.no_grad():
            metrics |= {"psnr": clip_psnr(recon, x), "ssim": ssim(frames[1], frames[0])}
        metrics |= {} if restarted is None else {"restarted": restarted}
        detached = {name: value.detach() for name, value in metrics.items()}
        return loss, detached | self.codebook_metrics()

    def _rescaled(self, x_BCTHW: Tensor, step: int) -> Tensor:
        """The clips at this step's scale, which is the same on all ranks."""
        scales = self.config.scales
        if not scales:
            return x_BCTHW
        scale = scales[int(torch.randint(len(scales), (), generator=self._generator(step)))]
        side = round(x_BCTHW.shape[-1] * scale)
        if side == x_BCTHW.shape[-1]:
            return x_BCTHW
        frames = F.interpolate(
            x_BCTHW.transpose(1, 2).flatten(0, 1), (side, side), mode="bilinear", antialias=True
        )
        return frames.unflatten(0, (len(x_BCTHW), -1)).transpose(1, 2).contiguous()

    def _generator(self, step: int) -> torch.Generator:
        """Of draws that all ranks and devices share."""
        return torch.Generator().manual_seed(step)

    def _perceptual(self, frames: Tensor, recon: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.perceptual is None:
            return recon.new_zeros(()), {}
        distance = self.perceptual(recon, frames)
        return self.config.perceptual * distance, {"perceptual": distance}

    def _adversarial(
        self, clips: tuple[Tensor, Tensor], frames: tuple[Tensor, Tensor], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Terms of the discriminators in use, for the network and for themselves; pairs are (real, reconstructed)."""
        config = self.config
        metrics: dict[str, Tensor] = {}
        network = discriminators = clips[0].new_zeros(())
        for name, net in self.discriminators.items():
            if step < config.gan_start or (name == "clip" and clips[0].shape[2] == 1):
                continue
            assert isinstance(net, PatchDiscriminator)
            terms = gan_terms(net, *(clips if name == "clip" else frames))
            weight = config.gan_clip if name == "clip" else config.gan_frame
            network = network + weight * terms.adversarial + config.feature_matching * terms.matching
            discriminators = discriminators + weight * terms.hinge
            metrics |= {
                f"adversarial_{name}": terms.adversarial,
                f"matching_{name}": terms.matching,
                f"discriminator_{name}": terms.hinge,
            }
        if metrics:  # then all ranks are here
            kept = mean_over_ranks(discriminators.detach()) >= config.gan_threshold
            discriminators = discriminators * kept
        return network + discriminators, metrics

    def pixel_weights(self, x_BCTHW: Tensor) -> Tensor:
        """Weight of every pixel, [B, 1, T, H, W]."""
        config = self.config
        weights = torch.ones_like(x_BCTHW[:, :1])
        if config.foreground:
            background = x_BCTHW[:, :, 0].flatten(2).median(-1).values[..., None, None, None]
            differs = (x_BCTHW - background).abs().amax(1, keepdim=True) > DIFFERS
            weights = weights + config.foreground * differs
        if config.motion:
            changed = (x_BCTHW[:, :, 1:] - x_BCTHW[:, :, :-1]).abs().amax(1, keepdim=True) > DIFFERS
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
        rows = kmeans_plus_plus(self.pool[len(self.pool) - int(self.pooled) :], len(book.N), seed=0)
        book.embeddings.copy_(rows)
        book.z_avg.copy_(rows)
        book.N.fill_(1.0)
        if several_ranks():
            # Equal pools give equal rows on equal machines only; ranks must not drift apart on others.
            dist.broadcast(book.embeddings, 0)
            dist.broadcast(book.z_avg, 0)
        self.seeded.fill_(True)

    @torch.no_grad()
    def _restart_dead_codes(self, z: Tensor, step: int) -> Tensor:
        """Put random vectors of all ranks in place of rarely used codes; returns how many."""
        book = self.net.codebook
        vectors = gather(z.float().reshape(-1, z.shape[-1]))
        picks = torch.randint(len(vectors), (len(book.N),), generator=self._generator(step))
        dead, rows = book.N < 1, vectors[picks.to(z.device)]
        book.embeddings.copy_(torch.where(dead[:, None], rows, book.embeddings))
        book.z_avg.copy_(torch.where(dead[:, None], rows, book.z_avg))
        book.N.masked_fill_(dead, 1.0)
        return dead.sum().float()

    @torch.no_grad()
    def _move_codebook(self, z: Tensor, ids: Tensor) -> None:
        book, decay = self.net.codebook, self.config.decay
        sums = torch.zeros(len(book.N), z.shape[-1] + 1, device=z.device)  # last column: counts
        vectors = z.float().reshape(-1, z.shape[-1])
        sums.index_add_(0, ids.flatten(), torch.cat([vectors, torch.ones_like(vectors[:, :1])], dim=1))
        sum_over_ranks(sums)
        book.N.lerp_(sums[:, -1], 1 - decay)
        book.z_avg.lerp_(sums[:, :-1], 1 - decay)
        total = book.N.sum()
        smoothed = (book.N + LAPLACE) / (total + len(book.N) * LAPLACE) * total
        book.embeddings.copy_(book.z_avg / smoothed[:, None])
        book.codebook_usage.lerp_((sums[:, -1] > 0).float(), 1 - decay)

    @torch.no_grad()
    def codebook_metrics(self) -> dict[str, Tensor]:
        """Codebook use in the last steps: the number of codes that would tell as much if all were used equally often
        (perplexity),
        and the share of codes that were used at all."""
        book = self.net.codebook
        share = book.N / book.N.sum()
        perplexity = (-(share * share.clamp_min(1e-12).log()).sum()).exp()
        return {"perplexity": perplexity, "usage": (book.codebook_usage > 0.01).float().mean()}


def to_floats(clips_BTHWC: Tensor) -> Tensor:
    """uint8 clips [B, T, H, W, 3] to the network's pixels [B, 3, T, H, W] in [-0.5, 0.5]."""
    planes = clips_BTHWC.permute(0, 4, 1, 2, 3)
    # Contiguous planes: elementwise work on mixed layouts costs several times as much.
    return planes.to(torch.float32, memory_format=torch.contiguous_format).div_(255).sub_(0.5)


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


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a scalar, on every rank."""
    return sum_over_ranks(value.clone()) / dist.get_world_size() if several_ranks() else value


def gather(rows_ND: Tensor) -> Tensor:
    """The rows of all ranks, in rank order, on every rank (equal counts)."""
    if not several_ranks():
        return rows_ND
    parts = [torch.empty_like(rows_ND) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows_ND.contiguous())
    return torch.cat(parts)
