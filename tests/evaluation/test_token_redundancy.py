"""Rate against distortion of token grids: planted redundancy is found by the methods that can, and priced."""

import math

import pytest
import torch
from torch import Tensor

from megavrc.evaluation.token_redundancy import (
    BlockDecoder,
    best_linear,
    distortion,
    measure_token_redundancy,
    place_bits,
    rebuild,
    usable_methods,
)

VOCAB, WIDTH = 64, 12
EMBEDDING = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1))


def ids(clips: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (clips, 5, 4, 4), generator=torch.Generator().manual_seed(seed))


def found_again(name: str, ids_THW: Tensor, keep: float) -> float:
    rebuilt, _ = rebuild(name, EMBEDDING[ids_THW], keep)
    return distortion(EMBEDDING[ids_THW[1:]], rebuilt, ids_THW[1:], EMBEDDING)[1]


def test_a_still_clip_is_free_for_what_looks_at_time() -> None:
    still = ids(1)[0, :1].repeat(5, 1, 1)
    for name in ("copy", "evs"):
        assert found_again(name, still, 1 / 64) == 1
    assert found_again("dycoke", still, 0.25) == 1
    for name in ("pool", "strided"):
        assert found_again(name, still, 0.25) < 0.6


def test_frames_of_blocks_are_free_for_what_looks_at_space() -> None:
    blocks = ids(1)[0, :, :2, :2].repeat_interleave(2, 1).repeat_interleave(2, 2)
    for name in ("pool", "bilinear", "strided"):
        assert found_again(name, blocks, 0.25) == 1
    assert found_again("evs", blocks, 0.25) < 0.6


def test_a_token_that_is_dropped_is_that_of_the_frame_before_or_beside() -> None:
    """Of five frames `copy` keeps 0, 1 and 3; `strided` repeats the first token of each block."""
    grid = ids(1)[0]
    rebuilt, bits = rebuild("copy", EMBEDDING[grid], 0.5)
    assert torch.equal(rebuilt, EMBEDDING[grid[[1, 1, 3, 3]]]) and bits == 0
    rebuilt, bits = rebuild("strided", EMBEDDING[grid], 0.25)
    first = grid[1:, ::2, ::2]
    assert torch.equal(rebuilt[:, ::2, ::2], EMBEDDING[first]) and bits == 0
    assert torch.equal(rebuilt[:, 3, 3], rebuilt[:, 2, 2]) and torch.equal(rebuilt[:, 0, 3], rebuilt[:, 0, 2])


def test_an_offset_of_all_embeddings_changes_nothing() -> None:
    grid, far = ids(1)[0], EMBEDDING + 3e4
    near, _ = rebuild("random", EMBEDDING[grid], 0.5)
    rebuilt, _ = rebuild("random", far[grid], 0.5)
    assert torch.allclose(rebuilt - 3e4, near, atol=0.01)
    assert distortion(far[grid], far[grid], grid, far)[1] == 1


def test_all_tokens_are_no_distortion() -> None:
    grid = ids(1)[0]
    for name in usable_methods():
        rebuilt, _ = rebuild(name, EMBEDDING[grid], 1.0)
        assert torch.equal(rebuilt, EMBEDDING[grid[1:]])


def test_places_that_depend_on_content_cost_bits() -> None:
    assert place_bits("pool", 16, 64) == 0
    assert place_bits("evs", 2, 4) == pytest.approx(math.log2(6) / 4)
    assert place_bits("random", 2, 4) == pytest.approx(2 * math.log2(2) / 4)
    assert place_bits("divprune", 2, 4) == pytest.approx((math.log2(6) + 2) / 4)


def test_linear_maps_of_blocks() -> None:
    """Nothing is lost where cells hold all; of linear compressors of one width none loses less than the best."""
    frames = EMBEDDING[ids(8)].flatten(0, 1)

    def everything(x_BHWD: Tensor) -> Tensor:
        split = x_BHWD.unflatten(2, (2, 2)).unflatten(1, (2, 2)).transpose(2, 3)
        return split.flatten(3)

    torch.testing.assert_close(BlockDecoder(everything, frames).rebuild(frames), frames, atol=1e-2, rtol=1e-2)

    def lost(compress: object) -> float:
        decoder = BlockDecoder(compress, frames)  # type: ignore[arg-type]
        return float((decoder.rebuild(frames) - frames).square().sum())

    pooled = lost(lambda x: x.unflatten(2, (2, 2)).unflatten(1, (2, 2)).mean((2, 4)))
    mixed = torch.randn(4 * WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
    best = lost(best_linear(frames, 2))
    assert best < pooled and best < lost(lambda x: everything(x) @ mixed)
    blocks = everything(frames).flatten(0, 2)
    energy = torch.linalg.svdvals(blocks - blocks.mean(0))[WIDTH:].square().sum()
    assert best == pytest.approx(float(energy), rel=1e-2)


def test_a_report() -> None:
    """A row for each method and budget, one for each compressor; DyCoke's least budget is a remark."""
    still = ids(3)[:, :1].repeat(1, 5, 1, 1)
    pool = ("pooled", 4, lambda x: x.unflatten(2, (2, 2)).unflatten(1, (2, 2)).mean((2, 4)))
    report = measure_token_redundancy(ids(8), still, EMBEDDING, [pool], [0.5, 0.125], draws=50)
    rows = {row["name"]: row["metrics"] for row in report.cases}
    assert len(rows) == 2 * len(usable_methods()) - 1 + 1
    assert report.lines == [
        "dycoke at 0.125 is left out: DyCoke keeps one frame of four whole: it leaves at least 32 tokens, not 24"
    ]
    assert rows["evs 0.125"]["error"]["value"] == 0 and rows["evs 0.125"]["found_again"]["n"] == 3
    assert rows["pooled 0.25"]["error"]["value"] > 0.2 and rows["pooled 0.25"]["place_bits"]["value"] == 0
    still, found = report.metrics["equal_to_the_one_before"], rows["evs 0.125"]["found_again"]
    assert still["value"] == found["value"] == 1
    assert still["low"] == found["low"] == pytest.approx(0.4385, abs=1e-4)  # of 3 clips: Wilson's


def test_clips_of_one_video_are_drawn_together() -> None:
    """Six copies of one clip and two of another are two videos to the interval: wider than of eight clips."""
    clips = ids(2)[[0, 0, 0, 0, 0, 0, 1, 1]]
    together, apart = (
        measure_token_redundancy(ids(8), clips, EMBEDDING, [], [0.5], draws=200, groups=groups)
        for groups in ([*"aaaaaabb"], None)
    )
    wide, narrow = (report.cases[0]["metrics"]["error"] for report in (together, apart))
    assert wide["value"] == narrow["value"]
    assert wide["high"] - wide["low"] > narrow["high"] - narrow["low"] > 0
