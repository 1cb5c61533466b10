"""What 3415e13 wrote still loads, resumes, verifies and generates.

These tests stay for good, so they use only what is promised: the commands, `megavrc.model`, `megavrc.tokenizers`,
transformers, and the files' own formats. make_old.py says what is in the archive and how it was made.
"""

import functools
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import ROOT, run
from forked import run_forked
from make_old import IDS, TWO_RANKS, losses, machine, weights_digest
from safetensors.torch import load_file

# --- runs ------------------------------------------------------------------------------------------------------------


def continued(name: str, expected: dict[str, Any], words: list[str], *options: str) -> None:
    """Train on from the old checkpoint: what the old code went on to is what this one must reach.

    To the last bit on the same processor and PyTorch; elsewhere sums are taken in another order, and a few steps of
    AdamW turn 1e-7 into something like 1e-5.
    """
    run_dir, more = Path(name.split()[0]), expected["more"]
    words = [*words, f"--config={run_dir}.yaml", f"--train.steps={more}", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if words[0].endswith(".py"):
        done = run_forked(*words, env=environment, cwd=Path.cwd())
    else:  # torch's launcher
        command = [sys.executable, *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found, recorded = losses(run_dir), expected[name]["metrics"]
    assert [line["step"] for line in found] == list(range(5, more + 1))
    if machine() == expected["machine"]:
        assert found == recorded
        assert weights_digest(run_dir, more) == expected[name]["weights"]
    for mine, theirs in zip(found, recorded, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "loss" in json.loads(line)] == list(
        range(1, more + 1)
    )
    assert json.loads((run_dir / "complete.json").read_text())["step"] == more


def test_run_of_two_ranks_goes_on_with_one(old: Path, expected: dict[str, Any]) -> None:
    script = str(ROOT / "pretrain/pretrain_vrc.py")
    continued("stage2 on 1 rank", expected, [script], "--train.micro_batch=4")


@pytest.mark.slow
def test_run_of_two_ranks_goes_on_with_two(old: Path, expected: dict[str, Any]) -> None:
    continued("stage2 on 2 ranks", expected, [*TWO_RANKS, str(ROOT / "pretrain/pretrain_vrc.py")])


@pytest.mark.slow
def test_tokenizer_run_goes_on(old: Path, expected: dict[str, Any]) -> None:
    script = str(ROOT / "pretrain/pretrain_tokenizer.py")
    continued("tokenizer on 1 rank", expected, [script], "--train.micro_batch=4")


@pytest.mark.slow
def test_stage_2_starts_from_an_old_stage_1(old: Path) -> None:
    words = [
        str(ROOT / "pretrain/pretrain_vrc.py"),
        "--config=stage2.yaml",
        "--run_dir=new",
        "--train.micro_batch=4",
    ]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (old / "new/complete.json").is_file()


def test_saved_configurations_are_read(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The resolved ones, with every field of then; fields that are no more are ignored where they say nothing."""
    plan = ["--gpu=a100", "--gpus=1", "--"]
    assert run("tools/plan_run.py", *plan, "--config=stage2/config.yaml") == 0
    render = ["render", "--gpus=1", "--", "pretrain/pretrain_tokenizer.py"]
    assert run("tools/submit_slurm.py", *render, "--config=tokenizer/config.yaml") == 0
    changed = Path("stage2/config.yaml").read_text().replace("straggler_factor: 1.5", "straggler_factor: 3.0")
    Path("changed.yaml").write_text(changed)
    capsys.readouterr()
    for words in (["--config=changed.yaml"], ["--config=stage2/config.yaml", "--train.straggler_factor=3"]):
        assert run("tools/plan_run.py", *plan, *words) == 2
        error = capsys.readouterr().err
        assert (
            "train.straggler_factor: 3" in error
            and "1.5 times the median" in error
            and error.count("\n") == 1
        )


def test_runs_are_verified_and_compared(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tokenizer", "stage1", "stage2"):
        assert run("tools/convert_checkpoint.py", "verify", f"--model={name}") == 0
    assert "step-00000004: whole" in capsys.readouterr().out
    assert run("tools/compare_runs.py", "stage2", "results/reference.jsonl", "--json=new.json") == 0
    again, before = (json.loads(Path(name).read_text()) for name in ("new.json", "results/comparison.json"))
    assert again["differences"] == before["differences"]


# --- data ------------------------------------------------------------------------------------------------------------


def test_plan_is_run_finalized_and_verified(
    old: Path, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """One shard again, then the whole job: as it was, the damaged video recorded; on the same machine every byte."""
    job = "tools/tokenize_videos.py"
    manifests = [Path(f"tokens/{kind}/manifest.json") for kind in ("video", "image")]
    before = [file.read_bytes() for file in manifests]
    samples = [samples_of(tar) for tar in sorted(Path("tokens").glob("*/shards/*.tar"))]
    assert run(job, "verify", "--out=tokens") == 0
    assert run(job, "status", "--out=tokens") == 0
    for file in manifests:
        (file.parent / "shards/train-000001-of-000002.tar.done.json").unlink()
        file.unlink()
    assert run(job, "run", "--out=tokens", "--decoders=1", "--task=1", "--of=3") == 0
    assert capsys.readouterr().err.count("plan.json does not name its decoder") == 1
    assert run(job, "finalize", "--out=tokens") == 0
    assert run(job, "verify", "--out=tokens") == 0
    again = [samples_of(tar) for tar in sorted(Path("tokens").glob("*/shards/*.tar"))]
    assert [list(shard) for shard in again] == [list(shard) for shard in samples]
    if machine() == expected["machine"]:
        assert again == samples
        assert [file.read_bytes() for file in manifests] == before
    failed = [json.loads(line) for file in Path("tokens/failures").glob("*") for line in file.open()]
    assert [failure["source"] for failure in failed] == ["damaged"]


def samples_of(tar: Path) -> dict[str, Any]:
    """JSON and ids by member: a shard is a plain tar."""
    found = {}
    with tarfile.open(tar) as members:
        for member in members:
            content = members.extractfile(member).read()  # type: ignore[union-attr]
            npy = member.name.endswith(".npy")
            found[member.name] = np.load(io.BytesIO(content)).tolist() if npy else json.loads(content)
    return found


def test_old_plan_is_made_again_as_it_was(old: Path) -> None:
    """The list of videos, the settings and the tokenizer give the same order, and a dataset that is read together."""
    options = ["--manifest=data/videos.jsonl", "--tokenizer=tokenizer/model", "--out=new", "--size=32"]
    options += ['--splits=["train", "val"]', "--clips_per_shard=8", "--images_per_video=4"]
    job = [*options, "--clip_batch=4", "--image_batch=8"]
    assert run("tools/tokenize_videos.py", "plan", *job) == 0
    assert Path("new/plan.jsonl").read_text() == Path("tokens/plan.jsonl").read_text()


def test_shards_are_shown(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            "tools/inspect_shards.py", "--folder=tokens/video", "--tokenizer=tokenizer/model", "--sheet=s.png"
        )
        == 0
    )
    assert "a damaged file" not in (out := capsys.readouterr().out) and "16" in out


# --- models ----------------------------------------------------------------------------------------------------------


def luma_of(path: Path) -> np.ndarray:
    """[T, H, W] of an mp4 file: where its colour samples lie and how they are spread may change."""
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="gray").astype(int) for frame in container.decode(video=0)])


def test_clips_are_generated_as_they_were(old: Path, expected: dict[str, Any]) -> None:
    """The same pixels for a prompt and a seed, but for what the video codec adds; and old clips are not made again."""
    words = ["--model=hf", f"--prompt={json.dumps(expected['prompts'])}", f"--seed={expected['seed']}"]
    assert run("tools/generate.py", *words, "--out=new") == 0
    before, again = (
        [luma_of(file) for file in sorted(Path(out).glob("*.mp4"))] for out in ("samples", "new")
    )
    apart = np.abs(
        before[0] - before[1]
    ).mean()  # grey levels between two clips: they are noise, hardly trained
    assert len(before) == 2 and apart > 20
    assert all(np.abs(old - new).mean() < apart / 8 for old, new in zip(before, again, strict=True))
    times = {file: file.stat().st_mtime_ns for file in Path("samples").glob("*.mp4")}
    assert run("tools/generate.py", *words, "--out=samples") == 0
    assert {file: file.stat().st_mtime_ns for file in times} == times


def test_transformers_generates_the_same_ids(old: Path, expected: dict[str, Any]) -> None:
    """With the remote code of then, in a process of its own that has no megavrc."""
    words = [sys.executable, "-c", f"import sys; sys.modules['megavrc'] = None\n{IDS}"]
    environment = os.environ | {"HF_HOME": str(old / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words += [json.dumps(expected["prompts"]), str(expected["seed"])]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected["ids"]


def test_this_code_generates_the_same_ids(old: Path, expected: dict[str, Any]) -> None:
    """A model without refinement is the model of then, token for token."""
    from megavrc.model.modeling_vrc import VRCForVideoGeneration

    model = VRCForVideoGeneration.from_pretrained("hf")
    options: tuple[dict[str, Any], ...] = ({}, {"guidance": 2.0, "top_k": 20}, {"speculative": 4})  # of IDS
    for more, ids in zip(options, expected["ids"], strict=True):
        found = model.generate_video(expected["prompts"], seed=expected["seed"], output="ids", **more)
        assert found.tolist() == ids


@pytest.mark.slow
def test_converted_folder_is_verified_and_starts_a_run(old: Path) -> None:
    """The parity check: this code computes what the remote code of then computes."""
    assert run("tools/convert_checkpoint.py", "verify", "--model=hf") == 0
    assert run("tools/convert_checkpoint.py", "from-hf", "--model=hf", "--out=start") == 0
    assert run("tools/convert_checkpoint.py", "verify", "--model=start") == 0


@pytest.mark.slow
def test_old_run_is_converted(old: Path) -> None:
    """A checkpoint of then gives the weights that it gave then."""
    words = ["--video_tokenizer=tokenizer/model", "--text_tokenizer=text/tokenizer.model", "--out=new"]
    assert run("tools/convert_checkpoint.py", "to-hf", "--run=stage2", *words) == 0
    before, again = load_file("hf/model.safetensors"), load_file("new/model.safetensors")
    assert before.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in before.items())


def test_weights_load_in_python(old: Path) -> None:
    """What the pages show to write: model, video tokenizer, text tokenizer."""
    from megavrc.model import VRC, ModelConfig
    from megavrc.tokenizers import OmniTokenizer, TextTokenizer

    content = json.loads(Path("hf/config.json").read_text())
    model = VRC(ModelConfig.from_dict(content["vrc"]))
    weights = load_file("hf/model.safetensors")
    model.load_state_dict(
        {name.removeprefix("vrc."): tensor for name, tensor in weights.items() if name.startswith("vrc.")}
    )
    video = OmniTokenizer.from_checkpoint("tokenizer/model")
    frames = video.decode(torch.zeros(1, 5, 4, 4, dtype=torch.int64))
    assert frames.shape == (1, 17, 32, 32, 3) and video.encode(frames).shape == (1, 5, 4, 4)
    described = json.loads(Path("tokens/video/dataset.json").read_text())
    assert video.sha256 == described["tokenizer"]["sha256"]
    assert TextTokenizer("text/tokenizer.model").vocab <= 64


# --- result files ----------------------------------------------------------------------------------------------------

# What a reader needs of each, dotted. Commands that read results, or write other ones, find here what was written.
RESULTS = {
    "alignment": "real.all reconstructed.psnr generated.colour generated_t1.shape heldout.direction",
    "speed": "device threads preset seconds_per_clip.segment.median seconds_per_clip.segment.seconds",
    "plan": "parameters.total memory.total clips_per_s run.gpu_hours largest_micro_batch.zero_1 problems",
    "doctor": "able findings",
    "comparison": "tolerance differences config",
    "benchmarks/attention": "machine.cpu machine.torch dtype cases refused",
    "benchmarks/demo": "machine seeds.0.alignment.generated.all seeds.0.seconds steps.stage2",
    "benchmarks/faults": "host torch steps cases",
    "benchmarks/generate-l": "machine.cpu machine.torch model.preset dtype cases",
    "benchmarks/generate-trained": "machine.cpu machine.torch model.preset dtype cases",
    "benchmarks/loader": "machine.cpu machine.torch data.samples samples_per_second samples_per_cpu_second",
    "benchmarks/tokenize": "machine.cpu machine.torch sampling.frames decode.smooth.first_clip_per_core_second",
    "benchmarks/train-b": "machine.cpu machine.torch settings.steps cases against_token",
    "benchmarks/train-debug": "machine.cpu machine.torch settings.steps cases against_token",
}


def test_results_of_every_kind_have_their_keys(kept: Path) -> None:
    results = kept / "results"
    files = {file.relative_to(results).with_suffix("").as_posix() for file in results.rglob("*.json")}
    assert files == set(RESULTS)
    for name, keys in RESULTS.items():
        for key in keys.split():
            content = json.loads((results / f"{name}.json").read_text())
            functools.reduce(lambda part, word: part[word], key.split("."), content)


def test_alignment_is_measured_as_it_was(old: Path, expected: dict[str, Any]) -> None:
    """The sets, scores and, of the same clips, the numbers: `alignment.json` is what others compare."""
    words = ["--model=hf", "--manifest=data/manifest.jsonl", "--prompts=11", "--json=new.json"]
    assert run("tools/evaluate.py", "alignment", *words) == 0
    before, again = (json.loads(Path(name).read_text()) for name in ("results/alignment.json", "new.json"))
    kept = {
        name: {key: again[name].get(key) for key in scores} for name, scores in before.items()
    }  # new ones may come
    assert all(None not in scores.values() for scores in kept.values())
    assert kept["real"] == before["real"]
    if machine() == expected["machine"]:
        assert kept["generated"] == before["generated"]
