"""Run folders on bad drives, and such that a stranger has been in: never from step 0, no traceback, no hang."""

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from failing_files import fail
from test_store import commit, steps

from megavrc.checkpoint import Lease, Retention, newest_good
from megavrc.checkpoint.format import describe
from megavrc.checkpoint.store import begin
from megavrc.config import run_command
from megavrc.errors import TransientError, UserError
from megavrc.files import sha256_json
from megavrc.hf.commands import verify
from megavrc.training.saving import check_space


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for step in (1, 2, 3):
        commit(tmp_path / "checkpoints", step)
    return tmp_path / "checkpoints"


def newest(store: Path) -> int:
    found = newest_good(store)
    assert found is not None
    return found.step


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ETIMEDOUT])
@pytest.mark.parametrize("part", ["checkpoints", "latest", "manifest.json", "model-00001", "state.json"])
def test_errors_that_pass_are_waited_for(
    store: Path, monkeypatch: pytest.MonkeyPatch, error: int, part: str
) -> None:
    failed = fail(monkeypatch, error, part, times=2)
    assert newest(store) == 3 and len(failed) == 2


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("part", ["checkpoints", "latest", "manifest.json"])
def test_errors_that_stay_never_mean_that_there_is_no_checkpoint(
    store: Path, monkeypatch: pytest.MonkeyPatch, error: int, part: str
) -> None:
    fail(monkeypatch, error, part)
    with pytest.raises(TransientError) as said:
        newest_good(store)
    assert os.strerror(error) in str(said.value) and "\n" not in str(said.value)


def test_one_that_cannot_be_read_is_passed_over_like_a_damaged_one(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, errno.EIO, "step-00000003")
    assert newest(store) == 2


def test_the_command_does_not_call_a_folder_whole_that_it_cannot_list(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(monkeypatch, errno.EACCES, "checkpoints")
    assert run_command(verify, [f"--model={store.parent}"]) == 2
    said = capsys.readouterr().err
    assert "checkpoints: Permission denied" in said and said.count("\n") == 1


def test_a_disk_that_fails_before_the_first_step_may_work_another_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = SimpleNamespace(like={"model": {"w": torch.empty(10)}})
    fail(monkeypatch, errno.EIO, ".space")
    with pytest.raises(TransientError, match="Input/output error"):
        check_space(tmp_path / "checkpoints", state, 1)  # type: ignore[arg-type]


def test_a_link_to_a_drive_that_is_gone_is_no_fresh_start(store: Path) -> None:
    moved = store.rename(store.with_name("drive"))
    store.symlink_to(moved)
    assert newest(store) == 3
    moved.rename(store.with_name("gone"))
    with pytest.raises(TransientError, match="is not there"):
        newest_good(store)
    store.unlink()
    store.write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        newest_good(store)


def test_pipes_and_folders_in_the_place_of_files(store: Path) -> None:
    for name in ("manifest.json", "state.json", "model-00001.safetensors"):
        file = store / "step-00000003" / name
        kept = file.rename(store / "kept")
        os.mkfifo(file)
        assert newest(store) == 2
        file.unlink()
        file.mkdir()
        assert newest(store) == 2
        file.rmdir()
        kept.rename(file)
    assert newest(store) == 3
    (store / "latest").unlink()
    for make in (os.mkfifo, os.mkdir):
        make(store / "latest")
        with pytest.raises(UserError, match=r"latest: not a regular file"):
            newest_good(store)
        (store / "latest").rmdir() if (store / "latest").is_dir() else (store / "latest").unlink()


@pytest.mark.parametrize(
    "state", [[], 5, {}, {"step": "3"}, {"step": True}, {"step": None}], ids=lambda state: json.dumps(state)
)
def test_a_state_of_the_wrong_shape_is_damage(store: Path, state: object) -> None:
    """Also where the hashes are made to fit."""
    folder = store / "step-00000003"
    (folder / "state.json").write_text(json.dumps(state))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.json"] = describe(folder / "state.json")
    del manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": sha256_json(manifest)}))
    assert newest(store) == 2
    Retention(1).apply(store / "step-00000003")  # looks into all states


@pytest.mark.parametrize(
    "change", [{"files": []}, {"files": {"../x": {}}}, {"groups": 5}, {"files": {"a": 1}}]
)
def test_a_manifest_of_the_wrong_shape_is_damage(store: Path, change: dict[str, object]) -> None:
    file = store / "step-00000003" / "manifest.json"
    manifest = json.loads(file.read_text()) | change
    del manifest["sha256"]
    file.write_text(json.dumps({**manifest, "sha256": sha256_json(manifest)}))
    assert newest(store) == 2


def test_what_cannot_be_deleted_stops_no_later_save(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a killed save's folder, nor a checkpoint that the run has gone back behind."""
    stuck = begin(store, 4)
    delete = shutil.rmtree

    def refuse(path: Path, *more: object) -> None:
        if path == stuck or "-old-" in path.name:
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))
        delete(path)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    for _ in range(3):
        commit(store, 3)
        assert newest(store) == 3 and (store / "latest").read_text() == "step-00000003"
    assert f"{stuck}: cannot be deleted" in caplog.text
    commit(store, 4)
    assert steps(store)[-1] == 4 and newest(store) == 4


# --- the lease ---------------------------------------------------------------------------------------------------


def test_a_lease_outlasts_errors_that_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Lease(tmp_path).release()
    failed = fail(monkeypatch, errno.EIO, "lease", times=3)
    Lease(tmp_path).release()
    assert len(failed) == 3
    failed += fail(monkeypatch, errno.ESTALE, "lease")
    with pytest.raises(TransientError, match="Stale file handle"):
        Lease(tmp_path)


def test_a_lease_folder_that_cannot_be_read_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = Lease(tmp_path)
    with monkeypatch.context() as patched:
        fail(patched, errno.EACCES, "lease")
        with pytest.raises(OSError, match="Permission denied"):
            Lease(tmp_path)
    holder.check()
    holder.release()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "5", "null", "{}", "[" * 100_000, "9" * 5_000, '{"pid": "x"}', '{"machine": []}', b"\xff\xfe"],
    ids=range(10),
)
def test_a_lease_of_the_wrong_shape_is_nobody_s(tmp_path: Path, content: str | bytes) -> None:
    Lease(tmp_path).release()
    file = max((tmp_path / "lease").glob("*.json"))
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.utime(file, (0, 0))
    Lease(tmp_path).release()


def test_a_pipe_in_the_place_of_a_lease(tmp_path: Path) -> None:
    Lease(tmp_path).release()
    file = max((tmp_path / "lease").glob("*.json"))
    file.unlink()
    os.mkfifo(file)
    (tmp_path / "lease" / "0x.json").write_text("")
    os.utime(file, (0, 0))
    Lease(tmp_path).release()
