"""The number of tokens that a latent frame needs: rate against distortion of token grids, without training a generator.

The first latent frame is given, as in VRC; the tokens of the later ones are reduced by methods of
`megavrc.reduction` or compressed in blocks, and rebuilt. Distortion is that of token embeddings, and how many ids are
found again as the nearest embedding. What a decoder would have to be told besides the tokens is counted too: which
places they take.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from megavrc.evaluation.statistics import MetricReport, as_metric, clustered_share, mean_estimate
from megavrc.progress import progress
from megavrc.reduction import METHODS, Reduction, Tokens, reduce_tokens, token_count
from megavrc.reduction.score import euclidean
from megavrc.results import case, metric

CONTENT_FREE = ("bilinear", "copy", "pool", "random", "strided")  # places that both sides know beforehand
Compress = Callable[[Tensor], Tensor]  # embeddings of frames [B, g, g, D] to cells [B, m, m, d]
Row = tuple[float, float, float]  # of a clip: error, share found again, bits a token for places
PROTOCOL = {
    "given": "the first latent frame; all numbers are of the later ones",
    "error": "squared, of token embeddings, relative to their variance in the clip",
    "found_again": "ids that are the nearest embedding of what is rebuilt",
    "place_bits": "a token: which tokens stay and, where that depends on content, into which the others go",
    "blocks": "compressed cells, and the least-squares linear map back, fitted on other clips",
    "interval": "95%, bootstrap of prompts or videos; of shares that are equal in all of them, as wide as Wilson's",
}


def usable_methods() -> list[str]:
    """Methods that need no more than a grid of embeddings."""
    known = {"grid", "keys"}
    return sorted(
        name for name, method in METHODS.items() if not method.calibrated and known >= set(method.needs)
    )


def rebuild(name: str, x_THWD: Tensor, keep: float) -> tuple[Tensor, float]:
    """([F, H, W, D], bits): later frames of a clip from `keep` of their tokens, and bits a token for their places.

    A temporal method sees the first frame too, which it keeps whole. A token that is dropped is rebuilt from the frame
    before it (temporal methods), from the nearest place (strided), or from the most similar token that stays.
    """
    frames, height, width, _ = x_THWD.shape
    area = height * width
    later = (frames - 1) * area
    count, method = token_count(keep, later), METHODS[name]
    whole = method.kind == "temporal"
    x_ND = (x_THWD if whole else x_THWD[1:]).flatten(0, 2)
    tokens = Tokens(x_ND, (frames if whole else frames - 1, height, width), keys=x_ND)
    left = reduce_tokens(tokens, name, count + area if whole else count)
    rebuilt = left.features.float()[stand_ins(left, tokens, name)]
    return rebuilt[-later:].unflatten(0, (frames - 1, height, width)), place_bits(name, count, later)


def stand_ins(left: Reduction, tokens: Tokens, name: str) -> Tensor:
    """[N]: which of the tokens that are left each token is rebuilt from."""
    frames, height, width = tokens.shape
    found, dropped = left.assign.clone(), left.assign < 0
    if METHODS[name].kind == "temporal":
        by_frame = found.view(frames, height * width)
        for t in range(1, frames):
            by_frame[t] = torch.where(by_frame[t] < 0, by_frame[t - 1], by_frame[t])
    elif name == "strided":
        cell = torch.arange(len(tokens), device=found.device)
        place = torch.stack(
            [cell // (height * width) * (height + width), cell // width % height, cell % width], 1
        )
        apart = torch.cdist(place.float(), place[left.index].float(), p=1)
        found[dropped] = apart.argmin(1)[dropped]
    else:
        apart = euclidean(tokens.features, left.features)
        found[dropped] = apart.argmin(1)[dropped]
    return found


def place_bits(name: str, count: int, total: int) -> float:
    """Bits a token: which tokens stay and, where the rest is merged or rebuilt by content, into which it goes."""
    if name in CONTENT_FREE and name != "random":
        return 0.0
    which = 0.0 if name == "random" else _log2_choose(total, count)
    into = 0.0 if METHODS[name].kind == "temporal" else (total - count) * math.log2(max(1, count))
    return (which + into) / total


def _log2_choose(total: int, count: int) -> float:
    return (math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)) / math.log(2)


class BlockDecoder:
    """The linear map, least squares on some clips, from a compressed cell to the embeddings of its block."""

    def __init__(self, compress: Compress, frames_BHWD: Tensor) -> None:
        self.compress = compress
        cells = compress(frames_BHWD)
        self.side = frames_BHWD.shape[1] // cells.shape[1]
        z, y = self._rows(cells), _blocks(frames_BHWD, self.side)
        gram = z.T @ z
        ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=z.dtype, device=z.device)
        self.matrix = torch.linalg.solve(gram + ridge, z.T @ y)

    @staticmethod
    def _rows(cells_Bmmd: Tensor) -> Tensor:
        return F.pad(cells_Bmmd.flatten(0, 2).double(), (0, 1), value=1.0)

    def rebuild(self, frames_BHWD: Tensor) -> Tensor:
        """[B, H, W, D]: frames after compression and the linear map back."""
        blocks = self._rows(self.compress(frames_BHWD)) @ self.matrix
        batch, grid, _, width = frames_BHWD.shape
        cells = grid // self.side
        split = blocks.view(batch, cells, cells, self.side, self.side, width)
        return split.transpose(2, 3).reshape(batch, grid, grid, width).float()


def _blocks(x_BHWD: Tensor, side: int) -> Tensor:
    """[B m m, side side D] fp64: the embeddings of every block as one row."""
    batch, grid, _, width = x_BHWD.shape
    split = x_BHWD.view(batch, grid // side, side, grid // side, side, width).transpose(2, 3)
    return split.reshape(-1, side * side * width).double()


def best_linear(frames_BHWD: Tensor, side: int) -> Compress:
    """The linear compressor of blocks to the width of one token that loses least (their principal components)."""
    blocks = _blocks(frames_BHWD, side)
    centre = blocks.mean(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        width = min(frames_BHWD.shape[-1], *blocks.shape)
        searched = min(2 * width, *blocks.shape)  # randomised: more than wanted make the first ones exact
        matrix = torch.svd_lowrank(blocks - centre, searched, niter=8)[2][:, :width]

    def compress(x_BHWD: Tensor) -> Tensor:
        cells = x_BHWD.shape[1] // side
        return ((_blocks(x_BHWD, side) - centre) @ matrix).view(len(x_BHWD), cells, cells, -1).float()

    return compress


def distortion(x: Tensor, rebuilt: Tensor, ids: Tensor, embedding_VD: Tensor) -> tuple[float, float]:
    """(relative squared error, share of ids found again as the nearest embedding): [.., D], [.., D], [..], [V, D]."""
    x_ND, rebuilt_ND = x.flatten(0, -2), rebuilt.flatten(0, -2)
    error = (x_ND - rebuilt_ND).square().sum() / (x_ND - x_ND.mean(0)).square().sum().clamp(min=1e-12)
    nearest = euclidean(rebuilt_ND, embedding_VD).argmin(1)
    return float(error), float((nearest == ids.flatten()).float().mean())


def measure_token_redundancy(
    fit_CTHW: Tensor,
    ids_CTHW: Tensor,
    embedding_VD: Tensor,
    compressors: Sequence[tuple[str, int, Compress]],
    keep: Sequence[float] = (0.5, 0.25, 1 / 16),
    draws: int = 1000,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> MetricReport:
    """Rate against distortion of the later latent frames of clips.

    Args:
        fit_CTHW: ids of other clips, on which linear maps are fitted.
        ids_CTHW: ids of the clips measured, T >= 2.
        embedding_VD: of the ids.
        compressors: of blocks: name, rate by area, from frames to cells.
        keep: shares of the later tokens, for methods.
        draws, seed: of the bootstrap.
        groups: the video or prompt of each clip measured, which are drawn as wholes (default: each clip is one).
    """
    cases, lines, embedding = [], [], embedding_VD.float()
    drawn = groups or [str(index) for index in range(len(ids_CTHW))]

    def row(name: str, share: float, curve: list[Row], kind: str) -> None:
        error, again, bits = zip(*curve, strict=True)
        metrics = {
            "keep": metric(share, "share"),
            "error": as_metric(mean_estimate(error, draws, seed, drawn), len(curve), "share"),
            "found_again": clustered_share(again, drawn, draws, seed),
            "place_bits": metric(sum(bits) / len(curve), "bits", len(curve)),
        }
        cases.append(case(f"{name} {share:.4g}", metrics, method=name, kind=kind))

    for name in progress(usable_methods(), "methods"):
        for share in keep:
            try:
                row(name, share, [_method_row(name, ids, embedding, share) for ids in ids_CTHW], "method")
            except ValueError as error:
                lines.append(f"{name} at {share:.4g} is left out: {error}")
    frames = embedding[fit_CTHW[:, 1:]].flatten(0, 1)
    for name, rate, compress in compressors:
        decoder = BlockDecoder(compress, frames)
        row(name, 1 / rate, [_block_row(decoder, ids, embedding) for ids in ids_CTHW], "blocks")
    equal = (ids_CTHW[:, 1:] == ids_CTHW[:, :-1]).flatten(1).double().mean(1).cpu().numpy()
    repeated = clustered_share(equal, drawn, draws, seed)
    protocol = PROTOCOL | {
        "clips": len(ids_CTHW),
        "fitted_on": len(fit_CTHW),
        "latent_frames": ids_CTHW.shape[1],
    }
    return MetricReport(cases, {"equal_to_the_one_before": repeated}, protocol, lines)


def _method_row(name: str, ids_THW: Tensor, embedding_VD: Tensor, keep: float) -> Row:
    x_THWD = embedding_VD[ids_THW]
    rebuilt, bits = rebuild(name, x_THWD, keep)
    return *distortion(x_THWD[1:], rebuilt, ids_THW[1:], embedding_VD), bits


def _block_row(decoder: BlockDecoder, ids_THW: Tensor, embedding_VD: Tensor) -> Row:
    x_FHWD = embedding_VD[ids_THW[1:]]
    return *distortion(x_FHWD, decoder.rebuild(x_FHWD), ids_THW[1:], embedding_VD), 0.0
