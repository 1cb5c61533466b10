import itertools
import json
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset
from golden import write
from held import Held
from jobs import ROOT, SMALL, files, make_tokenizer, samples, start_forked, tokenize, wait_for

from megavrc.data.dataset import TokenDataset
from megavrc.data.shards import DataError
from megavrc.errors import UserError
from megavrc.tokenization.cut import cut
from megavrc.tokenization.inspect import inspect
from megavrc.tokenization.job import array_task, plan, run
from megavrc.tokenization.plan import load_plan
from megavrc.tokenization.prepare import COMMANDS
from megavrc.tokenization.result import finalize, status, verify
from megavrc.tokenization.sampling import ClipSettings, choose, source_key
from megavrc.tokenizers import OmniTokenizer
from megavrc.video.listing import list_folder
from megavrc.video.manifest import read_manifest, write_manifest
from megavrc.video.read import probe, read_clip, read_frames


def test_ids_are_those_of_the_videos(done: Path, manifest: Path, tokenizer: Path) -> None:
    """Against an independent path: every clip and image read and encoded alone."""
    loaded = OmniTokenizer.from_checkpoint(tokenizer)
    clips, images = samples(done, "video"), samples(done, "image")
    assert len(clips) == 9
    assert len(images) == 9 * 3
    for key, (ids, fields) in clips.items():
        path, start = manifest.parent / fields["source"], fields["start_frame"]
        assert key == f"{source_key(fields['source'])}-{start:07d}"
        assert fields["caption"] == f"video {int(path.stem)}"
        assert (fields["label"], fields["class"]) == [(0, "a"), (1, "b")][int(path.stem) % 2]
        frames = read_clip(path, start, 17, size=32)
        assert (ids == loaded.encode(torch.from_numpy(frames[None]))[0].numpy()).all()
    for key, (ids, fields) in images.items():
        start = fields["start_frame"]
        assert key == f"{source_key(fields['source'])}-f{start:07d}"
        frames = read_frames(manifest.parent / fields["source"], [start], size=32)
        assert (ids == loaded.encode(torch.from_numpy(frames[None]))[0].numpy()).all()


def test_damaged_and_short_videos_are_reported(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for path in (done / "failures").iterdir() for line in path.read_text().splitlines()]
    failures = {(failure := json.loads(line))["source"]: failure for line in lines}
    assert set(failures) == {"a/10.mp4", "b/09.mp4"}
    assert failures["b/09.mp4"]["stage"] == "short"
    assert failures["b/09.mp4"]["reason"] == "9 frames, a clip needs 17"
    assert failures["a/10.mp4"]["stage"] in ("open", "decode")
    assert failures["a/10.mp4"]["reason"]
    status(done)
    assert "3 of 3 shards done" in (printed := capsys.readouterr().out)
    assert "2 videos failed" in printed


def test_webdataset_reads_the_result(done: Path) -> None:
    tars = sorted(str(path) for path in (done / "video" / "shards").glob("*.tar"))
    found = {sample["__key__"]: sample for sample in webdataset.WebDataset(tars, shardshuffle=False).decode()}
    expected = samples(done, "video")
    assert set(found) == set(expected)
    assert all((found[key]["npy"] == ids).all() for key, (ids, _) in expected.items())


def test_decoders_do_not_change_the_result(
    done: Path, manifest: Path, tokenizer: Path, tmp_path: Path
) -> None:
    plan(manifest, tmp_path, tokenizer, **SMALL)
    run(tmp_path, decoders=4)
    finalize(tmp_path)
    assert files(tmp_path) == files(done)


def test_two_tasks_make_the_same_bytes(done: Path, manifest: Path, tokenizer: Path, tmp_path: Path) -> None:
    assert files(tokenize(manifest, tokenizer, tmp_path / "two", tasks=2)) == files(done)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_stopped_job_continues(
    number: signal.Signals, code: int, done: Path, manifest: Path, tokenizer: Path, tmp_path: Path
) -> None:
    plan(manifest, tmp_path, tokenizer, **SMALL)
    entries = [json.loads(line) for line in (tmp_path / "plan.jsonl").read_text().splitlines()]
    blocked = manifest.parent / next(entry["path"] for entry in entries if entry["shard"] == 1)
    with Held(blocked):  # decoding waits here until the signal comes
        process = start_forked("run", "--out", tmp_path)
        wait_for(tmp_path / "image" / "shards" / "train-000000-of-000003.tar.done.json")
        time.sleep(0.3)
        process.send_signal(number)
        assert process.wait(timeout=30) == code
    first = tmp_path / "video" / "shards" / "train-000000-of-000003.tar"
    before = first.stat().st_mtime_ns
    if number == signal.SIGTERM:
        assert not [path for path in (tmp_path / "video" / "shards").iterdir() if path.name.startswith(".")]
    with pytest.raises(UserError, match=r"2 of 3 shards are not done \(first: train-000001-of-000003.tar\)"):
        finalize(tmp_path)
    run(tmp_path)
    finalize(tmp_path)
    assert first.stat().st_mtime_ns == before
    assert files(tmp_path) == files(done)


def test_one_command_for_one_machine(done: Path, manifest: Path, tokenizer: Path, tmp_path: Path) -> None:
    options = [f"--{name}={value}" for name, value in SMALL.items()]
    paths = ["--manifest", manifest, "--tokenizer", tokenizer, "--out", tmp_path, "--workers", "2"]
    assert start_forked("all", *paths, *options).wait(timeout=120) == 0
    assert files(tmp_path) == files(done)


def test_verify_finds_damage(manifest: Path, tokenizer: Path, tmp_path: Path, capsys: Any) -> None:
    out = tokenize(manifest, tokenizer, tmp_path)
    verify(out)
    tar = out / "image" / "shards" / "train-000001-of-000003.tar"
    content = bytearray(tar.read_bytes())
    content[content.index(b"NUMPY") + 130] ^= 4
    tar.write_bytes(content)
    with pytest.raises(DataError, match="problems"):
        verify(out)
    assert f"{tar}: sample " in (printed := capsys.readouterr().err)
    assert f"{tar}: sha256" in printed
    tar.write_bytes(content[:-512])
    with pytest.raises(DataError, match=f"{tar}: shard has"):
        verify(out)
    run(out)  # a shard whose size is wrong is not done: it is made again
    verify(out)
    for path in (out / "failures").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="problems"):
        verify(out)
    assert "2 videos have neither a sample nor a failure (first: a/10.mp4)" in capsys.readouterr().err


def test_a_split_whose_videos_have_all_failed_is_verified(
    manifest: Path, tokenizer: Path, tmp_path: Path, capsys: Any
) -> None:
    entries = read_manifest(manifest)[:2]
    lost = {**entries[0], "path": "gone.mp4", "id": "gone", "split": "val"}
    write_manifest(manifest.parent / "some.jsonl", [*entries, lost])
    plan(manifest.parent / "some.jsonl", tmp_path / "out", tokenizer, **{**SMALL, "splits": ["train", "val"]})
    run(tmp_path / "out")
    finalize(tmp_path / "out")
    verify(tmp_path / "out")
    assert capsys.readouterr().out.count("val: 0 samples, 0 problems") == 2
    for path in (tmp_path / "out" / "failures").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="problems"):
        verify(tmp_path / "out")
    assert "1 videos have neither a sample nor a failure (first: gone)" in capsys.readouterr().err


def test_a_header_that_says_too_many_frames_is_not_believed(tmp_path: Path) -> None:
    """The length in an AVI's stream header, which a writer that cannot go back leaves at its largest."""
    content = bytearray(write(tmp_path / "v.avi", codec="mpeg4", options={}).read_bytes())
    at = content.index(b"strh") + 8 + 32
    content[at : at + 4] = b"\xff" * 4
    (tmp_path / "v.avi").write_bytes(content)
    assert probe(tmp_path / "v.avi").frames > len(content)
    settings = ClipSettings(frames=5, size=32, images_per_video=2)
    made = cut(settings, tmp_path / "v.avi", {"id": "v", "path": "v.avi"})
    assert len(made.clips) == 1 and len(made.images) == 2


def test_images_as_first_frames_of_clips(manifest: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = tokenize(manifest, tokenizer, tmp_path, image_source="clip")
    loaded = OmniTokenizer.from_checkpoint(tokenizer)
    images = samples(out, "image")
    assert {len(key) for key in images} == {25}
    assert TokenDataset(out / "image").info["image_source"] == "clip"
    for ids, fields in images.values():
        frames = read_clip(manifest.parent / fields["source"], fields["start_frame"], 17, size=32)
        assert (ids == loaded.encode(torch.from_numpy(frames[None]))[0, :1].numpy()).all()


def test_encoding_in_bf16(done: Path, manifest: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = tokenize(manifest, tokenizer, tmp_path, precision="bf16")
    assert TokenDataset(out / "video").info["sampling"]["precision"] == "bf16"
    loaded, differ = OmniTokenizer.from_checkpoint(tokenizer, precision="bf16"), 0
    fp32 = samples(done, "video")
    for key, (ids, fields) in samples(out, "video").items():
        frames = read_clip(manifest.parent / fields["source"], fields["start_frame"], 17, size=32)
        assert (ids == loaded.encode(torch.from_numpy(frames[None]))[0].numpy()).all()
        differ += (ids != fp32[key][0]).sum()
    assert differ


def test_short_videos_are_clamped_on_request(manifest: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = tokenize(manifest, tokenizer, tmp_path, short="clamp", stride=2)
    short = [ids for ids, fields in samples(out, "video").values() if fields["source"] == "b/09.mp4"]
    frames = read_clip(manifest.parent / "b/09.mp4", 0, 17, stride=2, size=32, short="clamp")
    ids = OmniTokenizer.from_checkpoint(tokenizer).encode(torch.from_numpy(frames[None]))[0].numpy()
    assert (short[0] == ids).all()


def test_a_header_that_lies_is_not_believed(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of frames in the header is only a first guess."""
    entry = {"id": "a/02.mp4", "caption": None, "label": None}
    settings = ClipSettings(size=32)
    expected = cut(settings, manifest.parent / "a/02.mp4", entry)
    from megavrc.tokenization import cut as module
    from megavrc.video.read import probe

    for wrong in (0, 5, 5000):
        monkeypatch.setattr(module, "probe", lambda path, wrong=wrong: probe(path)._replace(frames=wrong))
        found = cut(settings, manifest.parent / "a/02.mp4", entry)
        for kind in ("clips", "images"):
            assert [c.start for c in getattr(found, kind)] == [c.start for c in getattr(expected, kind)]


def test_another_plan_is_refused(done: Path, manifest: Path, tokenizer: Path) -> None:
    plan(manifest, done, tokenizer, **SMALL)
    with pytest.raises(UserError, match=r"plan.json is another plan \(.*seed.* differ\)"):
        plan(manifest, done, tokenizer, **{**SMALL, "seed": 1})


def test_another_tokenizer_is_refused(manifest: Path, tokenizer: Path, tmp_path: Path) -> None:
    other = make_tokenizer(tmp_path / "other", seed=1)
    plan(manifest, tmp_path / "out", tokenizer, **SMALL)
    with pytest.raises(UserError, match=r"the plan is for tokenizer [0-9a-f]{64}, this one is [0-9a-f]{64}"):
        run(tmp_path / "out", tokenizer=other)


def test_array_tasks_come_from_slurm(
    manifest: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    plan(manifest, tmp_path, tokenizer, **SMALL)
    for name, value in (("COUNT", "3"), ("ID", "11"), ("MIN", "10"), ("MAX", "12")):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    run(tmp_path)
    names = [path.name for path in (tmp_path / "video" / "shards").glob("*.tar")]
    assert names == ["train-000001-of-000003.tar"]
    status(tmp_path)
    assert "--array=0,2 with --of 3" in capsys.readouterr().out
    with pytest.raises(UserError, match="task 3 of 3"):
        run(tmp_path, task=3)
    for name, value in (("COUNT", "2"), ("ID", "2"), ("MIN", "0"), ("MAX", "2")):  # --array=0,2
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    with pytest.raises(UserError, match="a job array with gaps: say with --of"):
        run(tmp_path)
    run(tmp_path, of=3)
    status(tmp_path, of=3)
    assert "--array=0 with --of 3" in capsys.readouterr().out


def test_the_processes_of_an_array_task_share_its_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array of two tasks on nodes of three GPUs; then the second one alone, as `status` names it."""
    for name, value in (("COUNT", 2), ("MIN", 0), ("MAX", 1)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    own: dict[str, list[set[int]]] = {"0": [], "1": []}
    for element, process in itertools.product(own, range(3)):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", element)
        monkeypatch.setenv("SLURM_PROCID", str(process))
        task, of = array_task(None, None)
        own[element].append(set(range(20)[task::of]))
        assert array_task(None, 2) == (task, of)
        assert array_task(1, 2) == (1, 2), "as is said"
    assert sum(len(each) for sets in own.values() for each in sets) == 20, "none twice"
    for element, sets in own.items():
        assert set.union(*sets) == set(range(20)[int(element) :: 2]), (
            "those of the task, as status counts them"
        )


def test_what_is_missing_is_named(manifest: Path, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no plan.json"):
        run(tmp_path)
    with pytest.raises(UserError, match="no video of split 'val'"):
        plan(manifest, tmp_path, tokenizer, splits=["val"])
    with pytest.raises(UserError, match="splits: train stands there twice"):
        plan(manifest, tmp_path, tokenizer, splits=["train", "train"])
    with pytest.raises(UserError, match="clips of 16 frames of size 32: "):
        plan(manifest, tmp_path, tokenizer, **{**SMALL, "frames": 16})
    write_manifest(tmp_path / "m.jsonl", [{"path": "gone.mp4"}])
    plan(tmp_path / "m.jsonl", tmp_path / "out", tokenizer, **SMALL)
    run(tmp_path / "out")
    with pytest.raises(UserError, match="no video gave a sample"):
        finalize(tmp_path / "out")


def test_cuts_are_a_function_of_the_video() -> None:
    settings = ClipSettings(clips_per_video=4, images_per_video=5, stride=2, seed=3)
    clips, images = choose(settings, "a", 1000)
    assert (clips, images) == choose(settings, "a", 1000) != choose(settings, "b", 1000)
    parts = (1000 - settings.span + 1) / 4
    assert [int(start // parts) for start in clips] == [0, 1, 2, 3]
    assert len(set(images)) == 5
    assert choose(settings, "a", settings.span) == ([0], choose(settings, "a", settings.span)[1])
    assert choose(settings, "a", settings.span - 1) == ([], [])
    assert choose(ClipSettings(short="clamp"), "a", 3) == ([0], [0, 1, 2])


def test_the_plan_mixes_the_videos(done: Path) -> None:
    made = load_plan(done)
    order = [entry["id"] for entries in made.sources(made.units).values() for entry in entries]
    assert sorted(order) != order


def test_inspecting(
    done: Path, manifest: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, count in (("video", 9), ("image", 27)):
        sheet = tmp_path / f"{kind}.png"
        inspect(done / kind, sample=3, tokenizer=tokenizer, sheet=sheet, count=5)
        assert sheet.read_bytes().startswith(b"\x89PNG")
        printed = capsys.readouterr().out
        assert f"{count} samples of split train in 3 shards" in printed
        assert '"caption": "video ' in printed
        assert "5 of them cut from their videos again: 100.00% of the ids are the same" in printed
        assert "dB: below 20 dB, this tokenizer shows little of the videos" in printed
    with pytest.raises(UserError, match="sample 9 of 9 does not exist"):
        inspect(done / "video", sample=9)
    with pytest.raises(UserError, match="needs both"):
        inspect(done / "video", sheet=tmp_path / "x.png")
    other = make_tokenizer(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="the shards were made by"):
        inspect(done / "video", tokenizer=other, sheet=tmp_path / "x.png")


def test_a_dataset_that_is_named_from_inside_finds_its_job(
    done: Path,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(done / "video")
    inspect(Path(), tokenizer=tokenizer, sheet=tmp_path / "sheet.png", count=1)
    assert "1 of them cut from their videos again: 100.00% of the ids are the same" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"^.: a part of a job, whose folder is {done}$"):
        load_plan(Path())


def test_a_tokenizer_that_is_named_from_inside_has_its_name(
    manifest: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tokenizer)
    plan(manifest, tmp_path / "out", Path(), **SMALL)
    assert json.loads((tmp_path / "out/plan.json").read_text())["tokenizer"]["name"] == tokenizer.name


def test_inspecting_notices_ids_of_another_video(
    manifest: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in manifest.parent.rglob("*.*"):
        (copy := tmp_path / path.relative_to(manifest.parent)).parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    out = tokenize(tmp_path / "manifest.jsonl", tokenizer, tmp_path / "out", images_per_video=0)
    shutil.copy(tmp_path / "a/06.mp4", tmp_path / "a/00.mp4")  # both have 17 frames
    (tmp_path / "b/01.mp4").unlink()
    capsys.readouterr()
    with pytest.raises(DataError, match=r"1 problems; the first: sample .* of its ids are found again"):
        inspect(out / "video", tokenizer=tokenizer, sheet=tmp_path / "sheet.png")
    printed = capsys.readouterr().out
    share = float(re.findall(r"worst sample ([\d.]+)%", printed)[0])
    assert share < 50
    assert "1 of them have no video here to compare with" in printed


def test_preparing_a_list_of_videos(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    COMMANDS["videofolder"](folder=manifest.parent, out=tmp_path / "m.jsonl")
    assert "11 videos (11 train), 11 with a caption, 2 classes" in capsys.readouterr().out
    COMMANDS["list"](table=tmp_path / "m.jsonl", out=tmp_path / "again.jsonl")
    assert read_manifest(tmp_path / "again.jsonl") == read_manifest(tmp_path / "m.jsonl")


CLIPS = ROOT.parent / "shared" / "clips"


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the shared clips are not here")
@pytest.mark.parametrize(
    ("short", "failed"), [("skip", {"corrupted.mp4", "rotated_90.mov"}), ("clamp", {"corrupted.mp4"})]
)
def test_real_videos(short: str, failed: set[str], tokenizer: Path, tmp_path: Path) -> None:
    """One is damaged, one (rotated) has 3 frames only."""
    write_manifest(tmp_path / "m.jsonl", list_folder(CLIPS, tmp_path / "m.jsonl").entries)
    out = tokenize(tmp_path / "m.jsonl", tokenizer, tmp_path, short=short, clips_per_video=2)
    lines = [line for path in (out / "failures").iterdir() for line in path.read_text().splitlines()]
    assert {json.loads(line)["source"] for line in lines} == failed
    found = {fields["source"] for _, fields in samples(out, "video").values()}
    assert found == {path.name for path in CLIPS.iterdir()} - failed
