"""`megavrc convert_checkpoint`: runs to Hugging Face format and back, their check, what other programs trained.

Each imports what it needs: `verify` of a run needs no transformers.
"""

import os
from pathlib import Path
from typing import Any, Literal

from megavrc.errors import UserError


def to_hf(
    run: Path,
    video_tokenizer: Path,
    out: Path,
    text_tokenizer: Path | None = None,
    step: int | None = None,
    dtype: Literal["fp32", "bf16"] = "fp32",
    shard_size: str = "4GB",
    weights: Literal["model", "ema"] = "model",
    captions: Path | None = None,
    temperatures: list[float] | None = None,
) -> None:
    """Convert a training run to a folder that transformers and megavrc generate load.

    The folder appears only if a fresh process without megavrc computes from it exactly what the run's weights compute.

    Args:
        run: folder of a stage-1 or stage-2 run, or one of its checkpoints.
        video_tokenizer: the video tokenizer's folder or published checkpoint.
        out: the new folder.
        text_tokenizer: tokenizer.model, for a model that is conditioned on text.
        step: optimiser step of the checkpoint to take (default: the newest).
        dtype: type of the generator's weights; batch norms and the video tokenizer stay fp32.
        shard_size: largest weight file, e.g. 500MB.
        weights: weights to convert: as trained, or their average over training (train.ema).
        captions: manifest.jsonl, or a text file of one caption a line, on which tokenizer.json must give
            sentencepiece's ids (default: the captions of the run's dataset, where it is still in its place).
        temperatures: sampling temperatures of the first frame and of the later ones with which the folder generates
            where nothing else is said (default: 0.7 0.5, or those of the folder that from-hf was given; the paper's are
            1 1).
    """
    from megavrc.hf.convert import to_hf

    to_hf(run, video_tokenizer, text_tokenizer, out, step, dtype, shard_size, weights, captions, temperatures)
    print(f"{out}: converted and checked; try: megavrc generate --model {out} --help")


def from_hf(model: Path, out: Path, classes: int | None = None, seed: int = 0) -> None:
    """Turn a converted folder into the start of a new run: `init_from` for stage 2, another dataset, other classes.

    Args:
        model: folder in Hugging Face format.
        out: the new folder: a checkpoint, and the tokenizers to prepare data with.
        classes: number of classes of the new dataset, for a class-conditioned model; their embeddings are fresh.
        seed: seed of the fresh embeddings.
    """
    from megavrc.hf.from_hf import from_hf

    from_hf(model, out, classes, seed)
    print(f"{out}: ready; tokenize videos with {out}/video_tokenizer, then train with --init_from {out}")


def verify(model: Path) -> None:
    """Check a run, a checkpoint or a converted folder: checksums; of a folder also loading, equal logits and clips.

    Of a training run, or of one of its checkpoints, check every byte against its SHA-256.

    Args:
        model: the folder.
    """
    if (model / "checkpoints").is_dir() or (model / "manifest.json").is_file():
        return _verify_run(model)
    from megavrc.hf.convert import verify

    verify(model)


def _verify_run(path: Path) -> None:
    from megavrc.checkpoint import DamagedCheckpoint, verify

    one = (path / "manifest.json").is_file()
    damaged = []
    store = path / "checkpoints"
    names = [] if one else sorted(name for name in os.listdir(store) if name.startswith("step-"))
    for folder in [path] if one else [store / name for name in names]:
        try:
            verify(folder)
            print(f"{folder}: whole")
        except (DamagedCheckpoint, OSError) as error:
            damaged.append(str(error))
    if damaged:
        raise UserError(f"{len(damaged)} damaged: {'; '.join(damaged)}")


def import_deepspeed(checkpoint: Path, config: Path, tag: str = "") -> None:
    """Turn a native DeepSpeed checkpoint of any ZeRO stage into the first one of a new run, which resumes from it.

    Args:
        checkpoint: the folder that DeepSpeed's save_checkpoint wrote to; its pickles are read, nothing in them is run.
        config: YAML file of the run, as for megavrc pretrain_vrc; its run_dir must be new.
        tag: name of the checkpoint (default: what the file `latest` names).
    """
    from megavrc.config import load_config
    from megavrc.training.import_deepspeed import import_run
    from megavrc.training.tasks.vrc import VRCTask
    from megavrc.training.tasks.vrc_config import RunConfig

    run = load_config(RunConfig, ["--config", str(config)])
    task: Any = VRCTask(run)
    print(f"{import_run(checkpoint, tag, run, task)}: imported; resume with --config {config}")


def import_omnitokenizer(checkpoint: Path, out: Path) -> None:
    """Turn a published OmniTokenizer checkpoint into a folder with config.json and safetensors.

    Args:
        checkpoint: the .ckpt file of a video VQ model.
        out: the new folder.
    """
    from megavrc.tokenizers import OmniTokenizer

    if out.exists() or out.is_symlink():  # also one that leads nowhere
        raise UserError(f"{out}: exists; choose another folder or remove it")
    tokenizer = OmniTokenizer.from_checkpoint(checkpoint)
    tokenizer.save(out)
    print(f"{out}: {tokenizer.config.codes} codes, sha256 {tokenizer.sha256}")
