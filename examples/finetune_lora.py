"""Fine-tune a converted folder on a token dataset with LoRA (peft) and write the merged model as a folder of its own.

pip install -e '.[lora]'
megavrc tokenize_videos plan --tokenizer ...     # with the folder's own video tokenizer: docs/huggingface.md
python examples/finetune_lora.py --model runs/demo/hf --data tokens/video --out runs/tuned
"""

from pathlib import Path
from typing import Literal

from megavrc.config import command
from megavrc.errors import UserError


def finetune_lora(
    model: Path,
    data: Path,
    out: Path,
    steps: int = 500,
    rank: int = 8,
    alpha: float = 16.0,
    lr: float = 1e-3,
    batch_size: int = 8,
    seed: int = 0,
    split: str = "train",
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    save_every: int = 100,
    max_incomplete: float = 0.05,
    run_dir: Path | None = None,
) -> None:
    """Train adapters on the trunk's matrices, merge them, and write a checked folder.

    Args:
        model: folder written by megavrc convert_checkpoint to-hf.
        data: finished token dataset (`<out>/video`) made with the folder's video tokenizer.
        out: the new folder.
        steps: of the optimiser.
        rank: of the adapters.
        alpha: adapters are scaled by alpha / rank.
        lr: learning rate.
        batch_size: clips of a step.
        seed: of adapters, data order and condition dropout.
        split: of the dataset.
        device: cpu or cuda; auto is cuda where there is one.
        precision: bf16 computes faster on GPUs; the adapters' master weights stay float32.
        save_every: steps between checkpoints.
        max_incomplete: largest share of clips whose caption is longer than the model takes, or that have none.
        run_dir: checkpoints and metrics (default: OUT.run). The same command goes on from there after it was stopped.
    """
    try:
        import peft  # noqa: F401
    except ImportError:
        raise UserError("peft is not installed: pip install -e '.[lora]'") from None
    from megavrc.hf.lora import LoraOptions, finetune

    options = LoraOptions(steps, rank, alpha, lr, batch_size, seed, precision, save_every, max_incomplete)
    losses = finetune(model, data, out, options, device, split, run_dir)
    if not out.exists():
        print(f"{out}: stopped after {len(losses)} of {steps} steps; run the same command again to go on")
        return
    print(f"{out}: loss {losses[0]:.4f} at the first step, {losses[-1]:.4f} at the last; merged and checked")


if __name__ == "__main__":
    command(finetune_lora)
