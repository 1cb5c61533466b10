"""Each planted fault moves its own score and no other; what codec, pixels and tokens say of redundancy."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_sets import Frames, changed, fading, frozen, looping, noisy, shapes, shuffled
from scipy.ndimage import gaussian_filter
from scripts import evaluate

from megavrc.errors import UserError
from megavrc.evaluation.clip_files import ArrayClips, open_clips
from megavrc.evaluation.clip_source import PlannedClip
from megavrc.evaluation.drift import SHARES, clip_drift, measure_drift
from megavrc.evaluation.redundancy import GAP, ORANGE, measure_redundancy, outlined, unchanged_blocks
from megavrc.results import read_result
from megavrc.video import write_mp4
from megavrc.video.h264 import coded_frames, payload

CLIPS = shapes(12)


def blurring(frames: Frames) -> Frames:
    """A fine texture that grows soft, its contrast kept."""
    rng = np.random.default_rng(0)
    texture = rng.normal(0, 30, frames.shape[1:3])
    made = []
    for number, frame in enumerate(frames):
        soft = gaussian_filter(texture, number / 6)
        made.append((frame * 0.5 + 60 + (soft * 30 / soft.std())[..., None]).clip(0, 255))
    return np.array(made).astype(np.uint8)


FAULTS: dict[str, tuple[Callable[[Frames], Frames], str | None]] = {  # -> the score that it moves
    "frozen": (frozen, "frozen"),
    "freezing half way": (lambda frames: frames[np.minimum(np.arange(17), 7)], "frozen"),
    "looping": (looping, "looping"),
    "fading": (fading, "fading"),
    "blurring": (blurring, "blurring"),
    "none": (lambda frames: frames, None),
    "shuffled": (shuffled, None),
    "noisy": (noisy, None),
    "backwards": (lambda frames: frames[::-1], None),
    "wrong colours": (lambda frames: frames[..., ::-1], None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_moves_its_score_only(fault: str) -> None:
    change, moved = FAULTS[fault]
    report = measure_drift(changed(CLIPS, change), CLIPS, draws=50)
    found = {name: report.cases[0]["metrics"][name]["value"] for name in SHARES}
    assert found == {name: float(name == moved) for name in SHARES}
    assert all(report.cases[1]["metrics"][name]["value"] == 0 for name in SHARES)
    if moved:
        assert report.metrics[f"{moved}: measured - real"]["low"] > 0.5


def test_compression_does_not_hide_a_frozen_clip(tmp_path: Path) -> None:
    for clip, frames in zip(CLIPS.clips, CLIPS.arrays, strict=True):
        write_mp4(tmp_path / f"{clip.key}.mp4", frozen(frames), crf=23)
    report = measure_drift(open_clips(tmp_path), draws=50)
    assert report.cases[0]["metrics"]["frozen"]["value"] == 1


def test_curves_say_when() -> None:
    found = measure_drift(changed(CLIPS, fading), draws=50).cases[0]["metrics"]
    contrast = [found[f"contrast/{t}"]["value"] for t in range(17)]
    assert contrast[0] == 1 and contrast[-1] == pytest.approx(0.3, abs=0.1)
    assert all(a > b for a, b in zip(contrast, contrast[1:], strict=False))
    stopped = measure_drift(changed(CLIPS, lambda f: f[np.minimum(np.arange(17), 7)]), draws=50).cases[0][
        "metrics"
    ]
    motion = [stopped[f"motion/{t}"]["value"] for t in range(1, 17)]
    assert min(motion[:7]) > 0.01 and max(motion[7:]) == 0
    short = ArrayClips("uneven", CLIPS.clips, [CLIPS.arrays[0][:9], *CLIPS.arrays[1:]])
    report = measure_drift(short, CLIPS, draws=50)
    uneven = "uneven: 9 to 17 frames; curves end with the shortest"
    assert report.lines == [uneven, "9 to 17 frames measured, 17 real: their shares do not compare"]
    assert "motion/8" in report.cases[0]["metrics"] and "motion/9" not in report.cases[0]["metrics"]
    with pytest.raises(ValueError, match="at least 5"):
        clip_drift(CLIPS.arrays[0][:4])
    with pytest.raises(UserError, match="clip 0000: 3 frames"):
        measure_drift(changed(CLIPS, lambda frames: frames[:3]))


# --- redundancy ------------------------------------------------------------------------------------------------


def scene(count: int = 5, side: int = 128) -> Frames:
    """A disc that moves over a still texture."""
    rng = np.random.default_rng(0)
    ground = gaussian_filter(rng.normal(0, 60, (side, side, 3)), (1.5, 1.5, 0)) * 3 + 128
    y, x = np.mgrid[:side, :side]
    frames = []
    for t in range(count):
        frame = ground.copy()
        frame[(x - 40 - 4 * t) ** 2 + (y - 60) ** 2 < 300] = (230, 40, 40)
        frames.append(frame.clip(0, 255).astype(np.uint8))
    return np.array(frames)


def test_groups_of_pictures() -> None:
    frames = scene()
    plain, paper = coded_frames(frames), coded_frames(frames, "paper")
    assert [frame.kind for frame in plain] == list("IPPPP")
    assert [frame.kind for frame in paper] != list("IPPPP") and "B" in {frame.kind for frame in paper}
    assert all(frame.payload <= frame.packet for frame in plain + paper)
    assert plain[0].packet - plain[0].payload > 500  # headers and the encoder's name
    assert plain[1].packet - plain[1].payload <= 5  # the start code
    assert max(frame.payload for frame in plain[1:]) < 0.3 * plain[0].payload
    assert coded_frames(frames) == plain
    assert [frame.kind for frame in coded_frames(scene(7, side=33))] == list("IPPPPPP")


def test_a_cut_begins_no_group_of_its_own() -> None:
    """As `-sc_threshold 0` says: the frame behind it is a P frame, however little it has of the one before."""
    rng = np.random.default_rng(1)
    cut = np.concatenate([scene(2), rng.integers(0, 256, (3, 128, 128, 3), np.uint8)])
    assert [frame.kind for frame in coded_frames(cut)] == list("IPPPP")
    assert [frame.kind for frame in coded_frames(cut, "paper")].count("I") == 1


def test_noise_has_no_redundancy_and_a_still_clip_nothing_else() -> None:
    rng = np.random.default_rng(1)
    noise = coded_frames(rng.integers(0, 256, (5, 64, 64, 3), np.uint8))
    still = coded_frames(np.repeat(scene(1), 5, axis=0))
    assert min(frame.payload for frame in noise[1:]) > 0.8 * noise[0].payload
    assert max(frame.payload for frame in still[1:]) < 0.02 * still[0].payload


def test_payload_counts_slices_only() -> None:
    units = b"\0\0\0\1\x67spspps" + b"\0\0\1\x06name" + b"\0\0\1\x65picture"
    assert payload(units) == len(b"\x65picture")
    assert payload(b"\0\0\0\1\x41" + b"p" * 20) == 21 and payload(b"") == 0


def test_unchanged_blocks() -> None:
    frames = np.zeros((3, 40, 33, 3), np.uint8)
    frames[1, 17, 3] = 9  # the block in the second row, first column
    frames[2] = frames[1]
    frames[2, 0, 16, 1] = 2  # within what a codec does
    assert unchanged_blocks(frames).tolist() == [[[True, True], [False, True]], [[True, True], [True, True]]]


def test_what_stays_is_outlined() -> None:
    """16 blocks: the left half stays, one line runs around it and none through it."""
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    frames[1, :, 32:] = 100
    strip = outlined(frames)
    assert strip.shape == (64, 2 * 64 + GAP, 3)
    orange = (strip == ORANGE).all(axis=-1)
    assert not orange[:, : 64 + GAP].any() and not orange[:, 64 + GAP + 32 :].any()
    half = orange[:, 64 + GAP : 64 + GAP + 32]
    assert half[:2].all() and half[:, -2:].all() and not half[2:-2, 2:-2].any()


def test_a_report_of_redundancy() -> None:
    clips = [scene(9), np.roll(scene(9), 9, axis=2)]
    source = ArrayClips("scenes", [PlannedClip("a"), PlannedClip("b")], clips)

    def encode(frames: Frames) -> np.ndarray:  # a tokenizer of 8x8 pixels whose ids are their mean colours
        return frames[::4, ::8, ::8].astype(np.int64).sum(axis=-1)

    report = measure_redundancy(source, frames=9, encode=encode, draws=50)
    rows = {row["name"]: row["metrics"] for row in report.cases}
    assert (
        rows["H.264 ippp"]["later_over_first"]["value"] < 0.3
        and rows["H.264 ippp"]["payload/0"]["unit"] == "bytes"
    )
    assert 0.8 < rows["blocks of pixels"]["unchanged"]["value"] < 1
    assert 0.9 < rows["tokens of latent frames"]["equal_to_the_one_before/1"]["value"] < 1
    broken = changed(source, noisy)
    ratio = measure_redundancy(broken, frames=9, draws=50).cases
    assert (
        ratio[0]["metrics"]["later_over_first"]["low"] > 0.5
        and ratio[2]["metrics"]["unchanged"]["value"] == 0
    )
    with pytest.raises(UserError, match="clip a has 9 frames, 17 are needed"):
        measure_redundancy(source, frames=5, stride=4)
    wide = ArrayClips("wide", source.clips, [np.concatenate([clip, clip], axis=2) for clip in clips])
    sides: list[tuple[int, ...]] = []

    def watched(frames: Frames) -> np.ndarray:
        sides.append(frames.shape[1:3])
        return encode(frames)

    measure_redundancy(wide, frames=9, encode=watched, draws=50, size=32)
    assert sides == [(32, 32)] * 2


def test_redundancy_holds_one_clip_at_a_time() -> None:
    given: list[weakref.ref[Frames]] = []
    alive = []

    class Watched(ArrayClips):
        def read(self, *args: Any, **options: Any) -> Frames:
            alive.append(sum(clip() is not None for clip in given))
            frames = super().read(*args, **options)
            given.append(weakref.ref(frames))
            return frames

    keys = [PlannedClip(key) for key in "abcd"]
    measure_redundancy(Watched("a", keys, [scene(5)] * 4), encode=lambda clip: clip[..., 0].astype(np.int64))
    assert len(alive) == 4 and not any(alive), "each is let go before the next one is read"


def test_clips_of_one_video_are_drawn_together() -> None:
    """Three videos of two clips each, alike: the interval is that of three clips."""
    videos = [np.roll(scene(5), shift, axis=2) for shift in (0, 9, 40)]
    reports = [
        measure_redundancy(ArrayClips("a", [PlannedClip(key) for key in keys], clips), draws=200)
        for keys, clips in (
            (["a", "b", "c"], videos),
            (["a#0", "a#1", "b#0", "b#1", "c#0", "c#1"], [clip for clip in videos for _ in range(2)]),
        )
    ]
    one, two = (report.cases[0]["metrics"]["later_over_first"] for report in reports)
    assert (two["low"], two["high"]) == pytest.approx((one["low"], one["high"])) and one["low"] < one["high"]
    assert (one["n"], two["n"]) == (3, 6)


# --- commands --------------------------------------------------------------------------------------------------


def test_clips_that_fade_in_from_black_say_nothing_of_contrast_beside_the_first_frame() -> None:
    black = changed(CLIPS, lambda frames: np.concatenate([0 * frames[:1], frames[1:]]), "black")
    half = ArrayClips("half", CLIPS.clips, [*black.arrays[:6], *CLIPS.arrays[6:]])
    other = ArrayClips("other", CLIPS.clips[6:], CLIPS.arrays[6:])
    some, alone = (measure_drift(source).cases[0]["metrics"] for source in (half, other))
    for name in ("contrast/8", "sharpness/8"):
        assert some[name] == alone[name] and some[name]["n"] == 6
    assert some["motion/8"]["n"] == 12
    assert not {"contrast/8", "sharpness/8"} & {*measure_drift(black).cases[0]["metrics"]}


def test_commands_on_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = tmp_path / "clips.npz"
    np.savez(clips, clips=np.stack(CLIPS.arrays))
    assert evaluate("drift", clips, clips, "--json", tmp_path / "d.json") == 0
    assert read_result(tmp_path / "d.json")["cases"][0]["metrics"]["frozen"]["n"] == 12
    drawn = ("--picture", tmp_path / "r.png")
    assert evaluate("redundancy", clips, "--json", tmp_path / "r.json", *drawn) == 0
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert len(read_result(tmp_path / "r.json")["cases"]) == 3
    capsys.readouterr()
    for words, said in (
        (("drift", tmp_path / "none"), "no clips here"),
        (("drift", clips, "--draws", 1), "--draws"),
        (("redundancy", clips, "--frames", 18), "0000 has 17 frames"),
        (("redundancy", clips, "--crf", 60), "--crf"),
        (("redundancy", clips, "--tokenizer", tmp_path / "none"), "no video tokenizer"),
        (("redundancy",), "required: clips"),
    ):
        assert evaluate(*words) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and said in lines[0]
