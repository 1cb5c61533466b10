"""Video in windows and frame by frame, through the folder and through transformers."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hf_source import Source, converted

from megavrc.config import run_command
from megavrc.errors import UserError
from megavrc.generation import command
from megavrc.generation.folder import Folder, load_folder
from megavrc.generation.to_files import read_end
from megavrc.model import ClipRequest
from megavrc.model.clips import decode_clips, encode_clips, sampling_settings
from megavrc.video import count_frames, read_clip, read_frames

PROMPTS = ["a red square moves left", "a blue dog"]


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Folder:
    return load_folder(folder)


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal but for the rounding of a convolution over another number of frames."""
    return one.shape == other.shape and int((one.int() - other.int()).abs().max()) <= 1


def test_frames_come_as_they_are_ready_and_make_the_same_clip(loaded) -> None:
    _, whole = loaded.generate(PROMPTS, seed=[5, 6])
    chunks = list(loaded.stream(PROMPTS, seed=[5, 6]))
    assert [chunk.shape[1] for chunk in chunks] == [1, 4, 4, 4, 4]
    assert near(torch.cat(chunks, dim=1), whole)
    (once,) = loaded.stream(PROMPTS, seed=[5, 6], by_frame=False)
    assert torch.equal(once, whole)


def test_a_longer_video_continues_from_its_own_encoded_end(loaded) -> None:
    """The second window, written out: the last 9 frames encoded, continued with the next random numbers."""
    chunks = list(loaded.stream(PROMPTS, seed=[5, 6], frames=29, overlap=9, by_frame=False))
    assert [chunk.shape[1] for chunk in chunks] == [17, 8, 4]
    _, first = loaded.generate(PROMPTS, seed=[5, 6])
    assert torch.equal(chunks[0], first)
    net = loaded.video_tokenizer.net
    settings = sampling_settings(loaded.sampling)
    prefix = encode_clips(net, first[:, -9:])
    request = ClipRequest(loaded.condition(PROMPTS), [5, 6], settings, prefix)
    with torch.no_grad():
        ids = torch.stack(list(loaded.pipeline._window(request, 5, number=1)), dim=1)
    assert torch.equal(chunks[1], decode_clips(net, ids)[:, 9:])
    again = loaded.pipeline.generate(request, "ids")
    assert not torch.equal(ids, again), "every window has its own random numbers"


def test_windows_of_a_stream_by_frame_and_of_one_sample(loaded) -> None:
    options = dict(frames=33, overlap=5, seed=[6])
    whole = torch.cat(list(loaded.stream(PROMPTS[1:], by_frame=False, **options)), dim=1)
    chunks = list(loaded.stream(PROMPTS[1:], **options))
    assert [chunk.shape[1] for chunk in chunks] == [1] + 8 * [4]
    assert near(chunks[4], whole[:, 13:17])
    assert whole.shape[1] == 33


def test_a_given_clip_as_long_as_a_window_is_continued(loaded) -> None:
    _, clip = loaded.generate(PROMPTS, seed=[5, 6])
    video = torch.cat(list(loaded.stream(PROMPTS, seed=[1, 2], clip=clip, frames=21)), dim=1)
    assert video.shape[1] == 21
    assert torch.equal(video[:, :17], loaded.video_tokenizer.decode(loaded.video_tokenizer.encode(clip)))


def cells(frames):
    """Means of the enlarged pixels, float [T, 16, 16, 3]."""
    return frames.reshape(len(frames), 16, 4, 16, 4, 3).mean((2, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(frames=22), r"a clip has 1 \+ 4k frames, got 22"),
        (dict(frames=33, overlap=6), r"overlap: 6, expected 1 \+ 4k frames, fewer than 17"),
        (dict(frames=33, overlap=17), "overlap: 17"),
        (dict(clip=torch.zeros(1, 21, 16, 16, 3, dtype=torch.uint8), frames=33), "at most 17: give the last"),
        (
            dict(clip=torch.zeros(1, 9, 16, 16, 3, dtype=torch.uint8), frames=5),
            "given frames: 9 of a video of 5",
        ),
        (dict(clip=torch.zeros(1, 5, 8, 8, 3, dtype=torch.uint8)), "16, 16, 3"),
        (dict(clip=torch.zeros(16, 16, 3, dtype=torch.uint8)), "16, 16, 3"),
    ],
)
def test_impossible_videos_are_one_line(loaded, options, message) -> None:
    with pytest.raises(UserError, match=message) as error:
        list(loaded.stream(["a"], seed=[0], **options))
    assert "\n" not in str(error.value)


def test_the_same_in_transformers(folder, loaded) -> None:
    from megavrc.model.modeling_vrc import VRCForVideoGeneration

    model = VRCForVideoGeneration.from_pretrained(folder)
    expected = list(loaded.stream(PROMPTS, seed=[5, 6], frames=25))
    chunks = list(model.stream_video(PROMPTS, seed=5, frames=25))
    assert all(torch.equal(one, other) for one, other in zip(chunks, expected, strict=True))
    assert model.generate_video(PROMPTS, seed=5, frames=25).shape[1] == 25
    with pytest.raises(ValueError, match=r"frames: 25 asked for, .* at most 17: longer videos are pixels"):
        model.generate_video(PROMPTS, seed=5, frames=25, output="ids")


def test_windows_refine_in_the_folder_and_in_transformers(tmp_path) -> None:
    """Passes are of a window's latent frames, and each window has its own order of cells."""
    from megavrc.model.modeling_vrc import VRCForVideoGeneration

    folder = converted(Source(tmp_path, refine=True), tmp_path / "hf")
    loaded, model = load_folder(folder), VRCForVideoGeneration.from_pretrained(folder)
    options = dict(seed=[5, 6], frames=29, overlap=5, later_passes=[1, 5, 5])
    chunks = list(loaded.stream(PROMPTS, by_frame=False, **options))
    assert torch.equal(model.generate_video(PROMPTS, **options), torch.cat(chunks, dim=1))
    settings = sampling_settings(loaded.sampling, {"later_passes": options["later_passes"]})
    net = loaded.video_tokenizer.net
    request = ClipRequest(loaded.condition(PROMPTS), [5, 6], settings, encode_clips(net, chunks[0][:, -5:]))
    for passes, same in (([1, 5, 5], True), ([1, 5], False), (1, False)):
        again = replace(request, settings=replace(settings, later_passes=passes))
        with torch.no_grad():
            ids = torch.stack(list(loaded.pipeline._window(again, 5, number=1)), dim=1)
        assert torch.equal(chunks[1], decode_clips(net, ids)[:, 5:]) == same


def test_the_command_continues_a_clip(folder, loaded, tmp_path, capsys) -> None:
    common = ["--model", str(folder), "--scale", "4", "--prompt", json.dumps(PROMPTS[:1])]
    assert run_command(command.generate, [*common, "--out", str(tmp_path / "a")]) == 0
    clip = next((tmp_path / "a").glob("*.mp4"))
    more = [*common, "--out", str(tmp_path / "b"), "--clip", str(clip), "--frames", "21", "--overlap", "5"]
    assert run_command(command.generate, more) == 0
    made = next((tmp_path / "b").glob("*.mp4"))
    assert count_frames(made) == 21
    begin = read_frames(made, range(5))
    tokenizer = loaded.video_tokenizer
    seen = read_end(clip, 16, 5)
    assert (seen.numpy() == read_clip(clip, start=12, frames=5, size=16)).all()
    expected = tokenizer.decode(tokenizer.encode(seen[None]))[0].numpy()
    assert abs(cells(begin) - expected).mean() < 25, "the written video is lossy"
    assert abs(cells(begin) - cells(begin)[::-1]).mean() > 35
    capsys.readouterr()
    assert run_command(command.generate, [*more, "--clip_frames", "25"]) == 2
    assert "has 17 frames, 25 are to be continued" in capsys.readouterr().err
    assert run_command(command.generate, [*more, "--first_image", str(clip)]) == 2
    assert capsys.readouterr().err == "error: give --first_image or --clip, not both\n"


def test_speculation_through_transformers(folder, loaded) -> None:
    from megavrc.model.modeling_vrc import VRCForVideoGeneration

    model = VRCForVideoGeneration.from_pretrained(folder)

    def clips(**options: object) -> torch.Tensor:
        return model.generate_video(PROMPTS, seed=5, output="ids", guidance=1.5, **options)

    for draft in ("neighbour", "random"):
        assert torch.equal(clips(top_k=1, speculative=4, draft=draft), clips(top_k=1))
    drawn = clips(speculative=4)
    assert not torch.equal(drawn, clips()), "other clips for a seed"
    settings = sampling_settings(loaded.sampling, {"guidance": 1.5, "speculative": 4})
    assert torch.equal(drawn, loaded.generate(PROMPTS, seed=[5, 6], settings=settings)[0])
    with pytest.raises(ValueError, match="draft one of neighbour, repeat, random"):
        clips(draft="magic")


def test_speculation_in_the_command(folder, tmp_path) -> None:
    common = ["--model", str(folder), "--prompt", json.dumps(PROMPTS), "--frames", "5"]

    def clips(name: str, *words: str) -> list[bytes]:
        assert run_command(command.generate, [*common, "--out", str(tmp_path / name), *words]) == 0
        return [path.read_bytes() for path in sorted((tmp_path / name).glob("*.gif"))]

    assert clips("a", "--top_k", "1") == clips("b", "--top_k", "1", "--speculative", "4")
    assert clips("c") != clips("d", "--speculative", "4")


def test_bf16_and_int8_stay_close(folder, loaded) -> None:
    condition = loaded.condition(PROMPTS, None)
    ids = torch.zeros(2, 5, 4, 4, dtype=torch.long)
    with torch.no_grad():
        expected = loaded.model(ids, condition, logits=True).logits_later
        for options, limit in ((dict(dtype="bf16"), 0.03), (dict(quantize="int8"), 0.05)):
            other = load_folder(folder, **options)
            got = other.model(ids, condition, logits=True).logits_later.float()
            assert 0 < (got - expected).norm() / expected.norm() < limit, options
            assert other.generate(PROMPTS, seed=[5, 6])[1].shape == (2, 17, 16, 16, 3)


def test_fp8_without_torchao_is_one_line(folder, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(UserError, match=r"quantize: fp8 needs torchao: pip install 'megavrc\[int8\]'"):
        load_folder(folder, quantize="fp8")
