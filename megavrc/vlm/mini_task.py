"""Trains the mini-VLM: a task of the training loop. The loss is that of the answers, given what was said before."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megavrc.data.order import InOrder
from megavrc.files import sha256_file
from megavrc.training.config import BaseRunConfig
from megavrc.training.entry import FIRST_OF_LOOP, pretrain
from megavrc.training.tasks.base import Samples
from megavrc.vlm.alignment import begin_aligned
from megavrc.vlm.mini import VISUAL, configuration, dialogue, new_mini, pixel_inputs, pixels
from megavrc.vlm.questions import TURNS, TYPES, Kind, Split, conversation

SPAN = 4  # ids of a turn: three of the question, one of the answer
VALIDATION = 384


@dataclass(kw_only=True)
class MiniRunConfig(BaseRunConfig):
    """Configuration of a mini-VLM run (`megavrc pretrain_vlm`).

    Attributes:
        kind: `image` or `video`.
        tower_steps: steps of 16 pictures or 8 clips in which the tower learns to see, before the training.
        blind: make all pixels black, to measure what can be guessed from the questions alone.
    """

    kind: Kind
    tower_steps: int = 200
    blind: bool = False

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.train.global_batch % len(TYPES[self.kind]):
            yield f"train.global_batch: a multiple of {len(TYPES[self.kind])}, so that all types are asked alike"


class Conversations:
    """Samples by index, as ids and pixels; of the questions the first `turns`."""

    def __init__(self, kind: Kind, split: Split, seed: int, count: int, turns: int | None = None) -> None:
        self.kind, self.split, self.seed, self.count, self.turns = kind, split, seed, count, turns

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        found = conversation(self.kind, self.split, self.seed, index)
        questions = found.questions[: self.turns]
        types = [TYPES[self.kind].index(question.type) for question in questions]
        return {"ids": dialogue(self.kind, questions), "frames": found.frames, "types": types}


class MiniTask:
    """See `Task` for the parts."""

    def __init__(self, config: MiniRunConfig) -> None:
        self.config, kind = config, config.kind
        count = config.train.steps * config.train.global_batch
        self.source = Conversations(kind, "train", config.seed, count)
        self.order = InOrder(count)
        first = self.source[0]
        self.tokens, self.flops, self.max_damaged = len(first["ids"]), 0, 0
        self.facts: dict[str, Any] = {}
        test = Conversations(kind, "test", config.seed, VALIDATION, TURNS)
        self.validation = {"test": Samples(test, InOrder(VALIDATION), VALIDATION)}
        self.identity = {
            "stage": "mini_vlm",
            "seed": config.seed,
            "kind": kind,
            "blind": config.blind,
            "tower_steps": config.tower_steps,
            "model": json.loads(json.dumps(configuration(kind).to_dict())),
            "global_batch": config.train.global_batch,
        }

    def build(self) -> Any:
        return new_mini(self.config.kind)

    def initialise(self, module: nn.Module) -> None:
        begin_aligned(module, self.config.kind, self.config.seed, self.config.tower_steps)

    def blocks(self, module: Any) -> list[nn.Module]:
        return []

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        shown = pixels([item["frames"] for item in items])
        return {
            "ids": torch.tensor([item["ids"] for item in items]),
            "types": torch.tensor([item["types"] for item in items]),
            "pixels": torch.full_like(shown, -1) if self.config.blind else shown,
        }

    def loss(self, module: Any, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the answers' ids; the share of right ones, by type of question."""
        logits, answers = answer_logits(module, batch["ids"], batch["pixels"], self.config.kind)
        loss = F.cross_entropy(logits.flatten(0, 2), answers[:, None].expand(logits.shape[:3]).flatten())
        right = (logits[:, -1].detach().argmax(-1) == answers).float()
        kinds = TYPES[self.config.kind]
        return loss, {name: right[batch["types"] == number].mean() for number, name in enumerate(kinds)}

    def preview(self, module: nn.Module, folder: Path, step: int) -> None: ...

    def finish(self, module: Any, run_dir: Path) -> dict[str, Any]:
        """The model in bfloat16, as a folder of transformers; its hash, and the configuration that made it."""
        out = run_dir / "model"
        module.to(torch.bfloat16).save_pretrained(out)
        recipe = json.loads(json.dumps(asdict(self.config) | {"run_dir": ""}, default=str))
        return {"model": "model", "sha256": sha256_file(out / "model.safetensors"), "recipe": recipe}


def answer_logits(model: Any, ids: Tensor, pixels_BTCHW: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """[B, 2, turns, words] and the right ids [B, turns]: where the model says its answers, and one word before.

    Said one word early too, at the word that names the place or the colour, answers are learned much sooner: the end of
    the question then has one step less to find by itself.
    """
    asked = torch.arange(VISUAL[kind] + SPAN - 1, ids.shape[1], SPAN, device=ids.device)
    states = model.model(input_ids=ids, attention_mask=torch.ones_like(ids), **pixel_inputs(pixels_BTCHW))
    found = states.last_hidden_state
    return model.lm_head(torch.stack([found[:, asked - 1], found[:, asked]], dim=1)), ids[:, asked + 1]


def pretrain_vlm(argv: list[str]) -> NoReturn:
    """Train the mini-VLM; the finished one is in `<run_dir>/model`."""
    first = ("config", "run_dir", "kind", "tower_steps", "blind", *FIRST_OF_LOOP)
    pretrain(MiniRunConfig, lambda config, rank: MiniTask(config), argv, "megavrc pretrain_vlm", first)
