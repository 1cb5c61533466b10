"""Training of the video tokenizer on decoded clips."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from megavrc.config import to_dict
from megavrc.distributed import Rank, seed_for
from megavrc.model.omnitokenizer import OmniTokenizerNet
from megavrc.tokenizers import OmniTokenizer
from megavrc.tokenizers.objective import TokenizerObjective
from megavrc.training.config import TokenizerRunConfig
from megavrc.training.previews import write_preview
from megavrc.training.tasks.clips import ClipSource, window

EXPORT = "model"  # folder of the finished tokenizer inside the run folder


class TokenizerTask:
    """Trains an OmniTokenizer; see `Task` for the parts. All ranks build it together: they decode the clips."""

    def __init__(self, config: TokenizerRunConfig, rank: Rank) -> None:
        self.config = config
        self.source = ClipSource(config.data, Path(config.run_dir) / "cache", rank)
        rows, columns = config.model.grid(config.data.size, config.data.size)
        self.tokens = config.model.latent_frames(config.data.frames) * rows * columns
        self.facts: dict[str, Any] = {}
        self.identity = {
            "stage": "tokenizer",
            "seed": config.seed,
            "model": config.model.to_dict(),
            "objective": to_dict(config.objective),
            "data": self.source.sha256,
            "frames_schedule": {
                str(float(start)): frames for start, frames in config.data.frames_schedule.items()
            },
            "global_batch": config.train.global_batch,
        }

    def build(self) -> nn.Module:
        return TokenizerObjective(OmniTokenizerNet(self.config.model), self.config.objective)

    def initialise(self, module: nn.Module) -> None:
        pass

    def frames_at(self, step: int) -> int:
        """Frames of a training window at a step."""
        schedule = self.config.data.frames_schedule or {0: self.config.data.frames}
        return schedule[max(start for start in schedule if start <= step)]

    def collate(self, items: list[dict[str, Any]]) -> Tensor:
        """uint8 [B, T, H, W, 3]: a random window of each clip, drawn from (seed, position)."""
        frames = self.frames_at(items[0]["position"] // self.config.train.global_batch)
        return torch.stack([self._window(item, frames) for item in items])

    def _window(self, item: dict[str, Any], frames: int) -> Tensor:
        seed = seed_for(self.config.seed, "window", item["position"])
        return window(item["clip"], frames, lambda below: seed % below)

    def loss(self, module: nn.Module, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return module(batch, step)

    def preview(self, module: nn.Module, folder: Path, step: int) -> None:
        assert isinstance(module, TokenizerObjective)
        count = min(self.config.preview.count, len(self.source))
        if count and bool(module.seeded):  # before, the codebook is noise
            write_preview(folder, step, self._reconstructions(OmniTokenizer(module.net), count))

    def _reconstructions(self, tokenizer: OmniTokenizer, count: int) -> list[tuple[str, np.ndarray]]:
        """Each clip and its reconstruction."""
        items = [self.source[index] for index in range(count)]
        clips = torch.from_numpy(np.stack([item["clip"] for item in items]))
        decoded = tokenizer.decode(tokenizer.encode(clips)).cpu().numpy()
        rows = []
        for item, clip, recon in zip(items, clips.numpy(), decoded, strict=True):
            rows += [(item["caption"] or item["key"], clip), ("reconstruction", recon)]
        return rows

    def finish(self, module: nn.Module, run_dir: Path) -> dict[str, Any]:
        assert isinstance(module, TokenizerObjective)
        tokenizer = OmniTokenizer(module.net)
        tokenizer.save(run_dir / EXPORT)
        return {"tokenizer": EXPORT, "tokenizer_sha256": tokenizer.sha256}
