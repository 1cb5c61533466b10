"""A blind study's folder: its clips are made alike, both orders are there, and nothing but the planned set is taken."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from torch.nn.modules.module import register_module_forward_pre_hook
from user_studies import FPS, FRAMES, NAMES, SIZE, frames_of, make_study, prompts, write_clips, write_planned

from megavrc.errors import UserError
from megavrc.evaluation.clip_source import read_whole
from megavrc.evaluation.quality import psnr
from megavrc.generation.clip_sources import open_source
from megavrc.model.omnitokenizer import PixelDecoder
from megavrc.video.read import read_frames
from megavrc.video.write import enlarge
from megavrc.web.user_study import UserStudy, read_user_study
from megavrc.web.user_study_build import build_study, in_pieces


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> UserStudy:
    return make_study(tmp_path_factory.mktemp("study"), repeats=1, raters=2)


def halves(study: UserStudy, name: str) -> list[np.ndarray]:
    """Both clips of a file, at their own size."""
    whole = read_frames(study.clip(name), range(FRAMES))
    scale = study.width // SIZE
    cut = [whole[:, : study.height, x : x + study.width] for x in (0, study.second_at)]
    return [clip[:, scale // 2 :: scale, scale // 2 :: scale] for clip in cut]


def test_each_pair_is_there_in_both_orders(study: UserStudy) -> None:
    shown = [pair for pair in study.pairs if not pair.attention]
    assert [(pair.key, pair.prompt) for pair in shown] == [
        (f"secretkey{i:02d}", text) for i, text in enumerate(prompts(3))
    ]
    for index, pair in enumerate(shown):
        real = [frames_of(index, model) for model in (0, 1)]
        for name, expected in ((pair.plain, real), (pair.swapped, real[::-1])):
            for clip, original in zip(halves(study, name), expected, strict=True):
                assert psnr(clip, original) > 30
    assert study.names == list(NAMES) and study.seconds == FRAMES / FPS
    assert (
        len({*study.links}) == 2 and all(len(link) == 32 for link in study.links) and study.open_link is None
    )


def test_a_pair_for_attention_is_a_clip_and_its_pieces(study: UserStudy) -> None:
    (check,) = (pair for pair in study.pairs if pair.attention)
    whole, pieces = halves(study, check.plain)
    assert psnr(whole, frames_of(0, 0)) > 30
    again, first = halves(study, check.swapped)
    assert psnr(first, whole) > 30 and psnr(again, pieces) > 30
    frames = np.random.default_rng(0).integers(0, 256, (3, 35, 40, 3)).astype(np.uint8)
    mixed = in_pieces(frames, 0)
    for one, other in zip(
        mixed, frames, strict=True
    ):  # the same pixels, elsewhere; the rest that fills no tile stays
        assert sorted(one.ravel()) == sorted(other.ravel()) and not np.array_equal(one, other)
    assert not np.array_equal(mixed[0] == frames[0], mixed[1] == frames[1])


def test_files_differ_in_their_pictures_alone(study: UserStudy) -> None:
    facts = set()
    for path in sorted((study.folder / "clips").iterdir()):
        assert len(path.stem) == 32 and int(path.stem, 16)
        content = path.read_bytes()
        assert not any(word.encode() in content for word in ("secret", *NAMES, study.folder.name))
        with av.open(str(path)) as opened:
            (stream,) = opened.streams
            codec = stream.codec_context
            size = codec.width, codec.height, codec.pix_fmt, codec.name, codec.profile, stream.time_base
            facts.add(f"{opened.metadata} {stream.metadata} {stream.average_rate} {stream.frames} {size}")
    assert len(facts) == 1, facts


def test_clips_that_differ_are_made_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_clips(tmp_path / "a", 0, 2)
    second = write_clips(tmp_path / "b", 1, 2, length=6, size=48)
    build_study(first, second, tmp_path / "study", repeats=0, attention=0, names=("A", "B"))
    said = capsys.readouterr().out
    assert "6 to 8 frames; the first 6 of each" in said and "a square of 32 pixels" in said
    study = read_user_study(tmp_path / "study")
    assert (
        study.questions == ["consistency"] and study.protocol["frames"] == 6
    )  # no prompts: nothing to match
    assert study.open_link and study.protocol["pixels"] == "32 x 32"
    with pytest.raises(UserError, match="clip secretkey00 has 6 frames, --frames is 8"):
        build_study(first, second, tmp_path / "other", frames=8, repeats=0)


def test_a_model_generates_the_prompts_drawn_and_each_once(folder: Path, tmp_path: Path) -> None:
    """3 of 16 prompts, which lie in both batches of the whole list; each clip has the seed of its place there."""
    other, made = write_clips(tmp_path / "b", 1, 16, length=17, size=16), []
    planned = write_planned(tmp_path / "planned.jsonl", [f"a red dog moves up, {i}" for i in range(16)])
    options = {"n": 3, "repeats": 0, "attention": 0, "seed": 1}
    counted = register_module_forward_pre_hook(
        lambda module, given: made.append(len(given[0])) if isinstance(module, PixelDecoder) else None
    )
    try:
        build_study(folder, other, tmp_path / "study", planned, **options)
    finally:
        counted.remove()
    assert made == [3]
    study, source = read_user_study(tmp_path / "study"), open_source(folder, planned, seed=1)
    places = [int(pair.key.removeprefix("secretkey")) for pair in study.pairs]
    assert len({place // 8 for place in places}) > 1
    for place, pair in zip(places, study.pairs, strict=True):
        whole = read_frames(study.clip(pair.plain), range(17))[:, : study.height, : study.width]
        assert psnr(whole, enlarge(read_whole(source, place), study.width // 16)) > 25


def test_what_is_no_study_of_the_planned_clips_is_refused_by_name(tmp_path: Path) -> None:
    first, second = write_clips(tmp_path / "a", 0, 3), write_clips(tmp_path / "b", 1, 3)
    planned, out = write_planned(tmp_path / "planned.jsonl", prompts(3)), tmp_path / "study"

    def refused(match: str, *given: Path, **options: object) -> None:
        with pytest.raises(UserError, match=match):
            build_study(*given, out, **{"repeats": 0} | options)
        assert sorted(path.name for path in tmp_path.iterdir()) == before

    before = sorted(path.name for path in tmp_path.iterdir())
    refused(r"a and .*a: 3 clips are the same \(secretkey00", first, first, names=("A", "B"))
    refused("'A' and 'A' do not tell the models apart", first, second, names=("A", "A"))
    for options, said in (
        ({"n": 4}, "--n: 4, there are 3 prompts"),
        ({"repeats": 3}, "--repeats: 3, from 0 to 2 of 3 prompts"),
        ({"attention": -1}, "--attention: -1"),
        ({"raters": -1}, "--raters: -1"),
        ({"fps": 0}, "--fps: 0 is not between"),
        ({"frames": 0}, "--frames: 0, at least 1"),
        ({"size": 4}, "--size: 4, from 16 to 2048"),
    ):
        refused(said, first, second, **options)
    some = [text if index else "" for index, text in enumerate(prompts(3))]
    refused(r"1 clips have no prompt \(secretkey00\)", first, second, planned=write_planned(planned, some))
    (second / "secretkey01.mp4").rename(second / "old.mp4")
    refused(r"b: .*1 missing \(secretkey01\); 1 stale.*\(old\)", first, second, planned=planned)
    refused("neither their keys nor their prompts", first, second)
    (second / "old.mp4").rename(second / "secretkey01.mp4")
    (second / "secretkey01.mp4").write_bytes(b"no video")
    refused("secretkey01", first, second)
    (second / "secretkey01.mp4").unlink()
    write_clips(tmp_path / "c", 1, 3)
    lines = [
        {"id": f"secretkey{i:02d}", "path": f"secretkey{i:02d}.mp4", "caption": f"other {i}", "split": "test"}
        for i in range(3)
    ]
    (tmp_path / "c" / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (first / "manifest.jsonl").write_text("\n".join(json.dumps(line | {"caption": "mine"}) for line in lines))
    before = sorted(path.name for path in tmp_path.iterdir())
    refused(r"have other prompts or labels for 3 clips \(secretkey00", first, tmp_path / "c")
    out.mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    refused("is there already", first, tmp_path / "c")


def test_a_folder_that_is_no_whole_study_is_refused_by_name(study: UserStudy, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"study\.json: no such file"):
        read_user_study(tmp_path)
    content = json.loads((study.folder / "study.json").read_text())
    for change, said in (
        ({"format": 2}, "made by a newer megavrc"),
        ({"pairs": [{"key": "a"}]}, "pair 1"),
        ({"seconds": "1"}, "seconds"),
        ({"names": ["A"]}, "not two names, or no pairs or questions that are known"),
        ({"questions": ["beauty"]}, "not two names, or no pairs or questions that are known"),
        ({"pairs": []}, "not two names, or no pairs or questions that are known"),
        ({}, "no such file; copy the study's folder whole"),
    ):
        (tmp_path / "study.json").write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=said):
            read_user_study(tmp_path)
