"""What the study measures of a run beside bits and scores: probes, temperatures, frames from true ones, worst clips."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import outcome
import probes
import pytest
import sampling
import sheets
import torch
import tuning

from megavrc.errors import UserError
from megavrc.files import write_json
from megavrc.model import VRC, ClipRequest, ModelConfig, VideoPipeline
from megavrc.model.condition import Condition
from megavrc.model.config import CompressionConfig, ConditionConfig
from megavrc.video.scenes import Background, Object, Scene


def test_cells_change_where_an_object_was_in_this_latent_frame_or_the_one_before() -> None:
    """A square of 16 pixels moves right 2 a frame from x = 12; nothing else moves. Cells are 8 pixels wide."""
    square = Object("red", "square", 8, 12, 28, "right", 2, True)
    waves = ((0.1, 0.0, 0.0), (0.0, 0.1, 0.0))
    scene = Scene("scenes", (square,), None, Background(waves, None))
    changed = probes.changed_cells(asdict(scene), 64).reshape(4, 8, 8)
    rows = changed.any(axis=2)
    assert np.flatnonzero(rows.any(axis=0)).tolist() == [2, 3, 4], "the square spans y = 20 to 36"
    columns = changed.any(axis=1)
    assert np.flatnonzero(columns[0]).tolist() == [0, 1, 2, 3], "frames 0 to 4: x = 4 to 28"
    assert np.flatnonzero(columns[3]).tolist() == [2, 3, 4, 5, 6], "frames 9 to 16: x = 22 to 52"
    moving = Scene("scenes", (square,), None, Background(waves, "left"))
    assert probes.changed_cells(asdict(moving), 64).all()


def test_a_clip_in_which_all_changes_has_no_gap() -> None:
    bits = np.array([[[1.0, 3.0]], [[1.0, 3.0]]])
    found = probes.cell_scores(bits, np.array([[[False, True]], [[True, True]]]))
    assert found["changed"].tolist() == [3, 2]
    assert found["gap"][0] == 2 and np.isnan(found["gap"][1]) and np.isnan(found["unchanged"][1])


def test_a_model_that_copies_is_hurt_by_noise_by_its_share_and_by_histories_that_differ() -> None:
    """It gives 0 bits to a cell like that of the frame before, else 4; so noise of share s costs 4 s a cell."""
    still = np.repeat(np.random.default_rng(1).integers(50, size=(40, 1, 8, 8)), 5, axis=1)

    def copying(ids: np.ndarray) -> np.ndarray:
        return 4.0 * (ids[:, 1:] != ids[:, :-1]).reshape(len(ids), 4, 64)

    found = probes.disturbed_scores(copying, still, copying(still), vocab=50)
    assert found["noise"].mean() == pytest.approx(4 * 49 / 50, rel=0.1)
    assert found["noise_4"].mean() == pytest.approx(4 * 49 / 50, rel=0.2)
    assert np.all(found["frozen_history"] == 0), "each frame is like frame 0"
    assert found["other_history"].mean() == pytest.approx(4 * 49 / 50, rel=0.1)


def tiny(prediction: str) -> VRC:
    torch.manual_seed(0)
    config = ModelConfig(
        layers=1,
        width=32,
        heads=1,
        grid=4,
        frames=2,
        vocab=8,
        prediction=prediction,
        compression=CompressionConfig(4),
        condition=ConditionConfig(kind="class", classes=2, slots=1),
    )
    model = VRC(config)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model.eval()


@pytest.mark.parametrize("prediction", ["segment", "token"])
def test_frames_from_true_ones_are_those_of_the_clip_whose_history_they_have(prediction: str) -> None:
    """With a model's own clip as the truth, each frame has the history that it had; with another, frame 1 alone."""
    pipeline = VideoPipeline(tiny(prediction))
    request = ClipRequest(Condition.of(torch.tensor([0, 1])), [3, 4])
    own = pipeline.generate(request, "ids")
    each = sampling._drawn(pipeline, request, "each", own)
    assert torch.equal(each, own) and torch.equal(sampling._drawn(pipeline, request, "given", own), own)
    other = own.clone()
    other[:, 1] = (other[:, 1] + 1) % 8
    each = sampling._drawn(pipeline, request, "each", other)
    assert torch.equal(each[:, :2], own[:, :2]) and not torch.equal(each[:, 2], own[:, 2])


def point(entry: str, first: float, later: float, top_p: float, sound: float, whole: float) -> dict[str, Any]:
    scores = {
        name: {"value": value, "low": 0, "high": 1, "n": 2}
        for name, value in (("all", sound), ("whole", whole))
    }
    by_clip = {"all": f"{sound} -", "whole": f"{whole} 0"}
    return {
        "entry": entry,
        "temperatures": [first, later],
        "top_p": top_p,
        "scores": scores,
        "by_clip": by_clip,
    }


def test_the_best_point_has_most_sound_clips_then_most_whole_ones_then_stands_first() -> None:
    points = [
        point("free", 1, 1, 1, 0, 0.5),
        point("free", 1, 0.7, 1, 0.1, 0.2),
        point("free", 1, 0.5, 1, 0, 0.9),
    ]
    assert tuning.best(points) == {"temperatures": [1, 0.7], "top_p": 1}
    assert tuning.best(points[::2]) == {"temperatures": [1, 0.5], "top_p": 1}
    assert tuning.best([points[0], point("free", 0.7, 1, 1, 0, 0.5)]) == {"temperatures": [1, 1], "top_p": 1}


def test_all_points_and_probes_are_in_the_result(tmp_path: Path) -> None:
    points = [point("free", 1, 1, 1, 0.5, 0.5), point("free", 1, 0.7, 0.9, 0.25, 0.5)]
    best = {"free": tuning.best(points)}
    write_json(
        tmp_path / "tuning.json",
        {"checkpoint": 4, "split": "val", "clips": "k", "points": points, "best": best},
    )
    rows = [outcome._tuning_case(found) for found in outcome._cases_of(tmp_path / "tuning.json", "points")]
    assert [row["name"] for row in rows] == ["tuning free 1/1/1 4", "tuning free 1/0.7/0.9 4"]
    assert [row["config"]["best"] for row in rows] == [True, False]
    assert rows[1]["metrics"]["all"]["value"] == 0.25 and rows[1]["by_clip"]["whole"] == "0.5 0"
    probed = {"checkpoint": 4, "set": "val", "clips": "k", "by_clip": {"gap": "1 - 2", "noise": "- - -"}}
    row = outcome._probes_case(probed)
    assert row["name"] == "probes val 4" and row["metrics"]["gap"] == {"value": 1.5, "unit": "bits", "n": 2}
    assert "noise" not in row["metrics"], "no clip says anything"


@pytest.mark.parametrize(
    ("passes", "name"), [(1, "val 4"), ([8, 1, 1, 1], "val refined 4"), (8, "val refined everywhere 4")]
)
def test_bits_are_named_by_their_passes(passes: Any, name: str) -> None:
    part = {"value": 2.0, "low": 1.0, "high": 3.0}
    found = {"checkpoint": 4, "set": "val", "clips": "k", "later_passes": passes, "n": 2, "total": part}
    row = outcome._bits_case(found | {"frames": [part, part], "by_clip": ["1 1", "1 1"]})
    assert row["name"] == f"bits {name}" and row["config"]["later_passes"] == passes
    assert list(row["metrics"]) == ["total", "frame_0", "frame_1"]


def test_the_worst_clips_have_the_fewest_whole_frames(tmp_path: Path) -> None:
    curves = {"whole_by_latent_0": "1 1 1 0", "whole_by_latent_1": "1 0 1 0", "whole": "1 0 1 0"}
    write_json(tmp_path / "scores.json", {"by_clip": curves})
    assert sheets.worst_clips(tmp_path / "scores.json", 3) == [3, 1, 0]
    write_json(tmp_path / "old.json", {"by_clip": {"whole": "1 0 0"}})  # whose worst are not known
    with pytest.raises(
        UserError, match=r"old\.json: no whole_by_latent_0, \.\. of its clips; score them again"
    ):
        sheets.worst_clips(tmp_path / "old.json", 3)
