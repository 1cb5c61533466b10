import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from megavrc.evaluation.quality import psnr
from megavrc.video import clip_grid, contact_sheet, read_clip, write_gif, write_mp4, write_png
from megavrc.video.scenes import SceneSettings, heldout_scenes, render_scene, scene
from megavrc.video.shapes import clip


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 47)])
def test_mp4_round_trip(tmp_path: Path, height: int, width: int) -> None:
    frames = clip(0, 0)[1][:, :height, :width]
    write_mp4(tmp_path / "a.mp4", frames, fps=8)
    back = read_clip(tmp_path / "a.mp4", 0, 17, size=None)
    assert back.shape == (17, height + height % 2, width + width % 2, 3)
    assert psnr(back[:, :height, :width], frames) > 30
    assert (
        abs(float(back[..., :4, :4, :].mean()) - float(frames[..., :4, :4, :].mean())) < 0.6
    )  # no darker, no lighter


def test_colour_is_where_it_was(tmp_path: Path) -> None:
    """Not half a pixel to the left, as 4:2:0 is read whose file does not say where its colour samples are."""
    frames = np.full((3, 64, 64, 3), 40, np.uint8)
    frames[:, 20:37, 30:47] = 230, 40, 40
    write_mp4(tmp_path / "a.mp4", frames, crf=4)
    chroma = np.ptp(read_clip(tmp_path / "a.mp4", 0, 3, size=None).astype(float), axis=-1).mean(axis=0)
    middle = [(chroma.sum(axis=axis) @ np.arange(64)) / chroma.sum() for axis in range(2)]
    assert middle == pytest.approx([38, 28], abs=0.1)


def test_mp4_plays_in_browsers(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", clip(0, 1)[1], fps=12.5, scale=4)
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.frames, stream.average_rate) == (256, 256, 17, 12.5)


def test_equal_frames_give_equal_files(tmp_path: Path) -> None:
    """A moving, textured clip of 4 x 4 macroblocks; what lies in memory beside it differs from call to call."""
    frames = render_scene(scene(3, 5, SceneSettings(told=0.25, heldout=heldout_scenes(3))))
    files, garbage = set(), []
    for number in range(16):
        garbage.append(np.random.default_rng(number).random(5000 * number))
        write_mp4(tmp_path / "clip.mp4", frames, crf=4)
        files.add((tmp_path / "clip.mp4").read_bytes())
    assert len(files) == 1


def test_gif_keeps_every_frame_and_its_colours(tmp_path: Path) -> None:
    frames = clip(0, 2)[1]
    frames = np.concatenate([frames[:1], frames[:1], frames])  # still at first
    write_gif(tmp_path / "a.gif", frames, fps=10, scale=2)
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.n_frames, image.size, image.info["loop"], image.info["duration"]) == (
            19,
            (128, 128),
            0,
            100,
        )
        for index, frame in enumerate(frames):
            image.seek(index)
            assert psnr(np.asarray(image.convert("RGB"))[::2, ::2], frame) > 40


def test_gif_of_many_colours(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], ramp[::-1, None]), axis=-1)
    write_gif(tmp_path / "a.gif", picture[None].repeat(3, axis=0))
    with Image.open(tmp_path / "a.gif") as image:
        assert psnr(np.asarray(image.convert("RGB")), picture) > 28


def test_wrong_frames_and_failed_writes_leave_nothing(tmp_path: Path) -> None:
    for wrong in (
        np.zeros((2, 8, 8), np.uint8),
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((0, 8, 8, 3), np.uint8),
    ):
        for write in (write_mp4, write_gif):
            with pytest.raises(ValueError, match="uint8"):
                write(tmp_path / "a", wrong)
    with pytest.raises(FileNotFoundError):
        write_png(tmp_path / "missing" / "a.png", np.zeros((8, 8, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_contact_sheet() -> None:
    frames = clip(0, 3)[1]
    sheet = contact_sheet(
        [("real", frames), ("generated with a long prompt " * 9, frames[:1])], columns=5, scale=2
    )
    assert sheet.dtype == np.uint8
    assert sheet.shape == (4 + 2 * (20 + 128 + 4), 4 + 5 * (128 + 4), 3)
    assert np.array_equal(sheet[24:152:2, 4:132:2], frames[0])  # below the label, first frame first
    assert np.array_equal(sheet[24:152:2, 532:660:2], frames[-1])  # last frame last
    assert (sheet[4:24] < 128).any()  # there is a label


def test_a_label_costs_no_more_than_its_picture_shows() -> None:
    frames = np.zeros((1, 16, 64, 3), np.uint8)
    before = time.process_time()
    long, longer = (contact_sheet([("wide " * count, frames)], 1) for count in (100, 400))
    assert (long == longer).all()
    assert time.process_time() - before < 1  # second; cut letter by letter it took more than ten
    narrow = contact_sheet([("a label", np.zeros((1, 4, 4, 3), np.uint8))], 1)
    assert (narrow[:20] == narrow[0, 0]).all()  # room for no letter


def test_clip_grid() -> None:
    clips = [(f"clip {i}", clip(0, i)[1]) for i in range(3)]
    grid = clip_grid(clips, columns=2, scale=1)
    assert grid.shape == (17, 4 + 2 * (20 + 64 + 4), 4 + 2 * (64 + 4), 3)
    assert np.array_equal(grid[:, 24:88, 72:136], clips[1][1])
    with pytest.raises(ValueError, match="one length"):
        clip_grid([clips[0], ("short", clips[1][1][:5])])


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    frames = clip(0, 0)[1]
    for write, name in ((write_mp4, "a.mp4"), (write_gif, "a.gif")):
        with pytest.raises(OSError, match="No such file") as error:
            write(tmp_path / "none" / name, frames)
        assert error.value.filename == str(tmp_path / "none" / name)
