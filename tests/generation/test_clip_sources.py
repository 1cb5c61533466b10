"""A converted folder and a video tokenizer as sources of clips: the same clips as the files that they write."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from megavrc.errors import UserError
from megavrc.evaluation.clip_files import ArrayClips, open_clips
from megavrc.evaluation.clip_source import PlannedClip, read_whole, wholes
from megavrc.evaluation.protocols import PRESETS, FVDProtocol, Window, WindowClips
from megavrc.generation.clip_sources import open_source
from megavrc.generation.evaluate_all import all_metrics
from megavrc.generation.evaluate_distance import fvd
from megavrc.generation.folder import load_folder
from megavrc.generation.to_files import clips_to_write, generate_files
from megavrc.model.clips import sampling_settings
from megavrc.results import read_result
from megavrc.tokenizers import OmniTokenizer

TEXTS = ["a red square moves left", "a blue dog moves up", "a red square moves left"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.jsonl"
    rows = [{"id": str(number), "caption": text} for number, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_generated_clips_are_those_of_the_command(folder: Path, plan: Path, tmp_path: Path) -> None:
    source = open_source(folder, plan, seed=3, batch=2)
    assert [clip.prompt for clip in source.clips] == TEXTS and source.length(0) == 17
    frames = [read_whole(source, index) for index in range(3)]
    assert frames[0].shape == (17, 16, 16, 3)
    loaded = load_folder(folder)
    one = loaded.generate(TEXTS[1], seed=4)[1][0].numpy()
    assert np.array_equal(frames[1], one)
    assert not np.array_equal(frames[0], frames[2])  # one prompt, two seeds
    assert np.array_equal(source.read(0, range(0, 16, 3)), frames[0][:16:3])
    settings = sampling_settings(loaded.sampling, {})
    generate_files(loaded, clips_to_write(TEXTS, [], 3), tmp_path / "made", settings)
    written = open_clips(tmp_path / "made")
    assert [clip.prompt for clip in written.clips] == TEXTS
    grey = [clip.mean(axis=-1).ravel() for clip in (read_whole(written, 1), frames[1], frames[0])]
    assert np.corrcoef(grey)[0, 1] > 0.9 > np.corrcoef(grey)[0, 2]  # less what H.264 takes


def test_identity_names_model_prompt_and_seed(folder: Path, plan: Path, tmp_path: Path) -> None:
    first, same, other = (open_source(folder, plan, seed=seed) for seed in (0, 0, 1))
    names = [source.identity(index) for source in (first, other) for index in range(3)]
    assert len(set(names)) == 6 and same.identity(1) == names[1]
    (tmp_path / "SHA256SUMS").write_text("of other weights")
    loaded = same.folder  # type: ignore[attr-defined]
    cooler = {**loaded.sampling, "temperature": 0.5}
    for other in (replace(loaded, path=tmp_path), replace(loaded, sampling=cooler)):
        assert replace(same, folder=other).identity(1) not in names  # type: ignore[type-var]


def test_reconstructions(folder: Path, source, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (20, 16, 16, 3), np.uint8) for _ in range(2)]
    real = ArrayClips("real", [PlannedClip("a"), PlannedClip("b")], arrays)
    made = open_source(source.run.parent / "video", like=real)
    assert [clip.key for clip in made.clips] == ["a", "b"] and made.length(0) == 20
    whole = source.video.decode(source.video.encode(torch.from_numpy(arrays[1][None, :17])))[0].numpy()
    assert np.array_equal(made.read(1, range(17)), whole)
    assert made.read(1, range(16)).shape == (16, 16, 16, 3)
    assert made.identity(0) != made.identity(1) != real.identity(1)
    net = copy.deepcopy(source.video.net)
    next(net.parameters()).data.add_(1)
    assert replace(made, tokenizer=OmniTokenizer(net)).identity(0) != made.identity(0)  # type: ignore[type-var]
    assert replace(made, of=replace(real, arrays=arrays[::-1])).identity(0) == made.identity(1)  # type: ignore[type-var]
    with pytest.raises(UserError, match="a: the video tokenizer does not take it"):
        made.read(0, range(5), size=15)


def test_what_cannot_be_made_is_refused(folder: Path, source, tmp_path: Path) -> None:
    unnamed = ArrayClips("real", [PlannedClip("a")], [np.zeros((17, 16, 16, 3), np.uint8)])
    with pytest.raises(UserError, match="a prompt a clip, and a has none"):
        open_source(folder, like=unnamed)
    with pytest.raises(UserError, match="--planned"):
        open_source(folder)
    with pytest.raises(UserError, match="no real clips"):
        open_source(source.run.parent / "video")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json"):
        open_source(tmp_path, like=unnamed)


def test_a_tokenizer_reconstructs_what_the_protocol_chooses(source, tmp_path: Path) -> None:
    """Three of twelve real clips; those that are too short are not asked for."""
    torch.jit.script(Mean()).save(str(tmp_path / "net.pt"))
    rng = np.random.default_rng(0)
    clips = {f"c{i:02d}": rng.integers(0, 256, (17 - i % 2 * 9, 16, 16, 3), np.uint8) for i in range(12)}
    np.savez(tmp_path / "real.npz", **clips)
    how = {"i3d": tmp_path / "net.pt", "protocol": "custom", "change": ["n=3", "select=first"]}
    fvd(tmp_path / "real.npz", source.run.parent / "video", json=tmp_path / "r.json", **how)
    measured = read_result(tmp_path / "r.json")["protocol"]["measured"]
    assert [row["n"] for row in measured] == [3]


def test_all_metrics_compare_the_windows_of_a_tokenizer_as_the_distance_alone_does(
    source, tmp_path: Path
) -> None:
    """And what says which clips were measured says what made them."""
    torch.jit.script(Mean()).save(str(tmp_path / "net.pt"))
    clips = np.random.default_rng(0).integers(0, 256, (4, 33, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "real.npz", clips=clips)
    tokenizer = source.run.parent / "video"
    how: dict[str, Any] = {"i3d": tmp_path / "net.pt", "protocol": "custom"}
    fvd(tmp_path / "real.npz", tokenizer, json=tmp_path / "fvd.json", **how)
    all_metrics(tmp_path / "real.npz", tokenizer, tmp_path / "all", **how)
    alone, among = (read_result(tmp_path / name) for name in ("fvd.json", "all/fvd.json"))
    assert alone["cases"] == among["cases"]
    sources = read_result(tmp_path / "all/drift.json")["protocol"]["sources"]
    assert [row.get("made_with") for row in sources if row["name"] == str(tokenizer)] == [
        {"tokenizer": source.video.sha256, "precision": source.video.precision}
    ]


def test_a_protocol_has_as_many_generated_clips_where_real_ones_are_few(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts come again, with other seeds; of a custom protocol each real clip is answered once."""
    torch.jit.script(Mean()).save(str(tmp_path / "net.pt"))
    monkeypatch.setitem(PRESETS, "latte", FVDProtocol("latte", n=7, size=None))
    clips = np.random.default_rng(0).integers(0, 256, (3, 17, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "real.npz", clips=clips, prompts=np.array(["a red dog", "a blue dog", "a dog"]))
    for change, n in ((None, 7), (["n=6"], 3)):
        how = {"i3d": tmp_path / "net.pt", "change": change, "json": tmp_path / "r.json", "floor": False}
        fvd(tmp_path / "real.npz", folder, **how)
        [made] = read_result(tmp_path / "r.json")["protocol"]["measured"]
        assert made["n"] == n and made["made_with"]["sampling"]["later_temperature"] == 0.5
    like = WindowClips(open_source(tmp_path / "real.npz"), [Window(i % 3, range(16)) for i in range(7)])
    source = open_source(folder, like=like)
    assert not np.array_equal(source.read(0, range(17)), source.read(3, range(17)))


def test_windows_of_clips_are_clips(source) -> None:
    """What a tokenizer makes of them is compared with the frames that it saw."""
    arrays = [np.random.default_rng(i).integers(0, 256, (40, 16, 16, 3), np.uint8) for i in range(2)]
    real = ArrayClips("real", [PlannedClip("a"), PlannedClip("b#1", "a dog")], arrays)
    wanted = [Window(1, range(4, 37, 2)), Window(0, range(0, 33, 2)), Window(1, range(4, 37, 2))]
    windows = WindowClips(real, wanted, stride=3)
    assert [clip.key for clip in windows.clips] == ["b#1", "a", "b#1again1"]
    assert wholes(windows) == ["b", "a", "b"] and windows.length(0) == 49
    assert np.array_equal(windows.read(0, range(0, 49, 3)), arrays[1][4:37:2])
    assert windows.identity(0) == windows.identity(2) != WindowClips(real, wanted).identity(0)
    made = open_source(source.run.parent / "video", like=windows).read(1, range(0, 49, 3))
    clip = torch.from_numpy(arrays[0][None, 0:33:2])
    assert np.array_equal(made, source.video.decode(source.video.encode(clip))[0].numpy())


class Mean(nn.Module):
    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        return x.float().mean(dim=(2, 3, 4))
