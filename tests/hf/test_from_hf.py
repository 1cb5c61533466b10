"""From a converted folder back to the start of a run, and to a folder again."""

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from hf_source import Source, converted
from safetensors.torch import load_file

from megavrc.checkpoint import read_weights
from megavrc.config import run_command
from megavrc.errors import UserError
from megavrc.files import read_json, write_json
from megavrc.generation.folder import load_folder
from megavrc.generation.folder_format import read_tensors
from megavrc.hf import commands
from megavrc.hf.convert import build, read_run, sampling_defaults, to_hf, write_folder
from megavrc.hf.from_hf import CLASS_TABLE, from_hf
from megavrc.model import VRC, ConditionConfig, ModelConfig
from megavrc.model.modeling_vrc import write_sums
from megavrc.tokenizers import OmniTokenizer
from megavrc.training.stages import start_from


def test_there_and_back_and_there_again(source, folder, tmp_path) -> None:
    """The same bits, buffers included, through the gate; the same sampling, which is not the usual."""
    folder = shutil.copytree(folder, tmp_path / "folder")
    with_own_sampling(folder)
    start = tmp_path / "start"
    from_hf(folder, start)
    weights, state = read_weights(start)
    for name, tensor in source.model.state_dict().items():
        assert weights[name].dtype == tensor.dtype and torch.equal(weights[name], tensor), name
    assert (state["step"], state["facts"]) == (7, source.facts)
    to_hf(start, start / "video_tokenizer", start / "text_tokenizer" / "tokenizer.model", tmp_path / "again")
    first, second = (
        load_file(folder / "model.safetensors"),
        load_file(tmp_path / "again" / "model.safetensors"),
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (folder / "SHA256SUMS").read_bytes() == (tmp_path / "again" / "SHA256SUMS").read_bytes()
    assert (folder / "README.md").read_text() == (tmp_path / "again" / "README.md").read_text()


def with_own_sampling(folder: Path) -> None:
    sampling = read_json(folder / "generation_config.json")
    write_json(folder / "generation_config.json", sampling | {"first_temperature": 1.0, "top_p": 0.9})
    write_sums(folder)


def test_sampling_stays_that_of_the_folder(tmp_path) -> None:
    source = Source(tmp_path, refine=True, refine_layer=1)  # whose usual sampling says more
    hf = converted(source, tmp_path / "hf")
    with_own_sampling(hf)
    own = read_json(hf / "generation_config.json")
    parts = source.video, source.text, {}, "4GB"
    del own["later_passes"]
    for name, passes in {"one": {}, "four": {"later_passes": [4]}}.items():
        write_json(hf / "generation_config.json", own | passes)
        from_hf(hf, tmp_path / f"{name} start")
        run = read_run(tmp_path / f"{name} start")
        sampling = sampling_defaults(None, run.state["sampling"], run.model)
        write_folder(tmp_path / name, build(run, torch.float32), *parts, sampling=sampling)
        assert read_json(tmp_path / name / "generation_config.json") == own | passes
    assert sampling_defaults([0.3, 0.4], own)["first_temperature"] == 0.3


def test_half_precision_keeps_its_bits(source, tmp_path) -> None:
    half = converted(source, tmp_path / "half", torch.bfloat16)
    from_hf(half, tmp_path / "start")
    run = read_run(tmp_path / "start")
    assert {tensor.dtype for name, tensor in run.weights.items() if "weight" in name} == {torch.float32}
    write_folder(tmp_path / "again", build(run, torch.bfloat16), source.video, source.text, {}, "4GB")
    first, second = read_tensors(half), read_tensors(tmp_path / "again")
    assert all(first[name].dtype == second[name].dtype for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_tokenizers_are_those_of_the_folder(source, folder, tmp_path) -> None:
    """A packed folder's are rounded: what begins with it must be able to go on, and to be converted."""
    packed = shutil.copytree(folder, tmp_path / "packed")
    config = read_json(packed / "config.json")
    config["training"]["facts"]["video_tokenizer"] = "0" * 64
    write_json(packed / "config.json", config)
    from_hf(packed, tmp_path / "start")
    facts = read_weights(tmp_path / "start")[1]["facts"]
    assert facts == source.facts


def test_a_run_on_other_data_starts_with_all_weights(source, folder, tmp_path) -> None:
    from_hf(folder, tmp_path / "start")
    model = VRC(ModelConfig.from_dict(source.model.config.to_dict() | {"dropout": 0.3}))
    assert not start_from(model, source.facts | {"image_source": "image"}, tmp_path / "start")["fresh"]
    assert all(
        torch.equal(model.state_dict()[name], tensor) for name, tensor in source.model.state_dict().items()
    )


def test_stage_2_starts_from_a_converted_image_model(tmp_path) -> None:
    image = Source(tmp_path, frames=0)
    from_hf(converted(image, tmp_path / "hf"), tmp_path / "start")
    video = VRC(ModelConfig.from_dict(image.model.config.to_dict() | {"frames": 2}))
    parts = start_from(video, image.facts, tmp_path / "start")
    assert {name.partition(".")[0] for name in parts["fresh"]} == {"compressor", "decompressor"}
    assert torch.equal(video.head.weight, image.model.head.weight)
    with pytest.raises(UserError, match="image_source"):
        start_from(video, image.facts | {"image_source": "image"}, tmp_path / "start")


def test_another_class_count(tmp_path) -> None:
    source = Source(tmp_path, ConditionConfig(kind="class", classes=3))
    folder = converted(source, tmp_path / "hf")
    config = read_json(folder / "config.json")
    config["training"]["facts"] |= {"classes": ["a", "b", "c"]}
    write_json(folder / "config.json", config)
    from_hf(folder, tmp_path / "same")
    assert read_weights(tmp_path / "same")[1]["training"]["facts"]["classes"] == ["a", "b", "c"]
    from_hf(folder, tmp_path / "start", classes=5)
    weights, state = read_weights(tmp_path / "start")
    assert "classes" not in state["training"]["facts"]  # whose names are those of other classes
    old = source.model.state_dict()
    assert weights[CLASS_TABLE].shape == (6, 32)
    assert torch.equal(weights[CLASS_TABLE][5], old[CLASS_TABLE][3])  # the null class
    assert all(torch.equal(tensor, old[name]) for name, tensor in weights.items() if name != CLASS_TABLE)
    model = VRC(ModelConfig.from_dict(state["identity"]["model"]))
    assert not start_from(model, source.facts, tmp_path / "start")["fresh"]
    with pytest.raises(UserError, match=r"model\.condition was .*'classes': 5.*'classes': 3"):
        start_from(source.model, source.facts, tmp_path / "start")


def test_a_text_model_has_no_classes_and_an_existing_folder_is_kept(folder, tmp_path) -> None:
    with pytest.raises(UserError, match=r"classes: 5 for .*, a model conditioned on text"):
        from_hf(folder, tmp_path / "start", classes=5)
    assert not list(tmp_path.iterdir())
    (tmp_path / "astray").symlink_to(tmp_path / "nowhere")
    for out in (tmp_path, tmp_path / "astray"):
        with pytest.raises(UserError, match="exists; choose another"):
            from_hf(folder, out)


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def only_pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_the_weights(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 5000)
    (folder / "SHA256SUMS").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "model.safetensors: has changed since the conversion"),
        (only_pickled_weights, "pytorch_model.bin: pickled weights can run any code"),
        (cut_the_weights, "model.safetensors: missing or damaged"),
        (lambda folder: (folder / "tokenizer.model").unlink(), "tokenizer.model: missing"),
        (lambda folder: (folder / "config.json").write_text("{}"), "not a converted VRC model"),
    ],
)
def test_damaged_folders_are_one_line_and_nothing_is_written(
    folder, tmp_path, capsys, damage, message
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy)
    assert run_command(commands.from_hf, ["--model", str(copy), "--out", str(tmp_path / "start")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_format_1_is_migrated_or_refused_by_name(source, folder, tmp_path) -> None:
    """Format 1 did not say how the images of stage 1 were tokenized."""
    old = shutil.copytree(folder, tmp_path / "old")
    make_format_1(old)
    ids = load_folder(folder).generate(["a blue dog"], seed=[0])[0]
    assert torch.equal(load_folder(old).generate(["a blue dog"], seed=[0])[0], ids)
    from_hf(old, tmp_path / "start")
    model = VRC(source.model.config)
    assert not start_from(model, source.facts, tmp_path / "start")["fresh"]
    (tmp_path / "image").mkdir()
    image = converted(Source(tmp_path / "image", frames=0), tmp_path / "image" / "hf")
    make_format_1(image)
    with pytest.raises(UserError, match="format version 1 does not say how the images were tokenized"):
        from_hf(image, tmp_path / "start2")


def make_format_1(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["training"]
    (folder / "config.json").write_text(json.dumps(config | {"format_version": 1}))


def test_a_killed_conversion_leaves_nothing_that_counts(folder, tmp_path) -> None:
    fork = multiprocessing.get_context("fork")  # importing anew would take most of the time
    process = fork.Process(target=from_hf, args=(folder, tmp_path / "start"))
    process.start()
    while not list(tmp_path.iterdir()):
        assert process.is_alive()
        time.sleep(0.001)
    process.kill()
    process.join()
    assert not (tmp_path / "start").exists()
    from_hf(folder, tmp_path / "start")
    assert [path.name for path in tmp_path.iterdir()] == ["start"]
    assert OmniTokenizer.from_checkpoint(tmp_path / "start" / "video_tokenizer").config.codes == 64
