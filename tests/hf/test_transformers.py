"""A converted folder in transformers, and the same folder without it."""

import copy
import os
import pickle
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
    _, frames = loaded.generate(PROMPTS, seed=[5, 6])
    assert frames.shape == (2, 17, 16, 16, 3) and frames.dtype == torch.uint8
    assert torch.equal(frames, results["default"])
    layers = dict(temperature=0.0, guidance=2.0, later_temperature=1.0)
    ids, _ = loaded.generate(PROMPTS, seed=[5, 9], settings=sampling_settings(loaded.sampling, layers))
    assert torch.equal(ids, results["cold"])
    one = loaded.generate(PROMPTS[:1], seed=[5], frames=9)[1]
    assert one.shape[1] == 9 and torch.equal(one, results["one"])


def test_given_frames_are_kept(results, loaded) -> None:
    clip = results["default"]
    ids, frames = loaded.generate(PROMPTS, seed=[5, 6], first_frame=clip[:, 0])
    assert torch.equal(frames, results["image"])
    assert torch.equal(ids[:, :1], loaded.video_tokenizer.encode(clip[:, :1]))
    ids, frames = loaded.generate(PROMPTS, seed=[5, 6], clip=clip[:, :5])
    assert torch.equal(frames, results["clip"])
    assert torch.equal(ids[:, :2], loaded.video_tokenizer.encode(clip[:, :5]))


def test_text_ids_and_half_precision(results, source) -> None:
    assert results["text"].tolist() == [source.text.encode(prompt, 16) for prompt in PROMPTS]
    assert results["bfloat16"].shape == results["float16"].shape == results["default"].shape


def test_batches_do_not_change_a_clip(loaded) -> None:
    whole = loaded.generate(PROMPTS, seed=[5, 6])[0]
    assert torch.equal(loaded.generate(PROMPTS, seed=[5, 6], batch_size=1)[0], whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(prompt=["a red square moves left " * 4], seed=[0]), "shorten it"),
        (dict(label=[1], seed=[0]), "generated from prompts"),
        (dict(prompt=["a"], seed=[0, 1]), "2 for 1 clips"),
        (dict(prompt=["a"], seed=[0], frames=21), "at most 17"),
        (dict(prompt=["a"], seed=[0], frames=6), r"1 \+ 4k"),
        (dict(prompt=["a"], seed=[0], clip=torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8)), "16, 16, 3"),
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
    with pytest.raises(ValueError, match="unknown option heat"):
        model.generate_video("a", heat=1)
    with pytest.raises(ValueError, match="exactly one"):
        model.generate_video()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_used_model_is_copied_and_pickled_without_what_its_pipeline_keeps(folder, how) -> None:
    from megavrc.model.modeling_vrc import VRCForVideoGeneration

    model = VRCForVideoGeneration.from_pretrained(folder)
    names, modules = list(model.state_dict()), list(model.modules())
    expected = model.generate_video(PROMPTS, seed=5, output="ids")
    model.pipeline._kept["a job"] = torch.zeros(2**22)  # as on CUDA: a workspace
    assert list(model.state_dict()) == names and list(model.modules()) == modules
    assert len(pickle.dumps(model)) < 2**22
    other = how(model)
    assert other.pipeline is not model.pipeline and not other.pipeline._kept and model.pipeline._kept
    assert other.pipeline.vrc is other.vrc and other.pipeline.video_tokenizer is other.video_tokenizer
    with torch.no_grad():
        model.vrc.tokens.weight.zero_()
    assert torch.equal(other.generate_video(PROMPTS, seed=5, output="ids"), expected)


def test_a_model_whose_generator_is_replaced_generates_with_the_new_one(folder) -> None:
    from megavrc.model.modeling_vrc import VRCForVideoGeneration

    model, other = (VRCForVideoGeneration.from_pretrained(folder) for _ in range(2))
    torch.nn.init.normal_(other.vrc.head.weight)
    expected = other.generate_video(PROMPTS, seed=5, output="ids")
    assert not torch.equal(model.generate_video(PROMPTS, seed=5, output="ids"), expected)
    model.vrc = other.vrc
    assert torch.equal(model.generate_video(PROMPTS, seed=5, output="ids"), expected)


def test_arguments_have_the_names_of_generate_video_and_the_former_ones_still_work(loaded) -> None:
    ids, _ = loaded.generate(PROMPTS, seed=5, guidance=2.0, later_top_k=3)
    settings = sampling_settings(loaded.sampling, {"guidance": 2.0, "later_top_k": 3})
    former = loaded.generate(prompts=PROMPTS, seeds=[5, 6], settings=settings)[0]
    assert torch.equal(former, ids)
    assert torch.equal(loaded.generate(PROMPTS[1], seed=6, settings=settings)[0], ids[1:])
    with pytest.raises(UserError, match="unknown option heat"):
        loaded.generate("a", heat=1)


def test_a_folder_that_lacks_tensors_does_not_load_with_random_ones(folder, tmp_path) -> None:
    from megavrc.model.modeling_vrc import VRCForVideoGeneration

    tensors = load_file(folder / "model.safetensors")
    tensors.pop("vrc.head.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"1 tensors are missing, 0 too many, the first is vrc\.head"):
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
    clips = [load_folder(path).generate(PROMPTS, seed=[1, 2])[1] for path in (folder, pushed)]
    assert torch.equal(*clips)


def test_saving_again_names_no_machine(folder, tmp_path) -> None:
    from megavrc.model.modeling_vrc import VRCForVideoGeneration

    VRCForVideoGeneration.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert_names_no_machine(tmp_path / "again", folder, tmp_path)
