"""FD-self: what it learns, what is refused, and what its trial orders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_sets import shapes
from numpy.typing import NDArray

from megavrc.errors import UserError
from megavrc.evaluation.clip_files import ArrayClips
from megavrc.evaluation.clip_source import PlannedClip
from megavrc.evaluation.distances import FLOOR, measure_distances, metric_names
from megavrc.evaluation.networks import open_network
from megavrc.evaluation.protocols import protocol_of
from megavrc.evaluation.self_network import COPIES, FEATURES, ClipConvolutions, load_self
from megavrc.evaluation.self_training import (
    RUNGS,
    WAYS,
    self_network,
    train_convolutions,
    try_network,
    what_is_told,
    with_fault,
)
from megavrc.files import read_json

Clips = NDArray[np.uint8]


def many(count: int, first: int = 0) -> ArrayClips:
    return shapes(count, first, "many")


def clips_of(source: ArrayClips) -> Clips:
    return np.stack(source.arrays)[:, :8]


def test_what_is_told_is_what_clips_differ_in(tmp_path: Path) -> None:
    words, targets = what_is_told(many(72), range(72))
    assert {"caption red", "caption circle", "caption left"} < set(words)
    assert "caption moves" not in words  # all have it
    said = dict(zip(words, targets.T, strict=True))
    red = [float("red" in (clip.prompt or "")) for clip in many(72).clips]
    assert said["caption red"].tolist() == red
    labels = ArrayClips("l", [PlannedClip(str(i), None, i % 2) for i in range(6)], many(6).arrays)
    assert what_is_told(labels, range(6))[0] == ["label 0", "label 1"]
    mute = ArrayClips("mute", [PlannedClip(str(i)) for i in range(6)], many(6).arrays)
    with pytest.raises(UserError, match="nothing to learn"):
        what_is_told(mute, range(6))


@pytest.fixture(scope="module")
def trained() -> Any:
    """A network trained for a few seconds: it need not pass."""
    source = many(96, first=1000)
    _, targets = what_is_told(source, range(96))
    network = train_convolutions(clips_of(source), targets, steps=12, batch=8)
    return self_network(network, clips_of(many(48)))


def test_training_is_the_same_each_time_and_leaves_the_random_state(trained: Any) -> None:
    source = many(24, first=1000)
    _, targets = what_is_told(source, range(24))
    before = torch.get_rng_state()
    one, other = (train_convolutions(clips_of(source), targets, steps=2, batch=4) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_folder_brings_the_network_back(trained: Any, tmp_path: Path) -> None:
    trained.save(tmp_path / "net", {"wrong": []})
    again = load_self(tmp_path / "net")
    clips = clips_of(many(4))
    np.testing.assert_array_equal(trained(clips), again(clips))
    assert again.name == "self" and trained(clips).shape == (4, FEATURES * (1 + COPIES))
    with pytest.raises(UserError, match="--change frames=8"):
        again(np.stack(many(1).arrays))
    (tmp_path / "net" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="missing or damaged"):
        open_network(str(tmp_path / "net"))
    trained.save(tmp_path / "bad", {"wrong": ["torn is not shown to be above real"]})
    with pytest.raises(UserError, match=r"did not pass its trial .torn is not shown"):
        open_network(str(tmp_path / "bad"))
    facts = read_json(tmp_path / "bad" / "network.json")
    (tmp_path / "bad" / "network.json").write_text(json.dumps(facts | {"format": 9}))
    with pytest.raises(UserError, match="newer megavrc"):
        open_network(str(tmp_path / "bad"))


def test_the_trial_names_what_is_not_in_order(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rung that changes nothing is not shown to be above real clips, one that changes everything is."""
    reference, real = clips_of(many(32)), clips_of(many(32, first=400))
    monkeypatch.setitem(RUNGS, "torn", lambda frames, rng: frames)
    monkeypatch.setitem(RUNGS, "frozen", lambda frames, rng: 255 - frames)
    report = try_network(trained, reference, real, draws=20)
    assert "torn is not shown to be above real" in report.protocol["wrong"]
    assert "frozen is not shown to be above real" not in report.protocol["wrong"]
    rows = {row["name"]: row["metrics"] for row in report.cases}
    assert rows["torn"]["fd-self"]["value"] == rows["real"]["fd-self"]["value"]
    assert len(rows["frozen"]["fd-random"]["samples"]) == COPIES
    ceiling = try_network(trained, reference, real, with_fault(real, "frozen"), draws=20)
    assert any("above reconstructed" in words for words in ceiling.protocol["wrong"])


def test_where_clips_run_as_well_backward_a_reversed_one_is_no_fault(trained: Any) -> None:
    reference, real = clips_of(many(32)), clips_of(many(32, first=400))
    for reversible in (False, True):
        report = try_network(trained, reference, real, draws=20, reversible=reversible)
        rows = [row["name"] for row in report.cases]
        assert "reversed" in rows and report.protocol["reversible"] is reversible
        judged = any(words.startswith("reversed") for words in report.protocol["wrong"])
        assert judged is not reversible  # of shapes; this network cannot tell it


def test_what_training_shows() -> None:
    clip, rng = clips_of(many(1))[0], np.random.default_rng(0)
    sharp = [np.abs(np.diff(way(clip, rng).astype(int), axis=2)).mean() for way in WAYS.values()]
    assert sharp[1] < 0.9 * sharp[0] and sharp[2] == pytest.approx(sharp[0]) == sharp[3]


def test_distances_of_it_have_their_own_name_and_random_networks_beside(trained: Any) -> None:
    protocol = protocol_of("custom", changes=["frames=8", "place=start", "n=32"])
    report = measure_distances("fvd", many(32), many(32, 500), None, trained, protocol, draws=20)
    row, floor = report.cases
    assert floor["name"] == FLOOR and "fvd" not in row["metrics"]
    assert row["metrics"]["fd-self"]["low"] <= row["metrics"]["fd-self"]["value"]
    assert len(row["metrics"]["fd-random"]["samples"]) == len(floor["metrics"]["fd-random"]["samples"]) == 5
    assert report.protocol["detector"]["dims"] == FEATURES
    names = {metric_names(kind, name) for kind in ("fvd", "kvd") for name in ("self", "random")}  # type: ignore[arg-type]
    assert names == {"fd-self", "kd-self", "fd-random", "kd-random"}


def test_rungs() -> None:
    clips = clips_of(many(3))
    assert np.array_equal(with_fault(clips, "reversed"), clips[:, ::-1])
    assert np.array_equal(with_fault(clips, "frozen"), np.repeat(clips[:, :1], 8, axis=1))
    shuffled = with_fault(clips, "shuffled")
    assert all(
        np.array_equal(np.sort(a, axis=0), np.sort(b, axis=0)) for a, b in zip(clips, shuffled, strict=True)
    )
    torn = with_fault(clips, "torn")
    assert np.array_equal(torn[:, 0], clips[:, 0]) and (torn[:, 1:] != clips[:, 1:]).any()
    assert ClipConvolutions(3).answers.out_features == 3
