"""Runs to folders in Hugging Face format (to-hf), the check of such a folder (verify), published video tokenizers."""

from pathlib import Path
from typing import Literal

from megavrc.config import command


def to_hf(
    run: Path,
    video_tokenizer: Path,
    out: Path,
    text_tokenizer: Path | None = None,
    step: int | None = None,
    dtype: Literal["fp32", "bf16"] = "fp32",
    shard_size: str = "4GB",
    weights: Literal["model", "ema"] = "model",
) -> None:
    """Convert a training run to a folder that transformers and tools/generate.py load.

    The folder appears only if a fresh process without megavrc computes from it exactly what the run's weights compute.

    Args:
        run: folder of a stage-1 or stage-2 run, or one of its checkpoints.
        video_tokenizer: the video tokenizer's folder or published checkpoint.
        out: the new folder.
        text_tokenizer: tokenizer.model, for a model that is conditioned on text.
        step: optimiser step of the checkpoint to take (default: the newest).
        dtype: of the generator's weights; batch norms and the video tokenizer stay fp32.
        shard_size: largest weight file, e.g. 500MB.
        weights: as trained, or their average over training (train.ema).
    """
    from megavrc.hf.convert import to_hf

    to_hf(run, video_tokenizer, text_tokenizer, out, step, dtype, shard_size, weights)
    print(f"{out}: converted and checked; try: python tools/generate.py --model {out} --help")


def verify(model: Path) -> None:
    """Check a converted folder: checksums, loading with and without transformers, equal logits and clips.

    Args:
        model: the folder.
    """
    from megavrc.hf.convert import verify

    verify(model)
    print(f"{model}: whole; transformers and megavrc compute the same from it")


def import_omnitokenizer(checkpoint: Path, out: Path) -> None:
    """Turn a published OmniTokenizer checkpoint into a folder with config.json and safetensors.

    Args:
        checkpoint: the .ckpt file of a video VQ model.
        out: the new folder.
    """
    from megavrc.config import UserError
    from megavrc.tokenizers import OmniTokenizer

    if out.exists():
        raise UserError(f"{out}: exists; choose another folder or remove it")
    tokenizer = OmniTokenizer.from_checkpoint(checkpoint)
    tokenizer.save(out)
    print(f"{out}: {tokenizer.config.codes} codes, sha256 {tokenizer.sha256}")


if __name__ == "__main__":
    command({"to-hf": to_hf, "verify": verify, "import-omnitokenizer": import_omnitokenizer})
