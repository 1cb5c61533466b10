"""The layout against a brute-force reading of Eq. 6, and the positions of compressed cells."""

import pytest
import torch

from megavrc.model import CompressionConfig, ConditionConfig, ModelConfig
from megavrc.model.layout import make_layout

TEXT = ConditionConfig(vocab=40, slots=3)


def config(**changes) -> ModelConfig:
    return ModelConfig(**{"condition": TEXT, "grid": 4, "frames": 2, **changes})


def equation_6(length: int, segments: list[range]) -> torch.Tensor:
    """A[i, j] = 1 if j <= i or (i, j) in the same segment, written out."""
    segment_of = {row: number for number, segment in enumerate(segments) for row in segment}
    allowed = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        for j in range(length):
            allowed[i, j] = j <= i or (i in segment_of and segment_of[i] == segment_of.get(j))
    return allowed


CASES = {
    "paper": ({}, 3 + 16 + 8, [range(19, 23), range(23, 27)]),
    "rate 16": ({"compression": CompressionConfig(16)}, 3 + 16 + 2, [range(19, 20), range(20, 21)]),
    "causal segments": ({"segment_attention": "causal"}, 27, []),
    "bidirectional text": (
        {"condition": ConditionConfig(vocab=40, slots=3, attention="bidirectional")},
        27,
        [range(0, 3), range(19, 23), range(23, 27)],
    ),
    "row": (
        {"first_frame": "row"},
        3 + 4 + 16 + 8,
        [*(range(start, start + 4) for start in range(3, 23, 4)), range(23, 27), range(27, 31)],
    ),
    "token": ({"prediction": "token"}, 3 + 3 * 16 - 1, []),
    "image": ({"frames": 0}, 3 + 16 - 1, []),
    "row image": (
        {"frames": 0, "first_frame": "row"},
        3 + 4 + 12,
        [range(s, s + 4) for s in range(3, 19, 4)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_mask_is_equation_6(name):
    changes, length, segments = CASES[name]
    layout = make_layout(config(**changes))
    assert layout.length == length
    assert torch.equal(layout.mask().dense(), equation_6(length, segments))


def test_two_sequences_without_the_first_frame():
    first = make_layout(config(keep_first_frame=False), "first")
    later = make_layout(config(keep_first_frame=False), "later")
    assert (first.length, later.length) == (3 + 15, 3 + 8)
    assert torch.equal(later.mask().dense(), equation_6(11, [range(3, 7), range(7, 11)]))


def test_compressed_cells_sit_at_the_centre_of_their_block():
    layout = make_layout(config())
    raw, segments = layout.positions_S3[3:19], layout.positions_S3[19:]
    assert raw[5].tolist() == [0, 1, 1]
    assert segments[0].tolist() == [0, 0.5, 0.5]
    assert segments[3].tolist() == [0, 2.5, 2.5]
    assert segments[4].tolist() == [1, 0.5, 0.5]


def test_stage_1_uses_the_rows_of_stage_2():
    image, video = make_layout(config(frames=0)), make_layout(config())
    assert torch.equal(image.positions_S3, video.positions_S3[: image.length])
    assert torch.equal(image.ends_S, video.ends_S[: image.length])


def test_part_masks_are_rows_of_the_whole():
    layout = make_layout(config())
    dense = layout.mask().dense()
    for start, stop in ((0, 3), (3, 4), (18, 23), (23, 27)):
        assert torch.equal(layout.mask(start, stop).dense(), dense[start:stop, :stop])
