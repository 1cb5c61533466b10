"""PatchGAN discriminators of frames and clips, and both sides of their hinge game.

Sources: Isola et al. 2017 (PatchGAN), Lim and Ye 2017 (hinge), Wang et al. 2018 (feature matching).
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from megavrc.model.compressor import BatchNorm


class _Norm(BatchNorm):
    """Batch norm over the joint batch of all ranks, for [B, D, H, W] and [B, D, T, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(2, -2)).reshape(x.shape)


class PatchDiscriminator(nn.Module):
    """A logit for every patch: kernel 4, three strided convolutions and one more, then the logit's.

    Args:
        dims: 2 for frames [B, 3, H, W], 3 for clips [B, 3, T, H, W].
        width: channels of the first layer; the next have 2, 4 and 8 times as many.
    """

    def __init__(self, dims: int, width: int = 64) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        widths = [3, width, 2 * width, 4 * width, 8 * width]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                conv(before, after, 4, stride=1 if after == widths[-1] else 2, padding=2),
                nn.Identity() if before == 3 else _Norm(after),
                nn.LeakyReLU(0.2),
            )
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.head = conv(widths[-1], 1, 4, padding=2)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits [B, 1, ..], and the features of every layer before."""
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return self.head(x), features


class GanTerms(NamedTuple):
    """Scalars. The first two train the generator alone, the last the discriminator alone."""

    adversarial: Tensor
    matching: Tensor
    hinge: Tensor


def gan_terms(net: PatchDiscriminator, real: Tensor, fake: Tensor) -> GanTerms:
    """Terms of one discriminator.

        adversarial = -mean D(fake)
        matching    = sum over layers of mean |features(fake) - features(real)|
        hinge       = (mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake))) / 2

    The generator's terms see copies of the discriminator's parameters that are not trained, and the hinge a
    reconstruction without its graph, so one backward of the sum gives each side its own gradients only. The
    generator's pass leaves the running statistics alone.
    """
    real_logits, real_features = net(real)
    fake_logits, _ = net(fake.detach())
    hinge = (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()) / 2
    frozen = {name: parameter.detach() for name, parameter in net.named_parameters()}
    frozen |= {name: buffer.clone() for name, buffer in net.named_buffers()}
    logits, features = functional_call(net, frozen, (fake,))
    pairs = zip(features, real_features, strict=True)
    matching = sum((F.l1_loss(ours, theirs.detach()) for ours, theirs in pairs), logits.new_zeros(()))
    return GanTerms(-logits.mean(), matching, hinge)
