"""Videos that are replaced after they were planned are named, and done again on request, they alone."""

import json
import os
import shutil
from pathlib import Path

import pytest
from jobs import SMALL, samples

from megavrc.errors import UserError
from megavrc.tokenization.job import plan, run
from megavrc.tokenization.plan import load_plan
from megavrc.tokenization.result import finalize, verify
from megavrc.tokenization.sources import is_recorded


@pytest.fixture
def videos(manifest: Path, tmp_path: Path) -> Path:
    """A copy that may be changed; videos keep their times."""
    return Path(shutil.copytree(manifest.parent, tmp_path / "videos")) / "manifest.jsonl"


def replace(videos: Path, name: str) -> None:
    """By another video; the size may be the same."""
    shutil.copyfile(videos.parent / "a/02.mp4", videos.parent / name)


def test_a_video_replaced_before_the_run_is_refused(videos: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan(videos, out, tokenizer, **SMALL)
    replace(videos, "b/01.mp4")
    for _ in range(2):
        plan(videos, out, tokenizer, **SMALL)  # the same plan: no other fingerprints
        with pytest.raises(
            UserError, match=r"1 videos are not those that were planned: b/01.mp4 .*redo_chan"
        ):
            run(out)
    run(out, redo_changed=True)
    finalize(out)
    verify(out)


def test_only_what_changed_is_done_again(
    videos: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    plan(videos, out, tokenizer, **SMALL)
    run(out)
    finalize(out)
    before, times = samples(out, "video"), {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    content = bytearray((videos.parent / "b/01.mp4").read_bytes())
    content[-1] ^= 1  # of the same size
    (videos.parent / "b/01.mp4").write_bytes(content)
    replace(videos, "b/01.mp4")
    with pytest.raises(UserError, match="problems"):
        verify(out)
    assert "b/01.mp4" in capsys.readouterr().err
    run(out)  # all is done
    run(out, redo_changed=True)
    finalize(out)
    verify(out)
    touched = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    work = load_plan(out)
    own = next(
        shard for shard, rows in work.sources(work.units).items() if any(e["id"] == "b/01.mp4" for e in rows)
    )
    assert touched == {work.tar(kind, own) for kind in work.kinds}
    others = [key for key, (_, fields) in before.items() if fields["source"] != "b/01.mp4"]
    after = samples(out, "video")
    assert all((after[key][0] == before[key][0]).all() for key in others)


def test_a_copied_job_is_the_same(
    videos: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other times of change alone are a warning, videos that are not at hand are nothing."""
    out = tmp_path / "out"
    plan(videos, out, tokenizer, **SMALL)
    os.utime(videos.parent / "b/01.mp4", (1, 1))
    run(out)
    finalize(out)
    assert "1 videos have another time of change" in capsys.readouterr().err
    (videos.parent / "b/01.mp4").unlink()
    verify(out)


def test_nothing_is_a_plan_before_its_fingerprints_lie_beside_it(
    videos: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """Else the same command again would take a plan that was cut short for one of before there were any."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "sources").touch()
    with pytest.raises(UserError, match="sources"):
        plan(videos, out, tokenizer, **SMALL)
    assert not (out / "plan.json").exists()
    (out / "sources").unlink()
    plan(videos, out, tokenizer, **SMALL)
    assert is_recorded(load_plan(out))


def test_a_plan_without_fingerprints_works_with_a_warning(
    videos: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    plan(videos, out, tokenizer, **SMALL)
    shutil.rmtree(out / "sources")
    plan(videos, out, tokenizer, **SMALL)
    assert not (out / "sources").exists()  # what lies there now may not be what was planned
    run(out)
    assert "without fingerprints" in capsys.readouterr().err


def test_damaged_fingerprints_are_one_line(videos: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan(videos, out, tokenizer, **SMALL)
    path = out / "sources" / "train-000000.json"
    whole = json.loads(path.read_text())
    for content in (b"[]", b"{", b"\xff", json.dumps({**whole, "sources": {}}).encode()):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"train-000000\.json"):
            run(out)
