"""Makes REVISION.tar.xz: what the code of a revision writes, which every later one must still read.

    python tests/old/make_old.py 3415e13

The revision is checked out into a temporary folder and its own commands are run there, each as written in `steps`, so
that they need nothing but the packages of this environment. Everything is as small as the formats allow: clips of 32 x
32 pixels, 64 codes, preset debug with 2 layers of width 16 (12,000 parameters), so 5 x 4 x 4 tokens a clip.

    data/         12 + 4 + 4 clips of moving shapes (mp4); videos.jsonl names a damaged file too
    tokenizer/    run of the video tokenizer on two ranks, with its model/
    tokens/       plan, two shards for training and one for validation, of clips and of images; text features; failures
    text/         the text tokenizer
    stage1/ stage2/   runs of two ranks at ZeRO stage 1, with EMA and validation, complete after 4 steps
    hf/           stage2 converted, with the remote code of then
    samples/      clips that tools/generate.py made from it
    results/      what --json of the commands wrote, a reference run, a SLURM script, and benchmarks/results
    expected.json what the code of then went on to: metrics and weights after 8 steps, ids for seeds, and the machine
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

HERE = Path(__file__).resolve().parent
PROMPTS = ["a red square moves left", "a blue circle moves up"]
SEED = 5
LEFT_OUT = {"__pycache__", "cache", "previews", "tensorboard"}
STEPS, MORE = 4, 8  # of the runs, and of their continuation
TWO_RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

TRAIN = {
    "steps": STEPS,
    "global_batch": 4,
    "micro_batch": 2,
    "log_every": 1,
    "save_every": STEPS,
    "preview_every": 0,
    "keep": 1,
}
TOKENIZER = {
    "run_dir": "tokenizer",
    "model": {
        "width": 16,
        "heads": 2,
        "dim_head": 8,
        "enc_block": "w",
        "dec_block": "t",
        "temporal_depth": 1,
        "window": 2,
        "codes": 64,
        "code_dim": 4,
        "temporal_peg": "causal",
    },
    "objective": {"warmup_steps": 2},
    "data": {"path": "data/manifest.jsonl", "frames": 17, "size": 32},
    "train": TRAIN | {"zero": 0},
    "optimizer": {"lr": 4.0e-3, "warmup": 2},
    "preview": {"count": 1},
}
MODEL = {
    "preset": "debug",
    "layers": 2,
    "heads": 1,
    "width": 16,
    "vocab": 64,
    "grid": 4,
    "dropout": 0.1,
    "condition": {"kind": "text", "slots": 24, "vocab": 64, "drop": 0.1},
}
STAGE = {
    "data": {
        "text_tokenizer": "text/tokenizer.model",
        "video_tokenizer": "tokenizer/model",
        "validation": {"val": {"split": "val", "samples": 4}},
    },
    "train": TRAIN | {"zero": 1, "ema": 0.9},
    "optimizer": {"lr": 4.0e-3, "warmup": 2},
    "preview": {"count": 1},
}
STAGE1 = STAGE | {
    "run_dir": "stage1",
    "stage": "image",
    "model": MODEL | {"frames": 0},
    "data": STAGE["data"] | {"path": "tokens/image"},
}
STAGE2 = STAGE | {
    "run_dir": "stage2",
    "stage": "video",
    "init_from": "stage1",
    "model": MODEL | {"frames": 4},
    "data": STAGE["data"] | {"path": "tokens/video"},
}
IDS = """
import json, sys, transformers
model = transformers.AutoModel.from_pretrained("hf", trust_remote_code=True).eval()
prompts, seed = json.loads(sys.argv[1]), int(sys.argv[2])
print(json.dumps([model.generate_video(prompts, seed=seed, output="ids", **options).tolist()
                  for options in ({}, {"guidance": 2.0, "top_k": 20}, {"speculative": 4})]))
"""


def machine() -> list[str]:
    """What decides the last bits of a result: the processor, and PyTorch, whose kernels differ."""
    import torch

    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    kinds = ("vendor_id", "cpu family", "model\t", "flags")
    described = sorted({line for line in text.splitlines() if line.startswith(kinds)})
    processor = hashlib.sha256("\n".join(described).encode()).hexdigest()
    return [platform.machine(), processor, torch.backends.cpu.get_cpu_capability(), torch.__version__]


def weights_digest(run: Path, step: int) -> str:
    """One hash of all parameters and moments of a checkpoint, whichever files they are in."""
    from safetensors.numpy import load_file

    folder, total = run / "checkpoints" / f"step-{step:08d}", hashlib.sha256()
    for group in ("model", "exp_avg", "exp_avg_sq", "buffers"):
        tensors: dict[str, np.ndarray] = {}
        for file in folder.glob(f"{group}-*.safetensors"):
            tensors |= load_file(file)
        for name in sorted(tensors):
            total.update(f"{group} {name} {tensors[name].dtype}".encode() + tensors[name].tobytes())
    return total.hexdigest()


def losses(run: Path) -> list[dict[str, float]]:
    """The metrics that were trained, of the steps after STEPS."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "grad_norm", "lr")
    return [{name: line[name] for name in names if name in line} for line in lines if line["step"] > STEPS]


class Maker:
    """Runs commands of the code in `root/code` in the folder `root/old`."""

    def __init__(self, root: Path) -> None:
        self.out = root / "old"
        self.out.mkdir()
        self.environment = {**os.environ, "PYTHONPATH": str(root / "code"), "OMP_NUM_THREADS": "1"}

    def run(self, *words: str, cwd: Path | None = None) -> str:
        """Of a command, or after `-m`, `-c` of anything else; its standard output."""
        print("$", *[word if len(word) < 200 else "..." for word in words], flush=True)
        run = subprocess.run(
            [sys.executable, *words],
            cwd=cwd or self.out,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert run.returncode == 0, words
        return run.stdout

    def tool(self, name: str, *options: str) -> str:
        return self.run(f"../code/{name}", *options)


def make_data(old: Maker) -> None:
    """Clips, and the list of them with a damaged one."""
    sizes = ["--clips=12", "--val=4", "--heldout=1", "--size=32", "--processes=1"]
    old.tool("tools/make_shapes.py", "--out=data", *sizes)
    (old.out / "data/videos/damaged.mp4").write_bytes(b"not a video" * 20)
    damaged = {"id": "damaged", "path": "videos/damaged.mp4", "caption": "a damaged file", "label": 0}
    text = (old.out / "data/manifest.jsonl").read_text() + json.dumps(damaged | {"split": "train"}) + "\n"
    (old.out / "data/videos.jsonl").write_text(text)


def make_tokens(old: Maker, encoder: Path) -> None:
    """The tokenizers and the job, in two tasks."""
    (old.out / "tokenizer.yaml").write_text(yaml.safe_dump(TOKENIZER, sort_keys=False))
    old.run(*TWO_RANKS, "../code/pretrain/pretrain_tokenizer.py", "--config=tokenizer.yaml")
    text = ["--captions=data/manifest.jsonl", "--out=text/tokenizer.model", "--vocab=64"]
    old.tool("tools/train_text_tokenizer.py", *text)
    job = ["--manifest=data/videos.jsonl", "--tokenizer=tokenizer/model", "--out=tokens", "--size=32"]
    job += ['--splits=["train", "val"]', "--clips_per_shard=8", "--images_per_video=4"]
    old.tool("tools/tokenize_videos.py", "plan", *job, "--clip_batch=4", "--image_batch=8")
    for task in ("0", "1"):
        old.tool("tools/tokenize_videos.py", "run", "--out=tokens", f"--task={task}", "--of=2")
    old.tool("tools/tokenize_videos.py", "finalize", "--out=tokens")
    features = ["--out=tokens", f"--encoder={encoder}", "--max_tokens=8"]
    old.tool("tools/tokenize_videos.py", "text-features", *features)
    old.tool("tools/tokenize_videos.py", "verify", "--out=tokens")


def make_model(old: Maker) -> None:
    """Both stages, the conversion, and clips."""
    for name, config in {"stage1": STAGE1, "stage2": STAGE2}.items():
        (old.out / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        old.run(*TWO_RANKS, "../code/pretrain/pretrain_vrc.py", f"--config={name}.yaml")
    parts = ["--video_tokenizer=tokenizer/model", "--text_tokenizer=text/tokenizer.model"]
    old.tool("tools/convert_checkpoint.py", "to-hf", "--run=stage2", *parts, "--out=hf")
    clips = [f"--prompt={json.dumps(PROMPTS)}", f"--seed={SEED}"]
    old.tool("tools/generate.py", "--model=hf", "--out=samples", *clips)


def make_results(old: Maker, code: Path) -> None:
    """One file of every kind of result."""
    (old.out / "results").mkdir()
    model = ["--model=hf", "--manifest=data/manifest.jsonl", "--prompts=11"]
    old.tool("tools/evaluate.py", "alignment", *model, "--json=results/alignment.json")
    old.tool("tools/evaluate.py", "speed", "--model=hf", "--repeats=5", "--json=results/speed.json")
    config = ["--", "--config=../code/pretrain/configs/video_1.2b.yaml"]
    old.tool("tools/plan_run.py", "--gpus=8", "--clips=300000", "--json=results/plan.json", *config)
    old.tool("tools/doctor.py", "--json=results/doctor.json")
    old.tool("tools/compare_runs.py", "stage2", "--save=results/reference.jsonl")
    compared = ["stage2", "results/reference.jsonl", "--json=results/comparison.json"]
    old.tool("tools/compare_runs.py", *compared)
    slurm = ["--nodes=1", "--gpus=2", "--time=24:00:00", "--python=python"]
    training = ["--", "pretrain/pretrain_vrc.py", "--config=stage2.yaml"]
    (old.out / "results/job.sbatch").write_text(
        old.tool("tools/submit_slurm.py", "render", *slurm, *training)
    )
    shutil.copytree(code / "benchmarks/results", old.out / "results/benchmarks")


def expected(old: Maker, root: Path) -> dict[str, Any]:
    """What the code of then makes of all this."""
    found: dict[str, Any] = {"machine": machine(), "prompts": PROMPTS, "seed": SEED, "more": MORE}
    found["ids"] = json.loads(old.run("-c", IDS, json.dumps(PROMPTS), str(SEED)))
    more, one = f"--train.steps={MORE}", f"--train.micro_batch={TRAIN['global_batch']}"
    continued = {
        "stage2 on 2 ranks": ([*TWO_RANKS, "../code/pretrain/pretrain_vrc.py"], "stage2", [more]),
        "stage2 on 1 rank": (["../code/pretrain/pretrain_vrc.py"], "stage2", [more, one]),
        "tokenizer on 1 rank": (["../code/pretrain/pretrain_tokenizer.py"], "tokenizer", [more, one]),
    }
    for name, (words, run, options) in continued.items():
        copy = root / name.replace(" ", "-")
        shutil.copytree(old.out, copy)
        old.run(*words, f"--config={run}.yaml", *options, cwd=copy)
        found[name] = {"metrics": losses(copy / run), "weights": weights_digest(copy / run, MORE)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("revision")
    revision = parser.parse_args().revision
    sys.path.insert(0, str(HERE.parent))
    from encoders import make_encoder

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        subprocess.run(["git", "clone", "-q", "--no-checkout", HERE.parents[1], root / "code"], check=True)
        subprocess.run(["git", "-C", root / "code", "checkout", "-q", revision], check=True)
        old = Maker(root)
        make_data(old)
        make_tokens(old, make_encoder(root / "encoder"))
        make_model(old)
        make_results(old, root / "code")
        (old.out / "expected.json").write_text(json.dumps(expected(old, root)) + "\n")
        with tarfile.open(HERE / f"{revision}.tar.xz", "w:xz", preset=9) as archive:
            archive.add(old.out, ".", filter=kept)


def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Without owner, pictures for people, and what is made anew where it is missing."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return None if LEFT_OUT & set(Path(member.name).parts) else member


if __name__ == "__main__":
    main()
