"""docs/own_videos.md: every command runs as it stands there; what it says comes out. So does the notebook."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megavrc.config import load_config
from megavrc.training.tasks.tokenizer_config import TokenizerRunConfig
from megavrc.training.tasks.vrc_config import RunConfig
from megavrc.video import count_frames, read_clip, write_mp4
from megavrc.video.shapes_set import make_shapes

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "own_videos.md").read_text()
COMMANDS = re.findall(r"^    ((?:megavrc|export) .*)$", PAGE, re.MULTILINE)
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
SHARED = ROOT.parent / "shared" / "clips"
REAL = {  # name on the page -> real file, where there are any
    "bikes.mp4": "bikes.mp4",
    "telescope.mp4": "nasa_13013.mp4",
    "broken.mp4": "corrupted.mp4",
    "phone.mov": "rotated_90.mov",
}
DRAWN = (1, 2, 3, 4, 5, 6, 7, 8, 9)  # shape2 and shape9 are validation videos


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`megavrc` is this checkout's."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "megavrc"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m megavrc "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The folder and the table that the page speaks of, and drawn clips."""
    videos = tmp_path / "videos"
    videos.mkdir()
    make_shapes(tmp_path / "drawn", clips=len(DRAWN), val=0, heldout=0, frames=48, processes=1)
    entries = [json.loads(line) for line in (tmp_path / "drawn" / "manifest.jsonl").read_text().splitlines()]
    [table] = re.findall(r"```csv\n(.*?)```", PAGE, re.DOTALL)
    for number, entry in zip(DRAWN, entries, strict=True):
        (tmp_path / "drawn" / entry["path"]).rename(videos / f"shape{number}.mp4")
        table += f"shape{number}.mp4,{entry['caption']},,\n"
    (tmp_path / "captions.csv").write_text(table)
    for number, (name, real) in enumerate(REAL.items(), 3):
        drawn = videos / f"shape{number}.mp4"
        shutil.copyfile(SHARED / real if SHARED.is_dir() else drawn, videos / name)
    if not SHARED.is_dir():
        (videos / "broken.mp4").write_bytes(drawn.read_bytes()[: drawn.stat().st_size // 2])
        write_mp4(videos / "phone.mp4", read_clip(drawn, 0, 3))
        (videos / "phone.mp4").rename(videos / "phone.mov")
    shutil.rmtree(tmp_path / "drawn")
    return tmp_path


def check_what_is_there(folder: Path, clips: int) -> None:
    """What the page and the notebook both leave."""
    own = folder / "runs" / "own"
    for stage in ("tokenizer", "stage1", "stage2"):
        assert (own / stage / "complete.json").is_file() and list((own / stage / "previews").iterdir())
    made = [count_frames(clip) for clip in (own / "clips").glob("*.mp4")]
    assert made == [17] * clips
    assert "## drift" in (own / "metrics" / "metrics.md").read_text()


@pytest.mark.slow
def test_the_page_from_its_first_command_to_its_last(mine: Path, shell: None) -> None:
    assert len(COMMANDS) == 12
    script = "set -eo pipefail\n" + "\n".join(COMMANDS)
    done = subprocess.run(["bash", "-c", script], cwd=mine, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    [shown] = re.findall(r"```text\n(videos\n.*?)```", PAGE, re.DOTALL)
    lines = [re.sub(r": frame.*", "", re.sub(" +", " ", line)) for line in shown.splitlines()]
    assert len(lines) == 6 and [line for line in lines if line not in re.sub(" +", " ", done.stdout)] == []
    assert "manifest.jsonl: 14 videos (12 train, 2 val), 14 with a caption, 0 classes" in done.stdout
    assert (mine / "runs" / "own" / "tokens.png").is_file()
    failed = "".join(path.read_text() for path in (mine / "runs/own/tokens/failures").iterdir())
    assert "broken.mp4" in failed and "phone.mov" in failed
    check_what_is_there(mine, clips=2)


def test_the_options_for_real_fit_the_configurations() -> None:
    rows = re.findall(r"^\| (\d+x\d+.*?) \| (.+?) \| `(.+?)` \|$", PAGE, re.MULTILINE)
    assert len(rows) == 2
    for size, tokenizer, stages in rows:
        for name in ("image", "video"):
            model = load_config(RunConfig, ["--config", f"own_{name}", *stages.split()]).model
            assert model.grid * 8 == int(size.partition("x")[0])
        if tokenizer.startswith("`"):
            words = ["--config", "own_tokenizer", *tokenizer.strip("`").split()]
            config = load_config(TokenizerRunConfig, words)
            assert config.data.size == model.grid * config.model.patch and config.model.codes == model.vocab


def cells_of_code() -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_has_the_commands_of_the_page_and_no_outputs() -> None:
    found = [
        line for cell in cells_of_code() if cell.startswith("%%bash -e") for line in cell.splitlines()[1:]
    ]
    assert [line.partition(" --prompt")[0] for line in found] == [
        line.partition(" --prompt")[0] for line in COMMANDS if line.startswith("megavrc")
    ]
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count")


@pytest.mark.slow
def test_the_notebook_runs_where_nobody_has_videos(tmp_path: Path, shell: None) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    assert [kind for output in shown for kind in output["data"] if kind.startswith("image/")] == [
        "image/png",
        "image/gif",
    ]
    check_what_is_there(tmp_path, clips=1)
