"""examples/finetune_lora.py on a tiny folder and a tiny dataset."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from forked import run_forked
from hf_source import Source, converted, make_tokens
from safetensors.torch import load_file

from megavrc.checkpoint import read_weights
from megavrc.config import run_command
from megavrc.errors import UserError
from megavrc.files import read_json, write_json
from megavrc.generation.folder import load_folder
from megavrc.hf.from_hf import from_hf
from megavrc.hf.lora import AdapterConfig, LoraRunConfig, LoraTask, losses
from megavrc.model import ConditionConfig

pytest.importorskip("peft", reason="needs the extra lora")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "finetune_lora.py"


@pytest.fixture(scope="module")
def tuned(folder: Path, source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The merged folder, and what the example printed."""
    root = tmp_path_factory.mktemp("lora")
    data = make_tokens(root / "tokens", source.video.sha256)
    own = shutil.copytree(folder, root / "own")
    sampling = read_json(own / "generation_config.json")
    write_json(own / "generation_config.json", sampling | {"first_temperature": 1.0, "top_p": 0.9})
    words = ["--model", own, "--data", data, "--out", root / "tuned", "--steps", "60", "--lr", "0.01"]
    run = run_forked(EXAMPLE, *words)
    assert run.returncode == 0, run.stderr
    return root / "tuned", run.stdout


def test_the_loss_falls_and_only_the_adapted_matrices_change(tuned, folder) -> None:
    found = re.search(r"loss ([\d.]+) at the first step, ([\d.]+) at the last", tuned[1])
    assert found is not None
    first, last = map(float, found.groups())
    assert last < 0.95 * first
    before, after = (load_file(path / "model.safetensors") for path in (folder, tuned[0]))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    matrices = ("attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down")
    assert changed == {f"vrc.trunk.layers.{layer}.{name}.weight" for layer in range(2) for name in matrices}
    assert (
        "| fine-tuned | LoRA of rank 8, 60 steps of 8 clips, 18 samples"
        in (tuned[0] / "README.md").read_text()
    )


def test_the_merged_folder_samples_as_the_folder_does(tuned) -> None:
    own = load_folder(tuned[0].with_name("own")).sampling
    assert load_folder(tuned[0]).sampling == own and own["first_temperature"] == 1.0


def test_the_merged_folder_needs_neither_peft_nor_megavrc(tuned, tmp_path) -> None:
    script = (
        "import sys; sys.modules['megavrc'] = sys.modules['peft'] = None\n"
        "import torch; torch.set_num_threads(1)\n"
        "from transformers import AutoModel\n"
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "torch.save(model.generate_video('a blue dog', seed=3, output='ids'), sys.argv[2])\n"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path)}
    command = [sys.executable, "-I", "-c", script, tuned[0], tmp_path / "ids.pt"]
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=tmp_path)
    ids, _ = load_folder(tuned[0]).generate(["a blue dog"], seed=[3])
    assert torch.equal(torch.load(tmp_path / "ids.pt"), ids)


def test_training_goes_on_from_the_merged_folder(tuned, source, tmp_path) -> None:
    from_hf(tuned[0], tmp_path / "start")
    assert (tmp_path / "start" / "complete.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_broken_training_goes_on_as_if_nothing_had_happened(
    precision: str, folder: Path, source, tmp_path: Path
) -> None:
    data = make_tokens(tmp_path / "tokens", source.video.sha256)
    words = [
        "--model",
        folder,
        "--data",
        data,
        "--steps=8",
        "--lr=0.01",
        "--save_every=2",
        f"--precision={precision}",
    ]

    def run(name: str, fault: str = "") -> int:
        return subprocess.run(
            [sys.executable, EXAMPLE, *words, "--out", tmp_path / name],
            cwd=EXAMPLE.parents[1],
            env=os.environ | {"MEGAVRC_FAULT": fault},
            capture_output=True,
        ).returncode

    assert run("whole") == 0
    assert run("parts", fault="forward:0:7:kill") == -9
    assert not (tmp_path / "parts").exists()
    assert run("parts") == 0
    (tmp_path / "parts").rename(tmp_path / "moved")  # then it is made again from the end of the run
    assert run("parts") == 0
    whole, parts = losses(tmp_path / "whole.run"), losses(tmp_path / "parts.run")
    assert parts == whole and len(whole) == 8
    first, *others = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts", "moved")
    )
    assert all(torch.equal(other[name], tensor) for other in others for name, tensor in first.items())
    adapters, _ = read_weights(tmp_path / "whole.run")  # float32, also where bf16 computed
    name = "trunk.layers.0.attention.out"
    [a], [b] = ([t for n, t in adapters.items() if f"{name}.lora_{letter}" in n] for letter in "AB")
    before = load_file(folder / "model.safetensors")
    expected = before[f"vrc.{name}.weight"] + 16 / 8 * (b @ a)
    assert torch.allclose(first[f"vrc.{name}.weight"], expected, rtol=0, atol=1e-7)
    assert 0 < sum(not torch.equal(before[name], tensor) for name, tensor in first.items()) <= 8, (
        "the adapted ones"
    )
    starts = [
        line["step"] for line in json.loads((tmp_path / "parts.run" / "run.json").read_text())["starts"]
    ]
    assert starts in ([0, 4, 8], [0, 6, 8]), "from the last checkpoint that was whole when it was killed"
    size = sum(
        file.stat().st_size for file in (tmp_path / "parts.run" / "checkpoints").rglob("*.safetensors")
    )
    assert size < (folder / "model.safetensors").stat().st_size, "checkpoints hold the adapters alone"


@patch.dict(os.environ)  # it sets a launcher's variables
def test_data_that_does_not_fit_is_refused_and_nothing_is_written(folder, source, tmp_path, capsys) -> None:
    example = runpy.run_path(str(EXAMPLE))["finetune_lora"]
    common = ["--model", str(folder), "--out", str(tmp_path / "out"), "--data"]
    other = make_tokens(tmp_path / "other", "0" * 64)
    assert run_command(example, [*common, str(other)]) == 2
    assert "made by tokenizer 0000" in capsys.readouterr().err
    short = make_tokens(tmp_path / "short", source.video.sha256, (2, 4, 4))
    assert run_command(example, [*common, str(short)]) == 2
    assert "samples of (2, 4, 4) tokens, the model takes (5, 4, 4)" in capsys.readouterr().err
    good = [*common, str(make_tokens(tmp_path / "good", source.video.sha256))]
    assert run_command(example, [*good, "--device", "cuda:99"]) == 2
    assert "device cuda:99: not on this machine" in capsys.readouterr().err
    for words, said in (
        ("--steps=0", "--steps: 0, at least 1"),
        ("--save_every=0", "--save_every: 0, at least 1"),
        ("--lr=-1", "optimizer.lr: -1.0 must be positive"),
        ("--alpha=0", "adapters.alpha: 0.0 must be positive"),
        ("--alpha=-2", "adapters.alpha: -2.0 must be positive"),
    ):
        assert run_command(example, [*good, words]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_classes_that_the_folder_numbers_in_another_way_are_refused(tmp_path) -> None:
    source = Source(tmp_path, ConditionConfig(kind="class", classes=2))
    folder = converted(source, tmp_path / "hf", classes=["blue", "red"])
    data = make_tokens(tmp_path / "tokens", source.video.sha256, label=1, classes=["red", "blue"])
    config = LoraRunConfig(run_dir=str(tmp_path / "run"), folder=str(folder), out="", data=str(data))
    with pytest.raises(UserError, match=r"tokens.*: class 0 is 'blue' and 'red', in .*hf and here"):
        LoraTask(config)


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        (AdapterConfig(rank=0), "adapters.rank: 0 must be at least 1"),
        (AdapterConfig(alpha=-1.0), "adapters.alpha: -1.0 must be positive"),
        (AdapterConfig(alpha=float("nan")), "adapters.alpha: nan is not a finite number"),
    ],
)
def test_adapters_that_cannot_be_are_refused(adapters: AdapterConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraRunConfig(run_dir="run", folder="folder", out="out", data="data", adapters=adapters)
