"""Tokenization as a job array on a real SLURM: stopped and killed tasks come back, and the shards are the same."""

import json
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from cluster import missing, processes, running_cluster, wait_for
from held import Held
from runs import ROOT
from tiny import save_tokenizer

from megavrc.launch.requeue import attempts, attempts_file
from megavrc.tokenization.job import plan, run
from megavrc.tokenization.result import finalize
from megavrc.video import write_mp4
from megavrc.video.listing import list_folder
from megavrc.video.manifest import write_manifest

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")
SETTINGS = {"size": 32, "clips_per_shard": 2, "clip_batch": 2, "image_batch": 2, "images_per_video": 2}


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    """A manifest of eight videos, and a tokenizer."""
    folder = tmp_path / "videos"
    random = np.random.default_rng(0)
    for number in range(8):
        folder.mkdir(exist_ok=True)
        write_mp4(folder / f"{number}.mp4", random.integers(0, 256, (18, 32, 32, 3), np.uint8))
    write_manifest(folder / "manifest.jsonl", list_folder(folder, folder / "manifest.jsonl").entries)
    return folder / "manifest.jsonl", save_tokenizer(tmp_path / "tokenizer")


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "video").rglob("*.tar")}


def test_array_tasks_come_back(tmp_path: Path, sources: tuple[Path, Path]) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    for folder in (undisturbed, out):
        manifest, tokenizer = sources
        plan(manifest, folder, tokenizer, **SETTINGS)
    run(undisturbed, threads=1)
    finalize(undisturbed)
    with running_cluster() as cluster, ExitStack() as blocks:
        planned = [json.loads(line) for line in (out / "plan.jsonl").read_text().splitlines()]
        videos = [sources[0].parent / entry["path"] for entry in planned]
        held = [blocks.enter_context(Held(video)) for video in videos]
        words = ["submit", "--array=2", "--cpus=1", "--", "tools/tokenize_videos.py", "run", f"--out={out}"]
        environment = ["env", f"PYTHONPATH={ROOT}", "OMP_NUM_THREADS=1"]
        cluster.run(*environment, sys.executable, ROOT / "tools" / "submit_slurm.py", *words, cwd=ROOT)
        number = json.loads((out / "slurm" / "1" / "job.json").read_text())["job"]
        for task in (0, 1):  # and its first shard
            own = [file for file, entry in zip(held, planned, strict=True) if entry["shard"] == task]
            wait_for(f"task {task} reads", lambda own=own: any(file.opened() for file in own))
        blocks.close()  # for the next attempts, which may begin at once
        cluster.run("scancel", "--signal=USR1", f"{number}_0")
        for process, environ in processes(f"SLURM_ARRAY_JOB_ID={number}", "tokenize_videos.py"):
            assert "SRUN_CPUS_PER_TASK=1" in environ, "srun does not take the job's cores by itself"
            if "SLURM_ARRAY_TASK_ID=1" in environ and "SLURM_STEP_ID=0" in environ:
                os.kill(process, signal.SIGKILL)

        def codes(task: int) -> list[int]:
            return [attempt.exit_code for attempt in attempts(attempts_file(out, str(task)))]

        wait_for("both first attempts' end", lambda: codes(0) and codes(1))
        assert codes(0)[:1] == [75] and codes(1)[:1] == [137]
        wait_for("both tasks' end", lambda: codes(0) == [75, 0] and codes(1) == [137, 0])
    finalize(out)
    assert shards(out) == shards(undisturbed)
    manifests = [
        json.loads((folder / "video" / "manifest.json").read_text()) for folder in (out, undisturbed)
    ]
    assert manifests[0]["shards"] == manifests[1]["shards"] and len(shards(out)) == 4
