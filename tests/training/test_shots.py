"""Clips of the video tokenizer's training are those that the manifest names: shots too."""

import dataclasses
import json
import logging
import multiprocessing
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from golden import number_of, write

from megavrc.distributed import Rank
from megavrc.errors import UserError
from megavrc.files import read_json, sha256_json, write_json
from megavrc.tokenization.cut import cut
from megavrc.tokenization.sampling import ClipSettings
from megavrc.training.tasks.clips import TrainingClips
from megavrc.training.tasks.tokenizer_config import ClipDataConfig
from megavrc.video import VideoError, read_clip, write_png
from megavrc.video.manifest import write_manifest

CASES = Path(__file__).parents[3] / "shared" / "cases"
SHOTS = [{"start": 0.0, "end": 0.2}, {"start": 0.4, "end": 0.6}, {"end": 0.5}, {"start": 0.6}, {"start": 9.0}]
PLAIN = ClipDataConfig("", frames=5, size=64, crop="squash")


def source(folder: Path, entries: list[dict[str, Any]], alone: Rank, **options: Any) -> TrainingClips:
    (folder / "manifest.jsonl").unlink(missing_ok=True)
    write_manifest(folder / "manifest.jsonl", entries)
    config = dataclasses.replace(PLAIN, path=str(folder / "manifest.jsonl"), **options)
    return TrainingClips(config, folder / "cache", alone)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("name", ["video.mp4", "video.avi"])
def test_shots_are_cut_as_the_job_cuts_them(tmp_path: Path, alone: Rank, name: str, cache: bool) -> None:
    write(tmp_path / name)  # 20 frames, 25 a second
    entries = [{"id": str(number), "path": name, **shot} for number, shot in enumerate(SHOTS)]
    clips = source(tmp_path, entries, alone, cache=cache)
    found = [[number_of(frame) for frame in clips[index]["clip"]] for index in range(4)]
    assert found == [list(range(first, first + 5)) for first in (0, 10, 0, 15)]
    assert len(clips) == (4 if cache else 5)  # the last one is behind the end
    settings = ClipSettings(frames=5, size=64, crop="squash", images_per_video=0)
    for number in (0, 1, 3):  # exactly as long as a clip
        made = cut(settings, tmp_path / name, entries[number])
        assert np.array_equal(clips[number]["clip"], made.frames_NHWC[made.clips[0].rows])


def test_shots_of_a_folder_of_pictures(tmp_path: Path, alone: Rank) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(20):
        write_png(tmp_path / "pictures" / f"{number}.png", np.full((64, 64, 3), 10 * number, np.uint8))
    shot = {"path": "pictures", "start": 1.0, "fps": 10.0}
    assert source(tmp_path, [shot], alone)[0]["clip"][:, 0, 0, 0].tolist() == [100, 110, 120, 130, 140]


def test_times_that_jump_do_not_fill_the_memory(tmp_path: Path) -> None:
    for number in range(3):
        write_png(tmp_path / f"{number}.png", np.full((64, 64, 3), number, np.uint8))
    entry = {"id": "x", "path": ".", "fps": 1e-7}  # as a damaged index says it of a video, too
    with pytest.raises(VideoError, match="lasts 20000000 s by its times: too many frames at 25 fps"):
        cut(ClipSettings(frames=1, size=64, fps=25.0), tmp_path, entry)


def test_another_shot_is_another_cache(tmp_path: Path, alone: Rank) -> None:
    write(tmp_path / "video.mp4")
    entry = {"id": "v", "path": "video.mp4"}
    shots = [{}, {"start": 0.0}, {"start": 0.2}, {"start": 0.2, "end": 0.4}, {"start": 0.2, "fps": 5.0}]
    keys = [source(tmp_path, [entry | shot], alone).sha256 for shot in shots]
    assert len(set(keys)) == len(shots)
    # That of whole videos is the one of earlier versions, whose runs go on.
    assert keys[0] == sha256_json([["v", "video.mp4"], [5, 64, "squash"]])
    assert source(tmp_path, [entry | {"fps": 5.0, "caption": "x"}], alone).sha256 == keys[0]


def test_a_cache_of_a_newer_format_is_refused(tmp_path: Path, alone: Rank) -> None:
    write(tmp_path / "video.mp4")
    entries = [{"id": "v", "path": "video.mp4"}]
    source(tmp_path, entries, alone)
    (index,) = (tmp_path / "cache").glob("clips-*.json")
    content = read_json(index)
    write_json(index, content | {"format": 2})
    with pytest.raises(UserError, match=r"made by a newer megavrc \(format 2, this one reads up to 1\)"):
        source(tmp_path, entries, alone)
    del content["format"]  # as before there was one
    write_json(index, content)
    assert len(source(tmp_path, entries, alone)) == 1


def test_captions_may_hold_what_python_takes_for_the_end_of_a_line(tmp_path: Path, alone: Rank) -> None:
    write(tmp_path / "video.mp4")
    caption = "a red\u2028square\x85moves"
    clips = source(tmp_path, [{"path": "video.mp4", "caption": caption}], alone)
    assert "\u2028" in (tmp_path / "manifest.jsonl").read_text() and clips[0]["caption"] == caption


@pytest.mark.skipif(not CASES.is_dir(), reason="no cases in ../shared/cases")
def test_real_shots(tmp_path: Path, alone: Rank) -> None:
    config = dataclasses.replace(PLAIN, path=str(CASES / "shots.jsonl"), frames=17)
    clips = TrainingClips(config, tmp_path, alone)
    assert [clips[index]["key"] for index in range(len(clips))] == ["a_1", "a_2", "a_3"]
    for index, first in enumerate((0, 30, 60)):  # at 0, 1.2 and 2.4 s, 25 a second
        clip = read_clip(CASES / "a.mp4", first, 17, size=64, crop="squash")
        assert np.array_equal(clips[index]["clip"], clip)


def test_a_damaged_cache_is_noticed(tmp_path: Path, alone: Rank, caplog: pytest.LogCaptureFixture) -> None:
    """Pixels that changed come from their video again; what does not fit is made anew."""
    logging.getLogger("megavrc").propagate = True
    entries = [{"id": name, "path": name} for name in ("a.mp4", "b.mp4")]
    for entry in entries:
        write(tmp_path / entry["path"])
    clips = source(tmp_path, entries, alone)
    (index,), (array,) = ((tmp_path / "cache").glob(f"clips-*.{kind}") for kind in ("json", "npy"))
    whole, pixels, right = index.read_bytes(), array.read_bytes(), clips[1]["clip"].copy()
    changed = bytearray(pixels)
    for at in range(len(pixels) - 2000, len(pixels), 7):
        changed[at] ^= 1
    array.write_bytes(changed)
    clips = source(tmp_path, entries, alone)
    assert (
        np.array_equal(clips[1]["clip"], right)
        and "row 1 is damaged; its video is decoded again" in caplog.text
    )
    assert np.array_equal(clips[0]["clip"], right) and "row 0" not in caplog.text
    content = read_json(index)
    edited = [
        content | {"kept": [1, 0]},
        content | {"crc32": [0]},
        content | {"kept": [7]},
        content | {"kept": "0"},
    ]
    damaged = [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, *(json.dumps(each).encode() for each in edited)]
    for index_bytes, array_bytes in [
        *((each, pixels) for each in damaged),
        (whole, pixels[:-100]),
        (whole, b""),
    ]:
        index.write_bytes(index_bytes)
        array.write_bytes(array_bytes)
        caplog.clear()
        assert np.array_equal(source(tmp_path, entries, alone)[1]["clip"], right)
        assert "the cache is damaged, and made anew" in caplog.text
        assert (index.read_bytes(), array.read_bytes()) == (whole, pixels)
    (tmp_path / "b.mp4").unlink()
    array.write_bytes(changed)
    with pytest.raises(UserError, match=r"row 1 is damaged, and .* delete the file"):
        source(tmp_path, entries, alone)[1]


def test_videos_that_cannot_be_decoded_are_counted(
    tmp_path: Path, alone: Rank, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("megavrc").propagate = True
    for name in "ac":
        (tmp_path / f"{name}.mp4").write_bytes(b"no video")
    write(tmp_path / "b.mp4")
    clips = source(tmp_path, [{"id": name, "path": f"{name}.mp4"} for name in "abc"], alone)
    assert len(clips) == 1 and clips[0]["clip"].any()
    assert "2 of 3 videos are left out, the first because: " in caplog.text and "a.mp4" in caplog.text


def test_videos_left_out_once_are_named_at_every_start(
    tmp_path: Path, alone: Rank, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("megavrc").propagate = True
    entries = [{"id": name, "path": f"{name}.mp4"} for name in "ab"]
    write(tmp_path / "a.mp4")
    for _ in range(2):
        caplog.clear()
        assert len(source(tmp_path, entries, alone)) == 1
        (said,) = caplog.messages
        assert said.startswith("1 of 2 videos are left out, the first because: ") and "b.mp4" in said
        write(tmp_path / "b.mp4")
    (index,) = (tmp_path / "cache").glob("*.json")
    assert said.endswith(f"; delete {index} to decode them again")
    index.unlink()
    caplog.clear()
    assert len(source(tmp_path, entries, alone)) == 2 and not caplog.messages


def test_two_jobs_that_decode_the_same_clips_leave_whole_ones(tmp_path: Path) -> None:
    """Before either has the run's lease. The second that is done finds the cache of the first in its place."""
    write(tmp_path / "video.mp4")
    shots = [{"id": str(number), "path": "video.mp4", "start": number / 100} for number in range(40)]
    write_manifest(tmp_path / "manifest.jsonl", shots)
    config = dataclasses.replace(PLAIN, path=str(tmp_path / "manifest.jsonl"))
    context = multiprocessing.get_context("fork")
    both = context.Barrier(2, timeout=60)

    def decode() -> None:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        both.wait()
        clips = TrainingClips(config, tmp_path / "cache", Rank(0, 1, 0, torch.device("cpu")))
        assert all(clips[index]["clip"].any() for index in range(40))

    jobs = [context.Process(target=decode, daemon=True) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0, 0]
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".npy", ".json"}, (
        "nothing is left over"
    )


def test_a_disk_too_small_for_the_clips_is_one_line(tmp_path: Path, alone: Rank) -> None:
    """Before anything is decoded: a map of a file without its place on the disk ends in SIGBUS."""
    write(tmp_path / "video.mp4")
    (tmp_path / "cache").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path / "cache")]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        shots = [{"id": str(number), "path": "video.mp4", "start": number / 10} for number in range(3)]
        with pytest.raises(UserError, match=r"npy: No space left on device"):
            source(tmp_path, shots, alone)
        assert not list((tmp_path / "cache").iterdir()), "nor is it left full"
    finally:
        subprocess.run(["umount", str(tmp_path / "cache")], check=True)
