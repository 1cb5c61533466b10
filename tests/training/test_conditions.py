"""Captions and labels that a model does not see whole: said before a run starts, refused above a share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from token_sets import write_tokens

from megavrc.data.blend import TokenBlend
from megavrc.data.dataset import TokenDataset
from megavrc.errors import UserError
from megavrc.files import read_json, write_json
from megavrc.hf.card import training_rows
from megavrc.model import ConditionConfig, ModelConfig
from megavrc.tokenizers import TextTokenizer
from megavrc.training.tasks import conditions
from megavrc.training.tasks.conditions import check_conditions
from megavrc.training.tasks.vrc import VRCTask
from megavrc.training.tasks.vrc_config import BlendPart, RunConfig, TokenDataConfig

SHORT, LONG = "a red ball rolls", "a red ball rolls, and then it rolls on and on until it is gone"
Given = tuple[str | None, int | None]


def dataset(folder: Path, given: Sequence[Given], classes: list[str] | None = None, shards: int = 2) -> str:
    """Images of one token with these captions and labels."""
    parts = [
        [
            (f"{number}-{index}", np.zeros((1, 8, 8), np.int64), {"caption": caption, "label": label})
            for index, (caption, label) in enumerate(given[number::shards])
        ]
        for number in range(shards)
    ]
    return str(write_tokens(folder, {"train": parts}, (1, 8, 8), 512, classes=classes))


def run(folder: Path, paths: Sequence[str], condition: ConditionConfig, **data: Any) -> RunConfig:
    text = folder / "tokenizer.model"
    TextTokenizer.train([SHORT, LONG], text, 60)
    blend = [BlendPart(path) for path in paths]
    return RunConfig(
        run_dir=str(folder / "run"),
        stage="image",
        model=ModelConfig(frames=0, layers=1, condition=condition),
        data=TokenDataConfig(blend=blend, text_tokenizer=str(text), **data),
    )


def text_condition() -> ConditionConfig:
    return ConditionConfig(vocab=64, slots=8)


def test_cut_captions_are_said_and_refused_above_a_share(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = dataset(tmp_path / "one", [(SHORT, None)] * 20 + [(LONG, None)] * 2)
    with pytest.raises(UserError, match=r"of 22 samples.* 9\.09% are cut to 7 tokens.*data\.max_incomplete"):
        VRCTask(run(tmp_path, [path], text_condition()))
    task = VRCTask(run(tmp_path, [path], text_condition(), max_incomplete=0.1))
    assert "9.09% are cut to 7 tokens" in caplog.text
    assert task.text is not None and f"the longest has {len(task.text.ids(LONG))}" in caplog.text
    state = {"config": {"stage": "image", "train": {"global_batch": 1}, "data": {"path": path}, "seed": 0}}
    rows = training_rows(
        {**state, "step": 1, "facts": task.facts, "identity": {"data": task.identity["data"]["0"]}}, tmp_path
    )
    assert "9.09% are cut to 7 tokens" in rows["incomplete samples"]
    caplog.clear()
    enough = VRCTask(run(tmp_path, [path], ConditionConfig(vocab=64, slots=64)))
    assert not caplog.records and "incomplete" not in enough.facts


def test_a_run_that_resumes_is_not_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = dataset(tmp_path / "one", [(LONG, None)] * 4)
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    VRCTask(run(tmp_path, [path], text_condition()))
    assert "100.00% are cut" in caplog.text


def test_one_missing_caption_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = dataset(tmp_path / "one", [(None, None)] + [(SHORT, None)] * 39)
    task = VRCTask(run(tmp_path, [path], text_condition()))
    assert "2.50% have no caption and train without one" in caplog.text
    items = [task.source[index] | {"position": index} for index in range(len(task.source))]
    missing = [item["caption"] for item in items].index(None)
    rows = task.collate(items)["condition"].values
    null = task.config.model.condition
    assert rows[missing].tolist() == [0] * (null.slots - 1) + [2]
    assert all(row.count(0) < null.slots - 1 for n, row in enumerate(rows.tolist()) if n != missing)


def test_one_of_thousands_is_known_from_the_count_of_the_dataset(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "SAMPLES", 200)  # looked at, every third of 402
    path = dataset(tmp_path / "one", [(SHORT, None), (None, None)] + [(SHORT, None)] * 400, shards=1)
    said = "one: 1 videos of split train have no caption"
    VRCTask(run(tmp_path, [path], text_condition()))
    assert said not in caplog.text  # none of the samples looked at, and nobody counted
    info = tmp_path / "one" / "dataset.json"
    write_json(info, read_json(info) | {"without": {"train": {"caption": 1, "label": 402}}})
    VRCTask(run(tmp_path, [path], text_condition()))
    assert f"{said} and train without one" in caplog.text
    with pytest.raises(UserError, match=rf"{said}; correct that, or allow it with data.max_incomplete"):
        VRCTask(run(tmp_path, [path], text_condition(), max_incomplete=0.0))


@pytest.mark.parametrize("caption", [None, "", " \n"])
def test_no_caption_at_all_is_refused(tmp_path: Path, caption: str | None) -> None:
    path = dataset(tmp_path / "one", [(caption, None)] * 4)
    with pytest.raises(UserError, match=r"100\.00% have no caption"):
        VRCTask(run(tmp_path, [path], text_condition()))


@pytest.mark.parametrize("records", [{"proof": None}, {"proof": {}, "without": None}, {"without": {}}])
def test_records_that_say_nothing_are_none(tmp_path: Path, records: dict[str, Any]) -> None:
    path = dataset(tmp_path / "one", [(SHORT, None)] * 4)
    info = tmp_path / "one" / "dataset.json"
    write_json(info, read_json(info) | records)
    VRCTask(run(tmp_path, [path], text_condition()))


def test_a_missing_label_is_the_null_class(tmp_path: Path) -> None:
    condition = ConditionConfig(kind="class", classes=2)
    path = dataset(tmp_path / "one", [(None, None)] + [(None, 1)] * 39, ["ball", "bike"])
    task = VRCTask(run(tmp_path, [path], condition))
    items = [task.source[index] | {"position": index} for index in range(len(task.source))]
    assert sorted(set(task.collate(items)["condition"].values.tolist())) == [1, 2]
    assert task.facts["classes"] == ["ball", "bike"]
    assert {task._label(item) for item in items} == {"no class", "class bike"}


def test_classes_of_a_blend_are_compared_for_models_of_classes(tmp_path: Path) -> None:
    one = dataset(tmp_path / "one", [(SHORT, 0)] * 4, ["ball"])
    two = dataset(tmp_path / "two", [(SHORT, 0)] * 4, ["bike"])
    VRCTask(run(tmp_path, [one, two], text_condition()))
    with pytest.raises(UserError, match=r"data\.blend: classes is \['ball'\] .*\['bike'\]"):
        VRCTask(run(tmp_path, [one, two], ConditionConfig(kind="class", classes=1)))


def test_each_part_of_a_blend_is_looked_at(tmp_path: Path) -> None:
    one = dataset(tmp_path / "one", [(SHORT, None)] * 400)
    two = dataset(tmp_path / "two", [(LONG, None)] * 4)
    with pytest.raises(UserError, match="two: of 4 samples looked at, the captions of 100"):
        VRCTask(run(tmp_path, [one, two], text_condition()))


def test_few_samples_of_many_are_looked_at(tmp_path: Path) -> None:
    path = dataset(tmp_path / "one", [(SHORT, None), (LONG, None)] * 5000, shards=1)
    text = TextTokenizer.train([SHORT, LONG], tmp_path / "tokenizer.model", 60)
    found = check_conditions(TokenBlend([TokenDataset(path)]), text_condition(), text, 1.0)
    assert 1024 <= found.samples <= 2048 and 0.4 < found.share < 0.6
