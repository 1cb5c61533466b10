"""A tiny random model as a run left it, with its tokenizers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from token_sets import write_tokens
from torch import nn

from megavrc import checkpoint
from megavrc.model import VRC, ConditionConfig, ModelConfig
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from megavrc.tokenizers import OmniTokenizer, TextTokenizer

CAPTIONS = [
    f"a {colour} {shape} moves {way}, caf\u00e9 {n}"
    for n, (colour, shape, way) in enumerate(
        (c, s, w) for c in ("red", "green", "blue") for s in ("square", "disc", "dog") for w in ("left", "up")
    )
]


def scramble(module: nn.Module, seed: int) -> None:
    """Random values everywhere, so that no part hides behind its initialisation."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.1)


class Source:
    """A run folder, its model, and both tokenizers."""

    def __init__(
        self, root: Path, condition: ConditionConfig | None = None, frames: int = 4, **changes: Any
    ) -> None:
        self.text = TextTokenizer.train(CAPTIONS, root / "tokenizer.model", vocab=90)
        sizes = dict(width=32, heads=2, dim_head=16, patch=4, temporal_depth=1, window=2, codes=64)
        torch.manual_seed(0)
        net = OmniTokenizerNet(OmniTokenizerConfig(enc_block="tw", dec_block="t", **sizes))
        scramble(net, 1)
        self.video = OmniTokenizer(net)
        self.video.save(root / "video")
        condition = condition or ConditionConfig(vocab=self.text.vocab + 7, slots=16)
        shape: dict[str, Any] = dict(layers=2, heads=2, width=32, grid=4, vocab=64, frames=frames)
        self.model = VRC(ModelConfig(condition=condition, **shape | changes)).eval()
        scramble(self.model, 2)
        if self.model.config.refine and frames:  # which adds little else
            nn.init.normal_(self.model.partial.net[-1].weight, std=3.0)
            nn.init.normal_(self.model.head.weight, std=0.1)
        self.run = root / "run"
        self.run.mkdir()
        model = self.model.config.to_dict()
        data = {"path": str(root / "tokens" / "video")}
        stage = "video" if frames else "image"
        self.facts = {
            "video_tokenizer": self.video.sha256,
            "text_tokenizer": self.text.sha256 if condition.kind == "text" else None,
            "image_source": "clip",
        }
        state = {
            "identity": {"stage": stage, "model": model, "data": {"samples": len(CAPTIONS)}},
            "facts": self.facts,
            "config": {"stage": stage, "train": {"global_batch": 8}, "data": data, "seed": 0},
        }
        (self.run / "metrics.jsonl").write_text('{"step": 7, "loss": 1.25, "first": 0.5}\n{"cut off')
        groups = {
            "model": {name: tensor.detach() for name, tensor in self.model.named_parameters()},
            "buffers": dict(self.model.named_buffers()),
        }
        checkpoint.write(self.run / "checkpoints", 7, groups, state, keep=1)


def make_tokens(
    folder: Path,
    tokenizer: str,
    shape: tuple[int, int, int] = (5, 4, 4),
    split: str = "train",
    extra: dict[str, float] | None = None,
    label: int | None = None,
    classes: list[str] | None = None,
) -> Path:
    """Every clip of one colour has the same tokens: something to learn in a few steps."""
    clips = np.random.default_rng(0).integers(0, 64, (3, *shape))
    fields = {"label": label, "source": "s"} | (extra or {})
    samples = [
        (f"{number:016x}-0000000", clips[number % 3], {"caption": caption} | fields)
        for number, caption in enumerate(CAPTIONS)
    ]
    info = {"kind": "video", "image_source": "clip", "classes": classes}
    return write_tokens(folder, {split: [samples]}, shape, 64, tokenizer, **info)


def converted(source: Source, out: Path, dtype: torch.dtype = torch.float32, **facts: Any) -> Path:
    """A folder of a source, without the gate, which other tests try."""
    from megavrc.hf.convert import build, read_run, write_folder

    run = read_run(source.run)
    training = {
        "stage": run.state["identity"]["stage"],
        "step": 7,
        "facts": source.facts | facts,
        "summary": [["steps", 7]],
    }
    text = source.text if source.model.config.condition.kind == "text" else None
    write_folder(out, build(run, dtype), source.video, text, training, "4GB")
    return out
