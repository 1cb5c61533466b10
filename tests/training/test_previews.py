"""A preview whose clips stand still or loop is said; one that moves is not."""

import logging

import numpy as np
import pytest

from megavrc.training.previews import warn_of_drift
from megavrc.video.shapes import COMBINATIONS, clip


def test_previews_that_stand_still_or_loop_warn(caplog: pytest.LogCaptureFixture) -> None:
    clips = [clip(0, index, COMBINATIONS, size=32)[1] for index in range(4)]
    with caplog.at_level(logging.WARNING, "megavrc"):
        warn_of_drift(7, clips, "preview")
        warn_of_drift(7, [*clips[:3], np.repeat(clips[3][:1], 17, axis=0)], "preview")
        warn_of_drift(7, [frames[:1] for frames in clips], "preview")
        assert caplog.messages == []
        warn_of_drift(
            7, [*clips[:2], *(np.repeat(frames[:1], 17, axis=0) for frames in clips[2:])], "preview"
        )
        warn_of_drift(8, [frames[np.arange(17) % 4] for frames in clips], "preview")
    assert caplog.messages == [
        "step 7: 2 of 4 clips of the preview stand still",
        "step 8: 4 of 4 clips of the preview loop",
    ]
