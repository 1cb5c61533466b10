"""What transformers users do with a folder besides generating: load odd ones, move it, train, save."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from megavrc.errors import UserError
from megavrc.generation.folder import load_folder
from megavrc.generation.folder_format import check_sums
from megavrc.hf.convert import verify
from megavrc.model.modeling_vrc import VRCForVideoGeneration

PROMPT = "a red square moves left"


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize(
    "name",
    [
        "video_tokenizer.codebook.embeddings",
        "vrc.decompressor.net.1.running_mean",
        "vrc.decompressor.net.1.running_var",
        "vrc.trunk.norm.weight",
    ],
)
def test_every_tensor_is_required(copy, name) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors.pop(name)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=f"incomplete.*1 tensors are missing, 0 too many, the first is {name}"
    ):
        VRCForVideoGeneration.from_pretrained(copy)
    with pytest.raises(UserError, match=r"1 tensors do not fit|missing|incomplete"):
        load_folder(copy)


@pytest.mark.parametrize("name", ["vrc.head.weight", "video_tokenizer.codebook.embeddings"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(copy, name, number) -> None:
    """Drawing tokens with them was an index out of range, on CUDA the end of the process."""
    tensors = load_file(copy / "model.safetensors")
    tensors[name].view(-1)[3] = number
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinite"):
        VRCForVideoGeneration.from_pretrained(copy)
    with pytest.raises(UserError, match=f"{copy}: .*{name.partition('.')[2]} holds NaN or infinite"):
        load_folder(copy)


def edit(file: Path, **changes: object) -> None:
    """Change or (None) remove keys of a JSON file, whose checks of content no longer hold."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    (file.parent / "SHA256SUMS").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("trunk.layers.0.attention.qkv.weight", torch.float16),
        ("head.weight", torch.float64),
        ("tokens.weight", torch.bfloat16),
    ],
)
def test_tensors_of_several_types_are_computed_in_one(copy, name, dtype) -> None:
    tensors = load_file(copy / "model.safetensors")
    (name,) = [each for each in tensors if each.startswith("vrc.") and each.endswith(name)]
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    edit(copy / "config.json", dtype=None)
    loaded = load_folder(copy)
    assert {one.dtype for one in loaded.model.trunk.parameters()} == {loaded.model.head.weight.dtype}
    assert loaded.generate(PROMPT)[0].shape[0] == 1


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool])
def test_weights_that_are_whole_numbers_are_refused(copy, dtype) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["vrc.head.weight"] = tensors["vrc.head.weight"].to(dtype)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors do not fit the configuration, the first is head\.weight"):
        load_folder(copy)


def test_a_rate_that_is_no_whole_number_is_refused(copy) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["vrc"]["compression"]["rate"] = float(config["vrc"]["compression"]["rate"])
    edit(copy / "config.json", vrc=config["vrc"])
    with pytest.raises(UserError, match=r"config\.json: compression\.rate: \d+\.0 is of another kind"):
        load_folder(copy)


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "../model.safetensors", 3])
def test_names_of_files_that_no_folder_can_hold_are_refused(copy, name) -> None:
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"vrc.head.weight": name}}))
    with pytest.raises(UserError, match=r"index\.json: damaged: no weight_map that names files"):
        load_folder(copy)


@pytest.mark.parametrize("options", [{"later_passes": [1] * 9}, {"later_passes": 4}, {"row_passes": 2}])
def test_passes_that_the_model_cannot_make_name_the_file_that_asks_for_them(copy, options) -> None:
    edit(copy / "generation_config.json", **options)
    with pytest.raises(UserError, match=f"{copy}/generation_config.json: {next(iter(options))}: "):
        load_folder(copy)


def test_fewer_layers_than_the_weights_have_are_refused(copy) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["vrc"]["layers"] = 1
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"0 tensors are missing, \d+ too many, the first is vrc.trunk.layers.1"
    ):
        VRCForVideoGeneration.from_pretrained(copy)
    with pytest.raises(UserError, match="do not fit the configuration"):
        load_folder(copy)


def test_a_prompt_works_when_the_folder_is_gone(copy, folder, tmp_path, monkeypatch) -> None:
    expected = VRCForVideoGeneration.from_pretrained(folder).generate_video(PROMPT, output="ids")
    monkeypatch.chdir(copy.parent)
    model = VRCForVideoGeneration.from_pretrained("copy")
    monkeypatch.chdir("/")
    shutil.rmtree(copy)
    assert torch.equal(model.generate_video(PROMPT, output="ids"), expected)


@pytest.mark.parametrize(
    ("prompt", "message"), [("", "is empty"), ("  ", "is empty"), ("a \u6f22 dog", "does not know")]
)
def test_prompts_that_say_nothing_are_warned_of(folder, prompt, message) -> None:
    for generate in (VRCForVideoGeneration.from_pretrained(folder)._request, load_folder(folder).request):
        with pytest.warns(UserWarning, match=message):
            generate(prompt)


class Samples(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"ids": torch.full((5, 4, 4), index), "condition": torch.tensor([0] * 14 + [8 + index, 2])}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_trains_and_evaluates(folder, tmp_path, checkpointing) -> None:
    model = VRCForVideoGeneration.from_pretrained(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        gradient_checkpointing=checkpointing,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=Samples(), eval_dataset=Samples())
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    after = model.state_dict()
    assert all(
        torch.equal(after[name], before[name]) for name in after if name.startswith("video_tokenizer.")
    )
    assert not torch.equal(after["vrc.head.weight"], before["vrc.head.weight"])


def test_gradient_checkpointing_changes_no_gradient_and_none_is_unused(folder) -> None:
    """Plain DDP asks for a gradient of every trainable parameter."""
    grads = []
    for checkpointing in (False, True):
        model = VRCForVideoGeneration.from_pretrained(folder).train()
        calls = []
        if checkpointing:
            model.gradient_checkpointing_enable()
            model.vrc.trunk.layers[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        batch = {name: torch.stack([Samples()[i][name] for i in range(2)]) for name in ("ids", "condition")}
        torch.manual_seed(0)  # dropout
        model(**batch).loss.backward()
        assert len(calls) == 2 * checkpointing, "computed again in the backward pass"
        grads.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        assert not [name for name, grad in grads[-1].items() if grad is None]
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


@pytest.mark.slow
def test_two_processes_of_ddp_train_one_model(folder, tmp_path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    # transformers copies the folder's code into its cache: once, before several processes do.
    load = f"from transformers import AutoModel; AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True)"
    subprocess.run([sys.executable, "-c", load], env=environment, check=True, timeout=120)
    script = Path(__file__).with_name("ddp.py")
    done = subprocess.run(
        [*launch, script, folder, tmp_path], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    assert ranks[0].keys() == ranks[1].keys()
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])

    model = VRCForVideoGeneration.from_pretrained(folder).eval()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for rank in (0, 1):
        generator = torch.Generator().manual_seed(rank)
        ids = torch.randint(64, (2, 5, 4, 4), generator=generator)
        (model(ids, torch.randint(3, 90, (2, 16), generator=generator)).loss / 2).backward()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(ranks[0][f"gradient {name}"], weight.grad, rtol=1e-4, atol=1e-6)
        changed = not torch.equal(ranks[0][f"weight {name}"], before[name])
        assert changed == name.startswith("vrc."), name


def test_sums_follow_save_pretrained(copy, tmp_path) -> None:
    model = VRCForVideoGeneration.from_pretrained(copy)
    with torch.no_grad():
        model.vrc.head.weight.mul_(2)
    for place in (copy, tmp_path / "elsewhere"):
        model.save_pretrained(place)
        check_sums(place)
        names = {line.split("  ")[1] for line in (place / "SHA256SUMS").read_text().splitlines()}
        assert names >= {"model.safetensors", "config.json", "modeling_vrc.py", "tokenizer.model", "LICENSE"}
        assert names == set(os.listdir(place)) - {"README.md", "SHA256SUMS"}


def test_verify_says_that_a_folder_has_no_sums(copy, capsys) -> None:
    (copy / "SHA256SUMS").unlink()
    verify(copy)
    assert "no SHA256SUMS" in capsys.readouterr().out
