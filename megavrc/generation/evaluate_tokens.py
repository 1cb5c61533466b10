"""Redundancy of a model's token grids: what `megavrc evaluate redundancy --tokens` measures."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from megavrc.errors import UserError
from megavrc.evaluation.clip_source import ClipSource, frame_range, read_at
from megavrc.evaluation.statistics import MetricReport
from megavrc.evaluation.token_redundancy import Compress, best_linear, measure_token_redundancy
from megavrc.generation.folder import Folder
from megavrc.model.compressor import Compressor
from megavrc.model.config import CompressionConfig
from megavrc.progress import progress

RATES: dict[Literal[4, 16, 64], int] = {4: 2, 16: 4, 64: 8}  # of blocks, by area: their side
KINDS: tuple[Literal["avgpool", "strided"], ...] = ("avgpool", "strided")  # without weights


def token_grids(source: ClipSource, folder: Folder, frames: int, stride: int) -> Tensor:
    """[C, t, h, w]: ids of all clips, by the folder's video tokenizer."""
    patch = folder.video_tokenizer.config.temporal_patch
    if frames <= patch or (frames - 1) % patch:
        raise UserError(f"--frames: {frames}; token grids take 1 + {patch} k, such as {1 + 4 * patch}")
    wanted, ids = frame_range(frames, stride), []
    for index in progress(range(len(source.clips)), "tokens"):
        pixels = torch.from_numpy(np.ascontiguousarray(read_at(source, index, wanted, folder.pipeline.side)))
        try:
            ids.append(folder.video_tokenizer.encode(pixels[None])[0])
        except ValueError as error:
            raise UserError(f"clips that the video tokenizer does not take: {error}") from None
    return torch.stack(ids)


def report_tokens(
    folder: Folder, ids_CTHW: Tensor, groups: list[str], keep: list[float], draws: int, seed: int
) -> MetricReport:
    """Rate against distortion: methods, and compressors of blocks with linear maps.

    The maps are fitted on the clips of every second group, and the other clips are measured.

    Args:
        groups: the video or prompt of each clip, which the bootstrap draws as wholes.
    """
    order = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    fitted = torch.tensor([order[group] % 2 == 0 for group in groups], dtype=torch.bool)
    if len(order) < 2:
        raise UserError(
            "all clips are of one video or prompt: half of them fit linear maps, so that 2 are needed"
        )
    if len(ids_CTHW) < 4:
        raise UserError(f"{len(ids_CTHW)} clips: half of them fit linear maps, so that 4 are needed")
    if not keep or not all(0 < share <= 1 for share in keep):
        raise UserError("--keep: shares above 0 and at most 1")
    embedding, fit = folder.model.tokens.weight.float(), ids_CTHW[fitted]
    compressors, left_out = block_compressors(folder, embedding[fit[:, 1:]].flatten(0, 1))
    measured = [group for group in groups if order[group] % 2]
    report = measure_token_redundancy(
        fit, ids_CTHW[~fitted], embedding, compressors, keep, draws, seed, measured
    )
    report.lines.extend(left_out)
    return report


def block_compressors(
    folder: Folder, frames_BHWD: Tensor
) -> tuple[list[tuple[str, int, Compress]], list[str]]:
    """(name, rate, compressor) of the model's own, the drop-in ones without weights and the best linear one; remarks.

    Left out, with a remark, are rates with fewer than four cells for each input of the linear map.
    """
    config, (frames, grid, _, width) = folder.model.config, frames_BHWD.shape
    found: list[tuple[str, int, Compress]] = []
    if config.has_segments and config.prediction == "segment":
        name = f"the model's {config.compression.kind}"
        found.append((name, config.compression.rate, folder.model.compressor))
    lines = []
    for rate, side in RATES.items():
        if grid % side or side > grid:
            continue
        if frames * (grid // side) ** 2 < 4 * width:
            lines.append(f"blocks of {side} x {side} are left out: a map of width {width} takes more clips")
            continue
        found += [
            (f"blocks {kind}", rate, Compressor(CompressionConfig(rate, kind), width)) for kind in KINDS
        ]
        found.append(("blocks best linear", rate, best_linear(frames_BHWD, side)))
    return found, lines
