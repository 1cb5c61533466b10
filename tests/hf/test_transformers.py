"""A converted folder in transformers, and the same folder without it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub import assert_names_no_machine, push
from safetensors.torch import load_file, save_file

from megavrc.errors import UserError
from megavrc.generation.folder import Folder, load_folder
from megavrc.model.clips import sampling_settings

PROMPTS = ["a red square moves left", "a blue dog"]


@pytest.fixture(scope="module")
def results(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What transformers computes in a fresh process in which megavrc cannot be imported."""
    out = tmp_path_factory.mktemp("fresh")
    run = subprocess.run(
        [sys.executable, "-I", Path(__file__).with_name("fresh.py"), folder, out],
        cwd=out,
        env=os.environ | {"HF_HOME": str(out), "HF_MODULES_CACHE": str(out / "modules")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return load_file(out / "results.safetensors")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Folder:
    return load_folder(folder)


def test_the_same_clips_with_and_without_transformers(results, loaded) -> None:
    _, frames = loaded.generate(PROMPTS, seeds=[5, 6])
    assert frames.shape == (2, 17, 16, 16, 3) and frames.dtype == torch.uint8
    assert torch.equal(frames, results["default"])
    layers = dict(temperature=0.0, guidance=2.0, later_temperature=1.0)
    ids, _ = loaded.generate(PROMPTS, seeds=[5, 9], settings=sampling_settings(layers))
    assert torch.equal(ids, results["cold"])
    one = loaded.generate(PROMPTS[:1], seeds=[5], frames=9)[1]
    assert one.shape[1] == 9 and torch.equal(one, results["one"])


def test_given_frames_are_kept(results, loaded) -> None:
    clip = results["default"]
    ids, frames = loaded.generate(PROMPTS, seeds=[5, 6], first_frame=clip[:, 0])
    assert torch.equal(frames, results["image"])
    assert torch.equal(ids[:, :1], loaded.video_tokenizer.encode(clip[:, :1]))
    ids, frames = loaded.generate(PROMPTS, seeds=[5, 6], clip=clip[:, :5])
    assert torch.equal(frames, results["clip"])
    assert torch.equal(ids[:, :2], loaded.video_tokenizer.encode(clip[:, :5]))


def test_text_ids_and_half_precision(results, source) -> None:
    assert results["text"].tolist() == [source.text.encode(prompt, 16) for prompt in PROMPTS]
    assert results["bfloat16"].shape == results["float16"].shape == results["default"].shape


def test_batches_do_not_change_a_clip(loaded) -> None:
    whole = loaded.generate(PROMPTS, seeds=[5, 6])[0]
    assert torch.equal(loaded.generate(PROMPTS, seeds=[5, 6], batch_size=1)[0], whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(prompts=["a red square moves left " * 4], seeds=[0]), "shorten it"),
        (dict(labels=[1], seeds=[0]), "generated from prompts"),
        (dict(prompts=["a"], seeds=[0, 1]), "2 for 1 clips"),
        (dict(prompts=["a"], seeds=[0], frames=21), "at most 17"),
        (dict(prompts=["a"], seeds=[0], frames=6), r"1 \+ 4k"),
        (dict(prompts=["a"], seeds=[0], first_frame=torch.zeros(1, 8, 8, 3, dtype=torch.uint8)), "16, 16, 3"),
    ],
)
def test_wrong_inputs_are_one_line(loaded, arguments, message) -> None:
    with pytest.raises(UserError, match=message) as error:
        loaded.generate(**arguments)
    assert "\n" not in str(error.value)


def test_wrong_inputs_in_transformers(folder) -> None:
    from megavrc.model.modeling_vrc import VRCForVideoGeneration

    model = VRCForVideoGeneration.from_pretrained(folder)
    with pytest.raises(ValueError, match="at most 15: shorten it"):
        model.generate_video("a red square moves left " * 4)
    with pytest.raises(ValueError, match="conditioned on text"):
        model.generate_video(label=0)
    with pytest.raises(ValueError, match="unknown sampling option heat"):
        model.generate_video("a", heat=1)
    with pytest.raises(ValueError, match="exactly one"):
        model.generate_video()


def test_a_folder_that_lacks_tensors_does_not_load_with_random_ones(folder, tmp_path) -> None:
    from megavrc.model.modeling_vrc import VRCForVideoGeneration

    tensors = load_file(folder / "model.safetensors")
    tensors.pop("vrc.head.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"vrc\.head are missing"):
        VRCForVideoGeneration.from_pretrained(tmp_path)


def test_the_example_writes_a_clip_without_megavrc(folder, tmp_path) -> None:
    example = Path(__file__).parents[2] / "examples" / "generate.py"
    command = [
        sys.executable,
        "-I",
        example,
        folder,
        PROMPTS[0],
        "--seed",
        "5",
        "--out",
        tmp_path / "clip.gif",
    ]
    run = subprocess.run(
        command, env=os.environ | {"HF_HOME": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0 and "clip.gif: 17 frames" in run.stdout, run.stderr
    assert (tmp_path / "clip.gif").read_bytes()[:4] == b"GIF8"


def test_push_to_hub_sends_the_whole_folder_and_nothing_of_this_machine(folder, tmp_path) -> None:
    pushed = push(sys.executable, folder, tmp_path)
    assert {path.name for path in pushed.iterdir()} >= {path.name for path in folder.iterdir()} - {
        "SHA256SUMS"
    }
    assert_names_no_machine(pushed, folder, tmp_path)
    clips = [load_folder(path).generate(PROMPTS, seeds=[1, 2])[1] for path in (folder, pushed)]
    assert torch.equal(*clips)


def test_saving_again_names_no_machine(folder, tmp_path) -> None:
    from megavrc.model.modeling_vrc import VRCForVideoGeneration

    VRCForVideoGeneration.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert_names_no_machine(tmp_path / "again", folder, tmp_path)
