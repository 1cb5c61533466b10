"""Distances of clips that are stored in several sizes."""

from dataclasses import replace
from pathlib import Path

import pytest
from clip_sets import save_network, shapes

from megavrc.errors import UserError
from megavrc.evaluation.clip_files import ArrayClips
from megavrc.evaluation.distances import measure_distances
from megavrc.evaluation.features import load_detector
from megavrc.evaluation.protocols import protocol_of
from megavrc.user_files import UserFile


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_clips_of_several_sizes_are_refused(batch: int, tmp_path: Path) -> None:
    """Whatever the batch, in one set, and of one against another; also where their features are stored."""
    detector = load_detector(UserFile(save_network(tmp_path / "tiny.pt")))
    small = shapes(8, name="small")
    large = replace(small, name="large", arrays=[x.repeat(2, 1).repeat(2, 2) for x in small.arrays])
    both = ArrayClips("both", shapes(16).clips, [*small.arrays, *large.arrays])

    def measure(real: ArrayClips, clips: ArrayClips, change: str = "place=start") -> None:
        protocol = protocol_of("custom", changes=["select=first", "n=8", change])
        measure_distances("kvd", real, clips, None, detector, protocol, True, 20, 0, tmp_path / "f", batch)

    measure(small, small)
    measure(large, large)
    measure(small, both, "size=32")
    for real, clips, said in (
        (small, both, "both: 0008 is 64x64, clips before it 32x32"),
        (small, large, "large: clips of 64x64, those of small are 32x32"),
        (both, small, "both: clips of 64x64, those of both are 32x32"),
    ):
        with pytest.raises(UserError, match=f"{said}; --change size=N resizes both sides"):
            measure(real, clips)
