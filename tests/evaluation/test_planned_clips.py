"""Every command that takes clips refuses a set that is not the planned one, and names the clip."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from clip_folders import save_clip
from clip_sets import save_network

from megavrc.errors import UserError
from megavrc.generation.evaluate import alignment
from megavrc.generation.evaluate_all import all_metrics
from megavrc.generation.evaluate_clips import clipsim, drift, export, redundancy
from megavrc.generation.evaluate_distance import fvd, kvd
from megavrc.generation.evaluate_scenes import scenes
from megavrc.video import write_mp4
from megavrc.video.scenes import render_scene, scene
from megavrc.video.shapes import COMBINATIONS, caption

NAMES = ["one", "two", "three"]
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {  # of a folder -> the words
    "missing": (lambda folder: (folder / "two.mp4").unlink(), r"1 missing \(two\)"),
    "stale": (lambda folder: shutil.copy(folder / "two.mp4", folder / "old.mp4"), r"1 stale, .*\(old.mp4\)"),
    "doubled": (
        lambda folder: (folder / "manifest.jsonl").write_text((folder / "manifest.jsonl").read_text() * 2),
        "'one' stands",
    ),
    "unreadable": (
        lambda folder: (folder / "two.mp4").write_bytes(b"no video"),
        r"two(\.mp4| cannot be read)",
    ),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`good`, a folder of three drawn clips with its list, and the networks that metrics ask for."""
    world = tmp_path_factory.mktemp("world")
    (world / "good").mkdir()
    rows = []
    for index, name in enumerate(NAMES):
        shown = scene(0, index)
        write_mp4(world / "good" / f"{name}.mp4", render_scene(shown, size=32))
        row = {"id": name, "path": f"{name}.mp4", "split": "val", "caption": shown.caption}
        rows.append(json.dumps(row | {"attributes": asdict(shown)}) + "\n")
    (world / "good" / "manifest.jsonl").write_text("".join(rows))
    save_network(world / "net.pt")
    save_clip(world / "clip")
    return world


def of_shapes(folder: Path) -> Path:
    """The folder, its clips said to be of shapes."""
    path = folder / "manifest.jsonl"
    rows = [
        json.loads(line) | {"caption": caption(COMBINATIONS[0])} for line in path.read_text().splitlines()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


COMMANDS: dict[str, Callable[[Path, Path], Any]] = {  # of world and the damaged folder
    "all": lambda world, bad: all_metrics(world / "good", bad, bad / "out"),
    "all, real": lambda world, bad: all_metrics(bad, world / "good", bad / "out"),
    "fvd": lambda world, bad: fvd(world / "good", bad, i3d=world / "net.pt", protocol="custom"),
    "fvd, real": lambda world, bad: fvd(bad, world / "good", i3d=world / "net.pt", protocol="custom"),
    "kvd, against": lambda world, bad: kvd(
        world / "good", world / "good", bad, world / "net.pt", protocol="custom"
    ),
    "clipsim": lambda world, bad: clipsim(bad, clip=world / "clip"),
    "drift": lambda world, bad: drift(bad),
    "redundancy": lambda world, bad: redundancy(bad),
    "alignment": lambda world, bad: alignment(clips=of_shapes(bad)),
    "scenes": lambda world, bad: scenes(world / "good" / "manifest.jsonl", clips=bad),
    "export": lambda world, bad: export(bad, bad.parent / "out.npz", "npz"),
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_set_that_is_not_the_planned_one_is_refused(
    command: str, how: str, world: Path, tmp_path: Path
) -> None:
    bad = shutil.copytree(world / "good", tmp_path / "bad")
    damage, words = DAMAGES[how]
    damage(bad)
    with pytest.raises(UserError, match=words) as error:
        COMMANDS[command](world, bad)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.json")) and not (tmp_path / "out.npz").exists()
