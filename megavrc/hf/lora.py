"""LoRA fine-tuning of a converted folder with peft, a task of the training loop; the result is published merged."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megavrc.checkpoint import read_weights
from megavrc.data.blend import other_class
from megavrc.distributed import AbsentRank, Rank, connect
from megavrc.errors import UserError, check_least
from megavrc.files import read_lines_of_json
from megavrc.generation.folder import load_folder
from megavrc.generation.folder_format import read_config
from megavrc.hardware import check_device
from megavrc.model import VRC
from megavrc.training.config import BaseRunConfig, OptimizerConfig, TrainConfig
from megavrc.training.entry import run_task
from megavrc.training.guards import Diverged
from megavrc.training.tasks.base import Samples
from megavrc.training.tasks.conditions import check_conditions, conditions_of, has_checkpoints
from megavrc.training.tasks.draws import training_draws
from megavrc.training.tasks.tokens import open_training
from megavrc.training.tasks.vrc_config import TokenDataConfig
from megavrc.training.watchdog import LostRank

from .convert import publish, refuse_existing

TARGETS = r"trunk\.layers\..*\.(qkv|out|gate_up|down)"  # the matrices of attention and feed-forward


@dataclass
class AdapterConfig:
    """The adapters.

    Attributes:
        rank: rank of the two matrices that each adapter is the product of.
        alpha: the product is scaled by alpha / rank.
    """

    rank: int = 8
    alpha: float = 16.0

    def problems(self) -> Iterator[str]:
        if self.rank < 1:
            yield f"adapters.rank: {self.rank} must be at least 1"
        if self.alpha <= 0:
            yield f"adapters.alpha: {self.alpha} must be positive: the adapters are scaled by it"


@dataclass(kw_only=True)
class LoraRunConfig(BaseRunConfig):
    """A fine-tuning.

    Attributes:
        folder: folder in Hugging Face format that is fine-tuned.
        out: new folder for the result.
        data: finished token dataset, made by the folder's video tokenizer.
        split: split of the dataset.
        max_incomplete: as `data.max_incomplete` of `TokenDataConfig`.
        adapters: see their class.
    """

    folder: str
    out: str
    data: str
    split: str = "train"
    max_incomplete: float = TokenDataConfig.max_incomplete
    adapters: AdapterConfig = field(default_factory=AdapterConfig)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.adapters.problems()
        if self.train.zero == 3 or self.train.ema:
            yield "train: adapters are trained at ZeRO stages 0 to 2, without averages"


class Adapted(nn.Module):
    """The model with its adapters, which alone are trained: dropout is off and batch norms keep their statistics."""

    def __init__(self, model: VRC, config: AdapterConfig) -> None:
        from peft import LoraConfig, get_peft_model

        super().__init__()
        options = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=TARGETS)
        self.model: Any = get_peft_model(model, options)

    def train(self, mode: bool = True) -> "Adapted":
        self.training = mode
        self.model.eval()
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Without the folder's weights, so that checkpoints hold adapters only."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        everything = super().state_dict(*args, **kwargs)
        return {name: tensor for name, tensor in everything.items() if name in trained}

    def merged(self) -> VRC:
        return self.model.merge_and_unload()


class LoraTask:
    """Trains adapters on the trunk of a folder's model; see `Task` for the parts.

    Raises:
        UserError: folder and dataset do not fit together.
    """

    def __init__(self, config: LoraRunConfig) -> None:
        self.config = config
        self.folder = load_folder(config.folder)
        self.model = self.folder.model.config
        sha256 = self.folder.video_tokenizer.sha256
        data = TokenDataConfig(path=config.data, split=config.split)
        condition, text = self.model.condition, self.folder.text_tokenizer
        self.source, self.order = open_training(data, config.seed, condition, sha256)
        self._check()
        most = 1.0 if has_checkpoints(config.run_dir) else config.max_incomplete
        check_conditions(self.source, condition, text, most, "max_incomplete")
        self.max_damaged, self.flops = 0, 0
        self.tokens = (1 + self.model.frames) * self.model.tokens_per_frame
        self.facts: dict[str, Any] = {}
        self.validation: dict[str, Samples] = {}
        self.identity = {
            "stage": "lora",
            "seed": config.seed,
            "folder": self.folder.identity(),
            "data": self.source.identity,
            "global_batch": config.train.global_batch,
            "adapters": [config.adapters.rank, config.adapters.alpha],
        }

    def _check(self) -> None:
        expected = (1 + self.model.frames, self.model.grid, self.model.grid)
        if self.source.shape != expected:
            raise UserError(
                f"{self.source.address}: samples of {self.source.shape} tokens, the model takes {expected}"
            )
        if self.model.condition.features:
            raise UserError(
                f"{self.folder.path}: a model of text features cannot be fine-tuned here, only text and classes"
            )

        if odd := other_class(self.folder.class_names, self.source.info.get("classes")):
            raise UserError(
                f"{self.source.address}: {odd}, in {self.folder.path} and here; number the classes as the folder does"
            )

    def build(self) -> Adapted:
        model = copy.deepcopy(self.folder.model).float()
        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()  # as ranks send them
        return Adapted(model, self.config.adapters)

    def initialise(self, module: Adapted) -> None: ...

    def blocks(self, module: Adapted) -> list[nn.Module]:
        return []

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "ids": torch.stack([item["ids"] for item in items]),
            "condition": conditions_of(items, self.model.condition, self.folder.text_tokenizer),
            "draws": training_draws(items, self.model, self.config.seed),
        }

    def loss(self, module: Adapted, batch: dict[str, Any], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        draws = batch["draws"] if module.training else {}
        out = module.model(batch["ids"], batch["condition"], **draws)
        return out.loss, {"first": out.loss_first}

    def preview(self, module: Adapted, folder: Path, step: int) -> None: ...

    @torch.no_grad()
    def finish(self, module: Adapted, run_dir: Path) -> dict[str, Any]:
        """Merge the adapters into the folder's own float32 weights, and publish the result."""
        weights, _ = read_weights(run_dir)  # the master weights: with bf16 the module's are rounded
        whole = self.build()
        whole.load_state_dict({name: weights[name] for name in module.state_dict()}, strict=False)
        training = read_config(self.folder.path)["training"]
        summary = [*training.get("summary", ()), ["fine-tuned", self._note(losses(run_dir))]]
        publish(
            Path(self.config.out),
            whole.merged(),
            self.folder.video_tokenizer,
            self.folder.text_tokenizer,
            training | {"summary": summary},
            sampling={"do_sample": True} | self.folder.sampling,
        )
        return {"folder": self.config.out}

    def _note(self, losses: list[float]) -> str:
        last, train = losses[-10:], self.config.train
        return (
            f"LoRA of rank {self.config.adapters.rank}, {train.steps} steps of {train.global_batch} clips, "
            f"{len(self.source)} samples, loss {sum(last) / len(last):.4f}"
        )


def losses(run_dir: Path) -> list[float]:
    """The loss of every step that a run has reported."""
    return [line["loss"] for line in read_lines_of_json(run_dir / "metrics.jsonl") if "loss" in line]


@dataclass(frozen=True)
class LoraOptions:
    """Settings for training adapters.

    Attributes:
        steps: of the optimiser.
        rank, alpha: see `AdapterConfig`.
        lr: constant learning rate of AdamW. batch_size: clips of a step, over all ranks.
        seed: of adapters, data order and condition dropout.
        precision: `fp32`, or `bf16` with fp32 master weights of the adapters.
        save_every: steps between checkpoints.
        max_incomplete: as `data.max_incomplete` of `TokenDataConfig`.
    """

    steps: int = 500
    rank: int = 8
    alpha: float = 16.0
    lr: float = 1e-3
    batch_size: int = 8
    seed: int = 0
    precision: str = "fp32"
    save_every: int = 100
    max_incomplete: float = TokenDataConfig.max_incomplete


def finetune(
    folder: Path,
    data: Path,
    out: Path,
    options: LoraOptions,
    device: str = "auto",
    split: str = "train",
    run_dir: Path | None = None,
) -> list[float]:
    """Train adapters on the trunk, merge them and publish the result through the gate of to-hf.

    Runs under any launcher, once in a process (DeepSpeed keeps its groups). Run again after it was stopped, it goes on
    from the last checkpoint.

    Args:
        folder: in Hugging Face format.
        data: finished token dataset, made by the folder's video tokenizer.
        out: new folder. It is not there yet when a signal stopped the training.
        options: of the training.
        device: to train on; auto is cuda where there is one.
        split: of the dataset.
        run_dir: checkpoints and metrics (default: `out` with `.run` after its name).

    Returns:
        The loss of every step.

    Raises:
        UserError: folder, dataset, options or device do not fit, `out` exists, the training has diverged, or other
            ranks are gone.
    """
    where = check_device(device)
    least = ("steps", "rank", "batch_size", "save_every")
    check_least(**{name: (getattr(options, name), 1) for name in least})
    refuse_existing(out)
    run_dir = run_dir or out.with_name(f"{out.name}.run")
    with connect(device=where) as rank:
        if rank.main:
            (run_dir / "complete.json").unlink(missing_ok=True)  # without its folder it is not
        try:
            config = _config(folder, data, out, options, split, run_dir, rank)
        except ValueError as error:
            raise UserError(str(error)) from None
        try:
            run_task(config, lambda config, _: LoraTask(config), rank)
        except (Diverged, LostRank, AbsentRank) as error:
            raise UserError(str(error)) from None
    return losses(run_dir)


def _config(
    folder: Path, data: Path, out: Path, options: LoraOptions, split: str, run_dir: Path, rank: Rank
) -> LoraRunConfig:
    train = TrainConfig(
        steps=options.steps,
        global_batch=options.batch_size,
        micro_batch=max(1, options.batch_size // rank.world_size),
        clip=0.0,
        log_every=1,
        save_every=options.save_every,
        preview_every=0,
        keep=1,
        precision=options.precision,  # type: ignore[arg-type]
    )
    optimizer = OptimizerConfig(
        lr=options.lr, betas=(0.9, 0.999), weight_decay=0.01, warmup=0, schedule="constant"
    )
    return LoraRunConfig(
        run_dir=str(run_dir),
        seed=options.seed,
        train=train,
        optimizer=optimizer,
        folder=str(folder),
        out=str(out),
        data=str(data),
        split=split,
        max_incomplete=options.max_incomplete,
        adapters=AdapterConfig(options.rank, options.alpha),
    )
