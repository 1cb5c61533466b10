"""The doctor finds what is missing, damaged or stuck, and says what to do."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import trees
from golden import write
from hf_source import CAPTIONS, Source, make_tokens
from safetensors.torch import save_file

from megavrc.launch import doctor, videos
from megavrc.video import write_mp4

ROOT = Path(__file__).resolve().parents[2]


def test_this_machine_can_run_the_demo(tmp_path: Path) -> None:
    report = tmp_path / "doctor.json"
    run = subprocess.run(
        [sys.executable, ROOT / "tools/doctor.py", "--json", report, "--text-encoder", tmp_path / "none"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    content = json.loads(report.read_text())
    assert content["able"]
    assert {"required", "tried", "your files"} <= {finding["group"] for finding in content["findings"]}
    [encoder] = [finding for finding in content["findings"] if finding["name"] == "text_encoder"]
    assert str(tmp_path / "none") in encoder["found"] + encoder["advice"]


@pytest.mark.parametrize(
    ("version", "wanted", "inside"),
    [
        ("2.13.0+cpu", ">=2.9,<2.14", True),
        ("2.14.0", ">=2.9,<2.14", False),
        ("2.8.1", ">=2.9,<2.14", False),
        ("3", "", True),
    ],
)
def test_versions_are_compared_by_number(version: str, wanted: str, inside: bool) -> None:
    assert doctor._in_range(version, wanted) is inside


def test_missing_and_old_requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = tmp_path / "requirements.txt"
    wanted.write_text("no-such-package[extra]>=1,<2  # tested 1.0\nnumpy>=1,<1.1\n")
    monkeypatch.setattr(doctor, "REQUIREMENTS", wanted)
    missing, old = doctor.requirements()
    assert missing.state == "FAIL" and missing.advice == "pip install 'no-such-package[extra]>=1,<2'"
    assert old.state == "warn" and "<1.1" in old.advice
    assert not doctor.able([missing]) and doctor.able([old])


def test_damaged_weights_are_noticed(tmp_path: Path) -> None:
    pickled, tensors = tmp_path / "model.ckpt", tmp_path / "model.safetensors"
    torch.save({"weight": torch.zeros(1000)}, pickled)
    save_file({"weight": torch.zeros(1000)}, tensors)
    (tmp_path / "config.json").write_text("{}")
    assert doctor.damage(tmp_path) == ""
    with zipfile.ZipFile(pickled) as archive:  # one byte of the stored tensor
        place = max(info.header_offset for info in archive.infolist() if info.file_size == 4000) + 1000
    content = bytearray(pickled.read_bytes())
    content[place] ^= 1
    pickled.write_bytes(content)
    assert "damaged inside" in doctor.damage(pickled)
    pickled.write_bytes(content[:2000])
    assert "not a PyTorch file" in doctor.damage(pickled)
    tensors.write_bytes(tensors.read_bytes()[:-10])
    assert doctor.damage(tensors) == "10 bytes are missing at its end"
    assert doctor.damage(tmp_path / "other") == "no such file"


def test_a_whole_file_that_is_not_the_published_i3d_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "i3d.pt")
    files = {"i3d": str(tmp_path / "i3d.pt")}
    [found] = [each for each in doctor.user_files(files) if each.name == "i3d"]
    assert (found.state, found.found) == ("note", f"{tmp_path}/i3d.pt, whole")
    assert found.advice == "but not the published file (values are then not called FVD)"
    monkeypatch.setattr(doctor, "I3D_SHA256", hashlib.sha256((tmp_path / "i3d.pt").read_bytes()).hexdigest())
    assert [each.state for each in doctor.user_files(files) if each.name == "i3d"] == ["ok"]


def test_an_old_build_lock_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert list(doctor.build_locks()) == []  # a build may be running
    os.utime(lock, (time.time() - 3600,) * 2)
    (finding,) = doctor.build_locks()
    assert finding.state == "warn" and str(lock) in finding.advice


def test_folders_are_looked_at(folder: Path, source: Source, tmp_path: Path) -> None:
    """What each is, whether it is whole; exit code 1 where one is not, with the reason."""
    looks = {
        folder: "a converted model of prompts",
        source.run: "a run stopped at step 7, whose checkpoint is whole",
        source.run.parent / "video": "a video tokenizer, 64 codes",
        make_tokens(tmp_path / "tokens", "t"): f"a token dataset, {len(CAPTIONS)} samples in 1 shards",
    }
    for path, said in looks.items():
        [finding] = doctor.folder_lines(str(path))
        assert finding.state == "ok" and finding.advice.startswith(said)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "tokenizer.model").unlink()
    (tmp_path / "empty").mkdir()
    for path, said in (
        (broken, "tokenizer.model: missing"),
        (tmp_path / "empty", "no video files below it"),
        (tmp_path / "no", "no such folder"),
    ):
        [finding] = doctor.folder_lines(str(path))
        assert finding.state == "warn" and said in finding.advice
    assert doctor.main([str(broken)]) == 1


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder of videos of a person: one whole, one cut off, one short, one HDR; a table that names one more."""
    folder = tmp_path / "videos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), np.uint8)
    for name, frames in (("whole", 40), ("cut", 40), ("short", 5)):
        write_mp4(folder / f"{name}.mp4", noise[:frames])
    content = (folder / "cut.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(content[: len(content) // 2])
    write(folder / "hdr.mp4", "BT.2020 limited", "yuv420p10le", count=20, color_trc=16)
    rows = "".join(f"{name}.mp4,it is {name}\n" for name in ("whole", "cut", "short", "hdr", "gone"))
    (tmp_path / "captions.csv").write_text("file,caption\n" + rows)
    return tmp_path


def test_videos_are_looked_at_before_anything_is_made_of_them(mine: Path) -> None:
    table, folder = mine / "captions.csv", mine / "videos"
    found = {each.name: each for each in doctor.folder_lines(str(table), str(folder))}
    assert found["usable"].found == "1 of 5 files" and found["usable"].advice == "decoded to the end"
    assert "cut.mp4: " in found["damaged"].advice and "gone.mp4: io: " in found["missing"].advice
    assert "hdr.mp4: decode: frame 0: HDR (PQ) is not read" in found["damaged"].advice
    assert "short.mp4: 5 frames, a clip has 17" in found["short"].advice
    assert found["captions"].found == "5 of 5 videos"
    assert {each.state for each in found.values()} == {"ok", "note"}
    assert doctor.main([str(table), f"--folder={folder}"]) == 0, "what is left out harms nobody"
    assert doctor.main([str(table)]) == 1, "no video is there"
    assert doctor.main([str(folder)]) == 1, "no captions"


def test_a_row_that_names_no_file_at_all_hides_no_other(mine: Path) -> None:
    """A caption in the column of paths is longer than a name may be."""
    (mine / "captions.csv").write_text(f"file,caption\nwhole.mp4,it is whole\n{'so long ' * 50},nothing\n")
    found = {
        each.name: each for each in doctor.folder_lines(str(mine / "captions.csv"), str(mine / "videos"))
    }
    assert found["usable"].found == "1 of 2 files" and "too long" in found["missing"].advice


def test_what_keeps_videos_from_use_is_a_warning(mine: Path) -> None:
    folder = mine / "videos"
    captions = doctor.folder_lines(str(folder))[-1]
    assert (captions.state, captions.found) == ("warn", "0 of 4 videos")
    assert ".txt beside each video" in captions.advice
    for name in ("whole", "cut", "short", "hdr"):
        (folder / "run").mkdir(exist_ok=True)
        (folder / f"{name}.mp4").rename(folder / "run" / f"{name}.mp4")
    assert "kind class --model.condition.classes 1" in doctor.folder_lines(str(folder))[-1].advice
    (folder / "run" / "cut.mp4").rename(folder / os.fsdecode(b"caf\xe9.mp4"))
    [line] = doctor.folder_lines(str(folder))
    assert line.state == "warn" and r"cannot hold id 'caf\udce9.mp4'; rename it in UTF-8" in line.advice
    (mine / "captions.csv").write_text("file,caption\nwhole.mp4,b\n")
    [line] = doctor.folder_lines(str(mine / "captions.csv"), str(mine / os.fsdecode(b"caf\xe9")))
    assert line.state == "warn" and "rename it in UTF-8" in line.advice
    (mine / "captions.csv").write_text("name,text\na.mp4,b\n")
    [line] = doctor.folder_lines(str(mine / "captions.csv"))
    assert line.state == "warn" and "no column of paths" in line.advice


def test_pictures_in_another_order_than_their_names_are_a_warning(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("path,caption\nplain,a clip\nsecond,its second take\n")
    trees.frames(tmp_path / "plain", 17, "{}.png")
    trees.frames(tmp_path / "second", 17, "{}-v2.png")
    order = next(each for each in doctor.folder_lines(str(table)) if each.name == "order")
    assert (order.state, order.found) == ("warn", "1 folders")
    assert f"{tmp_path / 'second'} plays 10-v2.png before 2-v2.png; if that is wrong" in order.advice


def test_of_many_videos_the_others_are_opened(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "DECODING_S", 0)
    usable = doctor.folder_lines(str(mine / "videos"))[1]
    assert usable.advice == "of 4 one frame was decoded, of the others all"


def test_a_gpu_that_torch_cannot_use_is_no_silent_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [each.state for each in doctor._gpus()] == ["note"]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    [gpu] = doctor._gpus()
    assert gpu.state == "warn" and torch.__version__ in gpu.advice
