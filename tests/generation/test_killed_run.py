"""`kill -9` of generation between two files of a batch."""

import json
import multiprocessing
import os
import signal
from pathlib import Path
from unittest.mock import patch

from megavrc.generation.folder import load_folder
from megavrc.generation.to_files import clips_to_write, generate_files
from megavrc.model.clips import sampling_settings
from megavrc.video import write_mp4


def test_a_killed_run_leaves_no_clip_that_its_list_does_not_name(folder: Path, tmp_path: Path) -> None:
    """The clip that was whole is there, the other one is made: none twice."""
    loaded, out = load_folder(folder), tmp_path / "out"
    wanted, settings = clips_to_write(["a red square", "a blue dog"], [], seed=3), sampling_settings({})

    def write_and_die(*words: object) -> None:
        write_mp4(*words)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        with patch("megavrc.generation.to_files.write_mp4", write_and_die):
            generate_files(loaded, wanted, out, settings, frames=5)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and len(list(out.glob("*.mp4"))) == 1
    assert generate_files(loaded, wanted, out, settings, frames=5) == 1
    names = sorted(path.stem for path in out.glob("*.mp4"))
    lines = [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]
    assert names == sorted(line["id"] for line in lines) == sorted(clip.name for clip in wanted)
