"""The doctor finds what is missing, damaged or stuck, and says what to do."""

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hf_source import CAPTIONS, Source, make_tokens
from safetensors.torch import save_file

from megavrc.launch import doctor

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
        finding = doctor.folder_line(str(path))
        assert finding.state == "ok" and finding.advice.startswith(said)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "tokenizer.model").unlink()
    for path, said in (
        (broken, "tokenizer.model: missing"),
        (tmp_path, "none of megavrc's folders"),
        (tmp_path / "no", "no such folder"),
    ):
        finding = doctor.folder_line(str(path))
        assert finding.state == "warn" and said in finding.advice
    assert doctor.main([str(broken)]) == 1
