"""Starting from another run: what is loaded, what is fresh, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from megavrc.checkpoint import write
from megavrc.errors import UserError
from megavrc.model import VRC, CompressionConfig, ConditionConfig, ModelConfig
from megavrc.training.stages import start_from

FACTS = {"video_tokenizer": "v1", "text_tokenizer": "t1", "image_source": "image"}


def model(frames: int, **changes: Any) -> VRC:
    settings: dict[str, Any] = {"layers": 2, "dropout": 0.0, "condition": ConditionConfig(vocab=40)} | changes
    return VRC(ModelConfig(frames=frames, **settings))


def trained_weights(net: VRC) -> VRC:
    """Weights that stand for a trained stage 1: nothing zero, nothing of its initial size."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


@pytest.fixture
def stage1(tmp_path: Path) -> tuple[Path, VRC]:
    """A finished image run and its model."""
    net = trained_weights(model(frames=0))
    save(tmp_path, net)
    for name in ("run.json", "complete.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path, net


def save(folder: Path, net: VRC, stage: str = "image", **facts: Any) -> None:
    weights = {name: parameter.detach() for name, parameter in net.named_parameters()}
    state = {"identity": {"stage": stage, "model": net.config.to_dict()}, "facts": FACTS | facts}
    write(folder / "checkpoints", 5, {"model": weights, "buffers": dict(net.named_buffers())}, state, keep=1)


def test_shared_weights_are_loaded_and_segments_are_fresh(stage1: tuple[Path, VRC]) -> None:
    folder, image = stage1
    video = model(frames=3)
    parts = start_from(video, FACTS, folder)
    theirs, mine = image.state_dict(), video.state_dict()
    assert set(parts["loaded"]) == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert {name.partition(".")[0] for name in parts["fresh"]} == {"compressor", "decompressor"}
    assert set(parts["loaded"]) | set(parts["fresh"]) == mine.keys()


def test_the_first_frame_is_predicted_as_in_stage_1(stage1: tuple[Path, VRC]) -> None:
    """Segments stand after the first frame in the sequence, so its loss does not change."""
    folder, image = stage1
    video = model(frames=3)
    start_from(video, FACTS, folder)
    ids, text = torch.randint(0, 512, (4, 4, 8, 8)), torch.randint(0, 40, (4, 8))
    first = image.eval()(ids[:, :1], text).loss_first
    assert video.eval()(ids, text).loss_first == pytest.approx(float(first), rel=1e-5)


def test_a_checkpoint_of_an_unfinished_stage_1_must_be_named(stage1: tuple[Path, VRC]) -> None:
    folder, _ = stage1
    (folder / "complete.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        start_from(model(frames=3), FACTS, folder)
    start_from(model(frames=3), FACTS, folder / "checkpoints" / "step-00000005")


@pytest.mark.parametrize(("key", "named"), [(key, key.split("_")[0]) for key in FACTS])
def test_other_tokenizers_and_image_sources_are_refused(
    stage1: tuple[Path, VRC], key: str, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        start_from(model(frames=3), {**FACTS, key: "another"}, stage1[0])


def test_classes_of_other_numbers_are_refused(tmp_path: Path) -> None:
    net = model(frames=3)
    save(tmp_path, net, "video", classes=["blue", "red"])
    with pytest.raises(UserError, match=r"init_from: class 0 is 'blue' and 'red', in .* and here"):
        start_from(net, FACTS | {"classes": ["red", "blue"]}, tmp_path)
    start_from(net, FACTS | {"classes": ["blue", "red", "cyan"]}, tmp_path)
    start_from(net, FACTS, tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"layers": 3}, "model.layers"),
        ({"rope_base": 50.0}, "model.rope_base"),
        ({"heads": 8}, "model.heads"),
        ({"condition": ConditionConfig(vocab=41)}, "model.condition"),
        ({"first_frame": "row"}, "model.first_frame"),
    ],
)
def test_other_models_are_refused(stage1: tuple[Path, VRC], changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        start_from(model(frames=3, **changes), FACTS, stage1[0])


def test_what_only_stage_2_has_may_differ(stage1: tuple[Path, VRC]) -> None:
    changes = {"dropout": 0.1, "decompressor_head": "own", "condition": ConditionConfig(vocab=40, drop=0.3)}
    parts = start_from(model(frames=3, **changes), FACTS, stage1[0])
    assert "decompressor_head.weight" in parts["fresh"]


def test_a_video_run_starts_from_a_video_run_on_other_data(tmp_path: Path) -> None:
    theirs = trained_weights(model(frames=3))
    save(tmp_path, theirs, stage="video")
    mine = model(frames=4, dropout=0.1)
    parts = start_from(mine, {**FACTS, "image_source": "clip"}, tmp_path)
    assert not parts["fresh"]
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in mine.state_dict().items())
    with pytest.raises(UserError, match=r"model\.compression was"):
        start_from(model(frames=3, compression=CompressionConfig(rate=16)), FACTS, tmp_path)
    with pytest.raises(UserError, match="text tokenizer"):
        start_from(mine, {**FACTS, "text_tokenizer": "another"}, tmp_path)


@pytest.mark.parametrize("stage", ["image", "video"])
def test_what_refines_is_fresh_where_the_other_run_had_none(tmp_path: Path, stage: str) -> None:
    theirs = trained_weights(model(frames=0 if stage == "image" else 3, first_frame="row"))
    save(tmp_path, theirs, stage)
    mine = model(frames=3, first_frame="row", refine=True, context_noise=0.1)
    parts = start_from(mine, {**FACTS, "image_source": "image"}, tmp_path)
    fresh = {name.partition(".")[0] for name in parts["fresh"]}
    assert fresh - {"compressor", "decompressor"} == {"partial", "row_partial"}
    assert ("compressor" in fresh) == (stage == "image")
    assert all(torch.equal(mine.state_dict()[name], theirs.state_dict()[name]) for name in parts["loaded"])
    assert (mine.partial.net[-1].weight == 0).all()  # and so it begins as the other one


def test_what_refines_is_loaded_where_it_was_trained(tmp_path: Path) -> None:
    theirs = trained_weights(model(frames=0, first_frame="row", refine=True))
    save(tmp_path, theirs)
    mine = model(frames=3, first_frame="row", refine=True)
    parts = start_from(mine, FACTS, tmp_path)
    assert "row_partial.hole" in parts["loaded"] and "partial.hole" in parts["fresh"]
    with pytest.raises(UserError, match=r"model\.refine was True in .*, it is False here"):
        start_from(model(frames=3, first_frame="row"), FACTS, tmp_path)


def test_an_image_run_starts_from_images_only(stage1: tuple[Path, VRC], tmp_path: Path) -> None:
    image = model(frames=0)
    assert not start_from(image, FACTS, stage1[0])["fresh"]
    assert torch.equal(image.head.weight, stage1[1].head.weight)
    save(tmp_path / "video", model(frames=3), stage="video")
    with pytest.raises(UserError, match="is a run of stage 'video', this is stage image"):
        start_from(image, FACTS, tmp_path / "video")


def test_no_spike_when_stage_2_starts(stage1: tuple[Path, VRC]) -> None:
    """From stage-1 weights the losses of the first steps stay below those of a model that knows nothing."""
    folder = stage1[0]
    torch.manual_seed(2)
    ids, text = torch.randint(0, 16, (4, 1, 8, 8)).repeat(1, 4, 1, 1), torch.randint(0, 40, (4, 8))
    image = model(frames=0)
    _train(image, ids[:, :1], text, 30)
    save(folder, image)
    video = model(frames=3)
    start_from(video, FACTS, folder)
    losses = _train(video, ids, text, 15)
    fresh = torch.log(torch.tensor(512.0))
    assert max(losses) < 2 * fresh
    assert losses[-1] < losses[0]


def _train(net: VRC, ids: torch.Tensor, text: torch.Tensor, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        loss = net(ids, text).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
