"""From a run to a folder: nothing but a whole, checked folder ever appears."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hf_source import CAPTIONS, Source, converted, make_tokens
from safetensors.torch import load_file, save_file

from megavrc.config import run_command
from megavrc.errors import UserError
from megavrc.generation.command import generate
from megavrc.generation.folder import load_folder
from megavrc.generation.folder_format import check_sums
from megavrc.hf import commands
from megavrc.hf import parity_check as gate
from megavrc.hf.captions import frame_rate, training_captions
from megavrc.hf.card import model_card, training_record
from megavrc.hf.convert import build, read_run, sampling_defaults, to_hf, write_folder
from megavrc.hf.parity_check import check
from megavrc.model import VRC, ConditionConfig, ModelConfig
from megavrc.model.clips import encode_clips
from megavrc.tokenizers import OmniTokenizer, TextTokenizer


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the converted folder to damage."""
    return shutil.copytree(folder, tmp_path / "copy")


def test_the_folder_is_complete_and_names_no_machine(source, folder) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"tokenizer.json", "tokenizer.model", "generation_config.json", "README.md", "LICENSE"} <= names
    card = (folder / "README.md").read_text()
    assert (
        "| steps | 7 |" in card
        and "| final loss | 1.2500 |\n| of the first frame | 0.5000 |" in card
        and "17 images of 16 x 16 pixels" in card
    )
    place = str(source.run.parent.parent)
    assert not [name for name in names if place.encode() in (folder / name).read_bytes()]
    check_sums(folder)


def test_an_attention_backend_that_cannot_run_is_the_user_s_mistake(folder, source, monkeypatch) -> None:
    monkeypatch.setenv("MEGAVRC_ATTENTION", "magic")
    with pytest.raises(UserError, match="attention backend 'magic' is not one of"):
        check(folder, source.model, source.video.net, source.text)


def test_the_gate_refuses_other_weights(copy, source) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["vrc.decompressor.net.1.running_mean"] = tensors["vrc.decompressor.net.1.running_mean"] + 0.01
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="loss computed by transformers differs"):
        check(copy, source.model, source.video.net, source.text)
    with pytest.raises(UserError, match=r"model\.safetensors: has changed"):
        check_sums(copy)


def test_a_model_that_refines_passes_the_gate_and_says_how_many_passes_it_takes(tmp_path) -> None:
    source = Source(tmp_path, refine=True, refine_layer=1)
    folder = converted(source, tmp_path / "hf")
    outputs = check(folder, source.model, source.video.net, source.text)
    loaded = load_folder(folder)
    assert loaded.sampling["later_passes"] == [8]
    four_cells = replace(source.model.config, grid=2)
    assert sampling_defaults(model=four_cells)["later_passes"] == [4]
    again = {"first_temperature": 0.9, "later_temperature": 0.9, "top_p": 0.95, "guidance": 1.5}
    for passes, same in (([8], True), (1, False)):
        ids, _ = loaded.generate(given_prompts(source), seed=gate.SEEDS, later_passes=passes, **again)
        assert torch.equal(ids, outputs["generated"]) == same
    with pytest.raises(UserError, match="passes: 17 for 16 cells"):
        loaded.generate("a", later_passes=17)
    with pytest.raises(UserError, match=r"later_passes: \[8, 1, 1, 1, 1\] for 4 later frames"):
        loaded.generate("a", later_passes=[8, 1, 1, 1, 1])


def given_prompts(source: Source) -> list[str]:
    return gate.make_inputs(source.model, source.video.net, source.text).prompts


FORK = multiprocessing.get_context("fork")  # importing anew would take most of the time


def convert(source: Source, out: Path, file_size: int = 0) -> None:
    """The command, in a process of its own, which Ctrl-C interrupts; `file_size`: bytes that a file may have."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    parts = source.run.parent
    words = ["--run", source.run, "--video_tokenizer", parts / "video", "--out", out]
    sys.exit(run_command(commands.to_hf, [*map(str, words), f"--text_tokenizer={parts / 'tokenizer.model'}"]))


def test_an_interrupted_conversion_leaves_nothing(source, tmp_path) -> None:
    mine = tmp_path / "out_partial"
    mine.mkdir()  # a folder of the user's
    process = FORK.Process(target=convert, args=(source, tmp_path / "out"))
    process.start()
    while len(list(tmp_path.iterdir())) == 1:
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode != 0
    assert list(tmp_path.iterdir()) == [mine]


@pytest.mark.slow  # two whole conversions
def test_of_two_conversions_to_one_folder_the_first_is_kept_whole(source, tmp_path) -> None:
    both = [FORK.Process(target=convert, args=(source, tmp_path / "out")) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert sorted(process.exitcode for process in both) == [0, 2]
    check_sums(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_one_line(source, tmp_path, capfd) -> None:
    process = FORK.Process(target=convert, args=(source, tmp_path / "out", 100_000))
    process.start()
    process.join()
    errors = capfd.readouterr().err
    assert process.exitcode == 2 and not list(tmp_path.iterdir())
    assert f"error: {tmp_path / 'out'}: cannot be written" in errors and "Traceback" not in errors


def test_parts_that_do_not_fit_are_named(source, tmp_path) -> None:
    parts, out = source.run.parent, tmp_path / "out"
    other = TextTokenizer.train(CAPTIONS, tmp_path / "other.model", vocab=60)
    with pytest.raises(UserError, match="text_tokenizer: not the one"):
        to_hf(source.run, parts / "video", other.path, out)
    with pytest.raises(UserError, match="needs the text tokenizer"):
        to_hf(source.run, parts / "video", None, out)
    with pytest.raises(UserError, match="no checkpoints there"):
        to_hf(source.run, parts / "video", source.text.path, out, step=8)
    with pytest.raises(UserError, match="no checkpoints there"):
        to_hf(parts / "video", parts / "video", source.text.path, out)
    assert [path.name for path in tmp_path.iterdir()] == ["other.model"]
    with pytest.raises(UserError, match="exists; choose another"):
        to_hf(source.run, parts / "video", source.text.path, tmp_path)


def test_captions_must_have_the_ids_of_sentencepiece(source, tmp_path) -> None:
    """Those of the run's dataset, or of a file."""
    parts, out = source.run.parent, tmp_path / "out"
    odd = "\ufb01\u0301 a fi ligature with an accent that it does not compose with"
    (tmp_path / "captions.jsonl").write_text(f'{{"caption": null}}\n{json.dumps({"caption": odd})}\n')
    with pytest.raises(UserError, match="other ids for '\ufb01"):
        to_hf(source.run, parts / "video", source.text.path, out, captions=tmp_path / "captions.jsonl")
    (tmp_path / "captions.txt").write_text(f"a red dog\n{odd}\n")
    with pytest.raises(UserError, match="other ids for '\ufb01"):
        to_hf(source.run, parts / "video", source.text.path, out, captions=tmp_path / "captions.txt")
    for text, message in (("{}\n", "holds no captions"), ("[1]\n", "line 1: expected an object")):
        (tmp_path / "captions.jsonl").write_text(text)
        with pytest.raises(UserError, match=message):
            to_hf(source.run, parts / "video", source.text.path, out, captions=tmp_path / "captions.jsonl")
    assert {path.name for path in tmp_path.iterdir()} == {"captions.jsonl", "captions.txt"}


def test_captions_of_the_run_are_those_of_its_dataset(tmp_path, capsys) -> None:
    data = {"path": str(make_tokens(tmp_path / "tokens", "0" * 64))}
    assert list(training_captions({"config": {"data": data}})) == CAPTIONS
    gone = {"path": str(tmp_path / "gone")}
    assert not list(training_captions({"config": {"data": gone}}))
    part = {"path": str(make_tokens(tmp_path / "blended", "0" * 64, split="most")), "weight": 1.0}
    capsys.readouterr()
    blend = {"path": "", "blend": [gone, part], "split": "most"}
    assert list(training_captions({"config": {"data": blend}})) == CAPTIONS
    assert capsys.readouterr().out.startswith(
        f"{gone['path']}: not in its place, so tokenizer.json is not tried"
    )
    assert not list(training_captions({})), "of a checkpoint that was made of a folder"


def test_a_run_that_went_on_without_damaged_samples_is_converted(tmp_path, capsys) -> None:
    state = {
        "config": {"data": {"path": str(make_tokens(tmp_path / "tokens", "0" * 64, extra={"fps": 8.0}))}}
    }
    [tar] = (tmp_path / "tokens").rglob("*.tar")
    content = bytearray(tar.read_bytes())
    content[content.index(b"\x93NUMPY") + 150] ^= 1
    tar.write_bytes(content)
    assert list(training_captions(state)) == CAPTIONS[1:] and frame_rate(state) == 8
    assert (
        "1 samples cannot be read, so tokenizer.json is not tried on their captions"
        in capsys.readouterr().out
    )
    tar.unlink()
    assert not list(training_captions(state)) and frame_rate(state) is None


def test_a_checkpoint_that_is_named_from_inside_is_its_run_s(source, monkeypatch) -> None:
    [checkpoint] = (source.run / "checkpoints").glob("step-*")
    monkeypatch.chdir(checkpoint)
    inside = read_run(Path()).folder
    monkeypatch.chdir(checkpoint.parent)
    assert inside == read_run(Path(checkpoint.name)).folder == source.run


def test_sizes_and_temperatures_that_cannot_be_are_said_first(source, tmp_path) -> None:
    for given, said in (
        ({"shard_size": "abc"}, "--shard_size: 'abc'; expected a size such as"),
        ({"shard_size": "4"}, "--shard_size"),
        ({"temperatures": [1.0]}, "--temperatures: two numbers"),
        ({"temperatures": [1.0, 0.0]}, "--temperatures: two numbers above 0"),
    ):
        with pytest.raises(UserError, match=said):
            to_hf(tmp_path / "no run", source.run, None, tmp_path / "out", **given)
    assert sampling_defaults([1.0, 0.9]) == {
        **sampling_defaults(),
        "first_temperature": 1,
        "later_temperature": 0.9,
    }


def test_who_converts_an_unfinished_run_is_told(source, tmp_path, capsys) -> None:
    run = shutil.copytree(source.run, tmp_path / "run")
    for name, said in (("metrics.jsonl", False), ("run.json", True), ("complete.json", False)):
        (run / name).touch()
        with pytest.raises(UserError):  # a model of text without its tokenizer
            to_hf(run, source.run.parent / "video", None, tmp_path / "out")
        assert ("is not finished; its newest checkpoint, of step 7," in capsys.readouterr().out) == said


def test_the_card_says_that_weights_are_an_average(source) -> None:
    run = read_run(source.run)
    run.state["config"]["train"]["ema"] = 0.999
    cards = []
    for averaged in (False, True):
        summary = dict(training_record(run.state, source.run, averaged)["summary"])
        cards.append(model_card("VRC", run.model, source.video.config, 1, summary))
    assert "average" not in cards[0] and "| weights | moving average over the steps (decay 0.999)" in cards[1]


def test_the_gate_draws_few_tokens_one_by_one(source, monkeypatch) -> None:
    """A baseline with many tokens a frame: all frames but the last are given, so that hours become minutes."""
    monkeypatch.setattr(gate, "LONG_FRAME", 8)
    changes = {"prediction": "token", "keep_first_frame": True}
    vrc = VRC(ModelConfig.from_dict(source.model.config.to_dict() | changes))
    given = gate.make_inputs(vrc, source.video.net, source.text)
    assert given.tensors["clip"].shape == (2, 13, 16, 16, 3)
    made = gate.expected_outputs(vrc, source.video.net, source.text, given, {})
    assert made["generated"].shape[1] == 5
    assert torch.equal(made["generated"][:, :4], encode_clips(source.video.net, given.tensors["clip"]))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_foreign_and_damaged_folders_are_one_line(copy, tmp_path) -> None:
    def refused(match: str, path: Path = copy) -> None:
        with pytest.raises(UserError, match=match) as error:
            load_folder(path)
        assert "\n" not in str(error.value)

    refused("no such folder", tmp_path / "nowhere")
    refused("config.json: no such file", tmp_path)
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused(r"model\.safetensors: missing or damaged")
    (copy / "model.safetensors").unlink()
    refused(r"model\.safetensors: missing or damaged")
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04")
    refused(r"pytorch_model\.bin: pickled weights can run any code and are not read")
    index = copy / "model.safetensors.index.json"
    index.write_text("{")
    refused(r"index\.json: not valid JSON")
    for content in ([], {"weight_map": {"vrc.head.weight": "../model.safetensors"}}):
        index.write_text(json.dumps(content))
        refused(r"index\.json: damaged: no weight_map")
    index.write_text(json.dumps({"weight_map": {"vrc.head.weight": "model-00001-of-00002.safetensors"}}))
    refused(r"model-00001-of-00002\.safetensors: missing or damaged")
    index.unlink()
    flipped = bytearray(weights)
    flipped[-3] ^= 1
    (copy / "model.safetensors").write_bytes(flipped)
    refused(r"model\.safetensors: has changed since the conversion")
    (copy / "model.safetensors").write_bytes(weights)
    (copy / "tokenizer.model").unlink()
    refused(r"tokenizer\.model: missing")
    edit(copy / "config.json", format_version=3)
    refused(r"made by a newer megavrc \(format 3, this one reads up to 2\)")
    edit(copy / "config.json", format_version=2, vrc={"layerz": 3})
    refused("unknown key layerz")
    edit(copy / "config.json", vrc=3)
    refused("not a converted VRC model")
    edit(copy / "config.json", model_type="llama")
    refused("model_type is 'llama'")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": None}, "config.json: training is None, expected dict"),
        ({"training": {"facts": ["x"]}}, r"config\.json: training: facts is \['x'\], expected dict"),
        ({"training": {"step": "6"}}, "config.json: training: step is '6', expected int"),
        ({"id2label": ["ball"]}, r"config\.json: id2label is \['ball'\]"),
    ],
)
def test_what_the_configuration_says_beside_the_model_has_its_type(copy, changes, said) -> None:
    edit(copy / "config.json", **changes)
    with pytest.raises(UserError, match=said):
        load_folder(copy)
    content = json.loads((copy / "config.json").read_text())
    content = {key: value for key, value in content.items() if key not in changes}
    (copy / "config.json").write_text(json.dumps(content))
    load_folder(copy)  # neither need be there


def test_a_class_model_in_bf16_and_several_files(tmp_path) -> None:
    from megavrc.model.modeling_vrc import VRCForVideoGeneration

    source = Source(tmp_path, ConditionConfig(kind="class", classes=3))
    run = read_run(source.run)
    out = tmp_path / "out"
    video = OmniTokenizer.from_checkpoint(tmp_path / "video")
    write_folder(out, build(run, torch.bfloat16), video, None, {}, shard_size="100KB")
    assert len(list(out.glob("*.safetensors"))) > 1
    folder = load_folder(out)
    model = VRCForVideoGeneration.from_pretrained(out, dtype="auto")
    assert folder.model.head.weight.dtype == model.vrc.head.weight.dtype == torch.bfloat16
    assert folder.model.compressor.net[1].running_var.dtype == torch.float32
    frames = folder.generate(label=[0, 2], seed=[1, 2])[1]
    assert torch.equal(frames, model.generate_video(label=[0, 2], seed=1))
    with pytest.raises(UserError, match=r"label 3 is not one of the model's classes 0\.\.2"):
        folder.generate(label=[3], seed=[0])
    with pytest.raises(UserError, match=r"unknown label bike\. There are 0, 1, 2"):
        folder.generate(label="bike")
    assert torch.equal(folder.condition(label="2").values, torch.tensor([2]))


def test_classes_keep_their_names(tmp_path) -> None:
    """From the dataset to config, card, both loaders, another save and a command."""
    from megavrc.model.modeling_vrc import VRCForVideoGeneration

    source = Source(tmp_path, ConditionConfig(kind="class", classes=3))
    video, out = OmniTokenizer.from_checkpoint(tmp_path / "video"), tmp_path / "out"
    facts = {"classes": ["ball", "bike", "7"]}
    write_folder(out, build(read_run(source.run), torch.float32), video, None, {"facts": facts}, "4GB")
    card = (out / "README.md").read_text()
    assert 'generate_video(label="ball"' in card and "| classes | ball, bike, 7 |" in card
    model = VRCForVideoGeneration.from_pretrained(out)
    assert model.config.id2label == {0: "ball", 1: "bike", 2: "7"}
    model.save_pretrained(tmp_path / "again")
    folder = load_folder(tmp_path / "again")
    for label, number in [("bike", 1), ("7", 2), ("1", 1), (np.int64(1), 1), (["bike", 0], [1, 0])]:
        expected = torch.tensor([number]).view(-1)
        assert torch.equal(folder.condition(label=label).values, expected)
        assert torch.equal(model._condition(None, label, None).values, expected)
    wrong = r"unknown label bikes, did you mean bike\? There are ball, bike, 7"
    with pytest.raises(UserError, match=wrong):
        folder.condition(label="bikes")
    with pytest.raises(ValueError, match=wrong):
        model.generate_video(label=["ball", "bikes"])
    generate(out, tmp_path / "clips", label=["bike", "0"])
    assert {path.name for path in (tmp_path / "clips").glob("*.mp4")} == {
        "0000-label-1-seed0.mp4",
        "0001-label-0-seed1.mp4",
    }
    edit(out / "config.json", id2label={"first": "ball"})
    with pytest.raises(UserError, match=r"config\.json: id2label: .*'first'"):
        load_folder(out)


def test_a_class_that_is_called_like_a_number_is_meant_by_its_name(tmp_path):
    """Folders 01, 2, 10 are the classes 0, 2, 1: what is typed is the folder's name."""
    source = Source(tmp_path, ConditionConfig(kind="class", classes=3))
    video, out = OmniTokenizer.from_checkpoint(tmp_path / "video"), tmp_path / "out"
    facts = {"classes": ["01", "10", "2"]}
    write_folder(out, build(read_run(source.run), torch.float32), video, None, {"facts": facts}, "4GB")
    words = ["--model", str(out), "--out", str(tmp_path / "clips"), "--label", "01", "10", "1"]
    assert run_command(generate, words) == 0
    names = sorted(path.name for path in (tmp_path / "clips").glob("*.mp4"))
    assert names == [f"000{i}-label-{label}-seed{i}.mp4" for i, label in enumerate((0, 1, 1))]
    assert load_folder(out).condition(label=[2, "2"]).values.tolist() == [2, 2]
    with pytest.raises(UserError, match="label: an empty list"):
        load_folder(out).condition(label=[])
