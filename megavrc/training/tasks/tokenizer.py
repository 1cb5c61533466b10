"""Training of the video tokenizer on decoded clips and single frames of them."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from megavrc.config import to_dict
from megavrc.data.order import Order
from megavrc.distributed import Rank, same_error_on_all_ranks, seed_for
from megavrc.errors import UserError
from megavrc.files import check_fields
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from megavrc.tokenizers import OmniTokenizer
from megavrc.tokenizers.inflation import inflate
from megavrc.tokenizers.objective import TokenizerObjective
from megavrc.tokenizers.omnitokenizer import RUN_EXPORT
from megavrc.tokenizers.perceptual import Perceptual
from megavrc.training.previews import write_preview
from megavrc.training.stages import check_model_fields, starting_weights
from megavrc.training.tasks.base import Samples
from megavrc.training.tasks.clips import TrainingClips, window
from megavrc.training.tasks.tokenizer_config import TokenizerRunConfig
from megavrc.user_files import resolve

log = logging.getLogger("megavrc")

FILES = {"vgg", "lpips_heads"}  # of the objective: where they lie is not what the run is
FREE = {"temporal_patch", "temporal_peg"}  # of the model: what an image stage does not depend on
COLLAPSED = {"perplexity": 0.02, "usage": 0.25}  # shares of the codes; both are lower in a collapsed codebook


class TokenizerTask:
    """Trains an OmniTokenizer; see `Task` for the parts. All ranks build it together: they decode the clips."""

    def __init__(self, config: TokenizerRunConfig, rank: Rank) -> None:
        self.config = config
        objective = config.objective
        with same_error_on_all_ranks(rank):
            self.perceptual = None
            if objective.perceptual:  # first of all: decoding may take hours
                vgg = resolve("vgg", objective.vgg, "objective.vgg").path
                self.perceptual = Perceptual.from_files(vgg, objective.lpips_heads)
        if late := [step for step in config.data.frames_schedule if step >= config.train.steps]:
            log.warning(
                "data.frames_schedule: step %d never comes, train.steps is %d", min(late), config.train.steps
            )
        self.source = TrainingClips(config.data, Path(config.run_dir) / "cache", rank)
        self.order, self.max_damaged = Order(len(self.source), seed_for(config.seed, "order")), 0
        self.tokens = self.flops = 0  # how many tokens depends on the step: a metric
        self.facts: dict[str, Any] = {}
        self.validation: dict[str, Samples] = {}
        self.identity = {
            "stage": "tokenizer",
            "seed": config.seed,
            "model": config.model.to_dict(),
            "objective": {name: value for name, value in to_dict(objective).items() if name not in FILES},
            "data": self.source.sha256,
            "frames_schedule": {
                str(float(start)): frames for start, frames in config.data.frames_schedule.items()
            },
            "images_per_clip": config.data.images_per_clip,
            "global_batch": config.train.global_batch,
            "starts_from_another_run": bool(config.init_from),
        }

    def build(self) -> TokenizerObjective:
        return TokenizerObjective(OmniTokenizerNet(self.config.model), self.config.objective, self.perceptual)

    def initialise(self, module: TokenizerObjective) -> None:
        if self.config.init_from:
            start_from_run(module.net, self.config)

    def blocks(self, module: TokenizerObjective) -> list[nn.Module]:
        return []

    def frames_at(self, step: int) -> int:
        """Frames of a training window at a step."""
        turns = self.config.data.turns(step)
        return turns[step % len(turns)]

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Random windows of the clips, drawn from (seed, position).

        Returns:
            clips: uint8 [B, T, H, W, 3]. frame: long [B], one random frame of each.
        """
        frames = self.frames_at(items[0]["position"] // self.config.train.global_batch)
        each = self._windows(frames)
        clips = [self._window(item, frames, part, each) for item in items for part in range(each)]
        seeds = [seed_for(self.config.seed, "frame", item["position"]) for item in items for _ in range(each)]
        return {"clips": torch.stack(clips), "frame": torch.tensor([seed % frames for seed in seeds])}

    def _window(self, item: dict[str, Any], frames: int, part: int, parts: int) -> Tensor:
        """One of `parts` evenly spread windows, from a random first frame."""
        seed = seed_for(self.config.seed, "window", item["position"])
        return window(item["clip"], frames, lambda below: (seed + part * below // parts) % below)

    def loss(
        self, module: TokenizerObjective, batch: dict[str, Tensor], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = module(batch["clips"], step, batch["frame"])
        windows = self._windows(batch["clips"].shape[1])
        return loss, metrics | {"tokens": windows * metrics["tokens"]}  # of a sample

    def _windows(self, frames: int) -> int:
        """Windows of a sample, if they have so many frames."""
        return self.config.data.images_per_clip if frames == 1 else 1

    def preview(self, module: TokenizerObjective, folder: Path, step: int) -> None:
        count = min(self.config.preview.count, len(self.source))
        if not bool(module.seeded):  # the codebook is noise
            return
        self._warn_of_collapse(module)
        if count:
            longest = max(self.config.data.all_turns())
            write_preview(folder, step, self._reconstructions(OmniTokenizer(module.net), count, longest))

    def _warn_of_collapse(self, module: TokenizerObjective) -> None:
        """A still background alone makes the perplexity low, but leaves many codes in use."""
        codes = self.config.model.codes
        perplexity, usage = (float(value) for value in module.codebook_metrics().values())
        if perplexity < COLLAPSED["perplexity"] * codes and usage < COLLAPSED["usage"]:
            log.warning(
                "the codebook has collapsed: %.0f%% of its %d codes are in use, and tell as much as %.1f would "
                "(perplexity); try objective.restart: true, a longer objective.warmup_steps or fewer model.codes",
                100 * usage,
                codes,
                perplexity,
            )

    def _reconstructions(
        self, tokenizer: OmniTokenizer, count: int, frames: int
    ) -> list[tuple[str, np.ndarray]]:
        """Each clip and its reconstruction."""
        items = [self.source[index] for index in range(count)]
        clips = torch.from_numpy(np.stack([item["clip"][:frames] for item in items]))
        decoded = tokenizer.decode(tokenizer.encode(clips)).cpu().numpy()
        rows = []
        for item, clip, recon in zip(items, clips.numpy(), decoded, strict=True):
            rows += [(item["caption"] or item["key"], clip), ("reconstruction", recon)]
        return rows

    def finish(self, module: TokenizerObjective, run_dir: Path) -> dict[str, Any]:
        tokenizer = OmniTokenizer(module.net, size=self.config.data.size)
        tokenizer.save(run_dir / RUN_EXPORT)
        return {"tokenizer": RUN_EXPORT, "tokenizer_sha256": tokenizer.sha256}


@torch.no_grad()
def start_from_run(net: OmniTokenizerNet, config: TokenizerRunConfig) -> None:
    """Load network and codebook of another tokenizer run; discriminators and optimizer stay fresh.

    Raises:
        UserError: that run is unfinished, or its network is another.
    """
    path = Path(config.init_from)
    weights, state = starting_weights(path)
    check_fields(f"init_from: {path}: state.json", state, {"identity": dict, "config": dict})
    theirs, mine = state["identity"], dataclasses.asdict(config.model)
    if theirs.get("stage") != "tokenizer":
        raise UserError(f"init_from: {path} is not a run of pretrain_tokenizer.py")
    schedule, frames = theirs["frames_schedule"], state["config"]["data"]["frames"]
    images = all(turns in (1, [1]) for turns in schedule.values()) if schedule else frames == 1
    try:  # with the fields that `to_dict` leaves out
        model = dataclasses.asdict(OmniTokenizerConfig.from_dict(theirs["model"]))
    except ValueError as error:
        raise UserError(f"init_from: {path}: {error}") from None
    check_model_fields(path, model, mine, FREE if images else set())
    loaded = {name[4:]: tensor for name, tensor in weights.items() if name.startswith("net.")}
    net.load_state_dict(inflate(loaded, config.model, config.init_inflation) if images else loaded)
    made = f", clip weights made of those for images ({config.init_inflation})" if images else ""
    log.info("starts from %s, step %d: network and codebook%s", path, state["step"], made)
