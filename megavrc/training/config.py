"""The configuration of a training run: what the YAML files of `pretrain/configs` hold."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from megavrc.model import ModelConfig
from megavrc.model.omnitokenizer import OmniTokenizerConfig
from megavrc.tokenizers.inflation import Inflation
from megavrc.tokenizers.objective import ObjectiveConfig


@dataclass
class TrainConfig:
    """The loop.

    Attributes:
        steps: optimiser steps of the whole run.
        global_batch: samples of one optimiser step, over all ranks.
        micro_batch: samples of one forward pass of one rank; global_batch must be a multiple of ranks x this.
        clip: largest gradient norm (0: no clipping).
        log_every: steps between lines of metrics.
        save_every: steps between checkpoints; one more at the end and when stopped by a signal.
        preview_every: steps between previews (0: one at the end only).
        validate_every: steps between passes over the validation sets (0: one at the end only).
        keep: checkpoints that stay on disk, the newest.
        keep_every: steps whose multiples stay for good (0: none).
        keep_best: whether the one with the lowest validation loss stays too, when there is such a loss.
        async_save: write checkpoints while training goes on, from a copy in the host's memory: 12 bytes a parameter
            (16 with ema), divided by the ranks. Otherwise training waits.
        zero: ZeRO stage: 0 replicates everything, 1 shards the optimizer, 2 also gradients, 3 also weights.
        precision: of the forward and backward pass; master weights and moments are fp32 always.
        workers: processes a rank reads data with; 0 reads in the training process.
        attention: backend of the segment attention; `auto` is MEGAVRC_ATTENTION or what suits the device
            (docs/attention.md). One that cannot run is an error.
        activation_checkpointing: `layers` keeps only the input of every transformer layer and computes it again in the
            backward pass: less memory, about a third more computation.
        compile: each transformer layer with torch.compile (not at ZeRO stage 3).
        ema: decay of an average of the weights, which previews, validation and conversion then can use (0: none).
        exit_duration: minutes after which the run saves and stops as if asked to by a signal (0: no limit).
        spike_threshold: standard deviations above the mean of the last losses at which a loss is a spike; training then
            goes back to the last checkpoint and leaves out the data since (0: no guard).
        spike_window: losses that mean and deviation are taken of; the guard begins when there are so many.
        spike_rollbacks: how often a run may go back before it ends as diverged.
        straggler_factor: a rank whose own work takes so many times the median rank's is named (0: none is).
        watchdog_s: seconds without progress after which the ranks that hold up the others are named and all exit with
            code 85; longer than a preview or a checkpoint takes (0: no watchdog).
    """

    steps: int = 1000
    global_batch: int = 8
    micro_batch: int = 8
    clip: float = 1.0
    log_every: int = 20
    save_every: int = 500
    preview_every: int = 500
    validate_every: int = 500
    keep: int = 3
    keep_every: int = 0
    keep_best: bool = True
    async_save: bool = True
    zero: Literal[0, 1, 2, 3] = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    workers: int = 0
    attention: Literal["auto", "rects", "flex", "triton", "flash", "dense"] = "auto"
    activation_checkpointing: Literal["none", "layers"] = "none"
    compile: bool = False
    ema: float = 0.0
    exit_duration: float = 0.0
    spike_threshold: float = 0.0
    spike_window: int = 100
    spike_rollbacks: int = 3
    straggler_factor: float = 1.5
    watchdog_s: float = 1200.0

    def problems(self) -> Iterator[str]:
        for name in ("steps", "global_batch", "micro_batch", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                yield f"train.{name}: {getattr(self, name)} must be at least 1"
        not_negative = (
            "clip",
            "preview_every",
            "validate_every",
            "keep_every",
            "workers",
            "exit_duration",
            "watchdog_s",
        )
        for name in (*not_negative, "spike_threshold", "spike_rollbacks", "straggler_factor"):
            if getattr(self, name) < 0:
                yield f"train.{name}: {getattr(self, name)} is negative"
        if self.spike_window < 2:
            yield f"train.spike_window: {self.spike_window} must be at least 2"
        if not 0 <= self.ema < 1:
            yield f"train.ema: {self.ema} must be 0 or a decay below 1, such as 0.9999"
        if self.precision == "bf16" and self.zero == 0:
            yield "train.zero: bf16 needs ZeRO stage 1, 2 or 3, which keep fp32 master weights"
        if self.compile and self.zero == 3:
            yield "train.compile: ZeRO stage 3 fetches weights inside the layers, which breaks graphs; use 0, 1 or 2"


@dataclass
class OptimizerConfig:
    """AdamW and its schedule. Weights of two or more dimensions decay, others (gains, offsets, pad rows) do not.

    Attributes:
        kind: `adamw` is torch's, fused; `apex` the FusedAdam of NVIDIA apex, which must be installed.
        lr: peak learning rate.
        betas: of the moments. eps: added to the root of the second moment. weight_decay: decoupled, times lr.
        warmup: steps of linear warm-up from 0.
        schedule: after the warm-up, `cosine` down to final_lr x lr at the last step, or `constant`.
        final_lr: the fraction of lr at the end of the cosine.
    """

    kind: Literal["adamw", "apex"] = "adamw"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05
    warmup: int = 50
    schedule: Literal["cosine", "constant"] = "cosine"
    final_lr: float = 0.03

    def problems(self) -> Iterator[str]:
        if self.lr <= 0:
            yield f"optimizer.lr: {self.lr} must be positive"
        if not all(0 <= beta < 1 for beta in self.betas):
            yield f"optimizer.betas: {self.betas} must lie in [0, 1)"
        if self.weight_decay < 0 or self.warmup < 0 or self.eps <= 0:
            yield "optimizer: weight_decay and warmup cannot be negative, eps must be positive"
        if not 0 <= self.final_lr <= 1:
            yield f"optimizer.final_lr: {self.final_lr} is a fraction of lr, from 0 to 1"


@dataclass
class BlendPart:
    """One dataset of a blend.

    Attributes:
        path: as `data.path`.
        weight: its share of the samples, relative to the other weights.
    """

    path: str
    weight: float = 1.0


@dataclass
class ValidationDataConfig:
    """Samples that are never trained on.

    Attributes:
        path, blend, split: as in `TokenDataConfig`; with neither path nor blend, the training data's.
        samples: of one pass; the first so many.
    """

    path: str = ""
    blend: list[BlendPart] = field(default_factory=list)
    split: str = "val"
    samples: int = 256

    def problems(self, key: str, training_split: str) -> Iterator[str]:
        if self.path and self.blend:
            yield f"{key}.path: give either it or {key}.blend"
        if not self.path and not self.blend and self.split == training_split:
            yield f"{key}.split: {self.split!r} is what is trained on"
        if self.samples < 1:
            yield f"{key}.samples: {self.samples} must be at least 1"


@dataclass
class TokenDataConfig:
    """Tokenized clips and what belongs to them.

    Attributes:
        path: finished dataset folder (`<out>/video`, or `<out>/image` for the image stage), or the URL of one.
        blend: instead of a path, several of them: [{path: ..., weight: 0.7}, {path: ..., weight: 0.3}].
        text_tokenizer: sentencepiece tokenizer.model (for `condition.kind: text`).
        video_tokenizer: folder or published checkpoint; its hash is compared with the dataset's, and previews are
            decoded with it. Empty: neither.
        split: of the dataset.
        shuffle: `global` shuffles all samples of an epoch together, `window` those of `window` shards at a time, in
            a new order of the shards; for datasets at a URL that are larger than the cache.
        on_damage: what a damaged sample does: `fail` ends the run, `replace` puts another one in its place and logs it.
        max_damaged: how many different damaged samples a rank may replace between start and end of a process.
        cache_dir: where shards from a URL are kept; on a disk of this machine, shared by its ranks.
        cache_gb: how much of them (10^9 bytes).
        validation: sets to measure the loss on every train.validate_every steps, by name; none by default.
    """

    path: str = ""
    text_tokenizer: str = ""
    video_tokenizer: str = ""
    split: str = "train"
    blend: list[BlendPart] = field(default_factory=list)
    shuffle: Literal["global", "window"] = "global"
    window: int = 16
    on_damage: Literal["fail", "replace"] = "fail"
    max_damaged: int = 100
    cache_dir: str = "~/.cache/megavrc"
    cache_gb: float = 100.0
    validation: dict[str, ValidationDataConfig] = field(default_factory=dict)

    def problems(self) -> Iterator[str]:
        if bool(self.path) == bool(self.blend):
            yield "data.path: give either it or data.blend"
        for name in ("window", "max_damaged", "cache_gb"):
            if getattr(self, name) <= 0:
                yield f"data.{name}: {getattr(self, name)} must be positive"
        for name, chosen in self.validation.items():
            yield from chosen.problems(f"data.validation.{name}", self.split)


@dataclass
class PreviewConfig:
    """Samples generated while training.

    Attributes:
        count: clips of a preview (0: none).
        first_temperature, later_temperature: of the first frame's and the later frames' tokens.
    """

    count: int = 6
    first_temperature: float = 0.7
    later_temperature: float = 0.5


# Shipped files that are options of another one now, for command lines that name them: six for UCF101 became two.
RETIRED_FILES = {
    f"ucf101_{preset}_{stage}.yaml": [
        f"ucf101_{stage}.yaml",
        f"--model.preset={preset}",
        f"--run_dir=runs/ucf101_{preset}/{folder}",
        *more,
    ]
    for preset, micro_batch in (("b", 12), ("l", 6), ("xl", 4))
    for stage, folder, more in (
        ("image", "stage1", []),
        (
            "video",
            "stage2",
            [f"--init_from=runs/ucf101_{preset}/stage1", f"--train.micro_batch={micro_batch}"],
        ),
    )
}


@dataclass
class RunConfig:
    """A VRC run, `pretrain/pretrain_vrc.py`.

    Attributes:
        run_dir: where everything about the run is written; the same configuration there resumes.
        stage: `image` (stage 1, the first frame alone) or `video` (stage 2).
        seed: of weights, data order, dropout and condition dropout.
        model, data, train, optimizer, preview: see their classes.
        init_from: the finished stage-1 run (or one of its checkpoints) that stage 2 starts from; or a finished run of
            the same stage on other data, or what tools/convert_checkpoint.py from-hf wrote.
        deepspeed: passed on to DeepSpeed; may not contradict what is derived from `train`.
    """

    run_dir: str
    stage: Literal["image", "video"]
    model: ModelConfig
    data: TokenDataConfig
    seed: int = 0
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    init_from: str = ""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    retired_files: ClassVar = RETIRED_FILES

    def __post_init__(self) -> None:
        _raise(self._problems())

    def _problems(self) -> Iterator[str]:
        yield from self.train.problems()
        yield from self.optimizer.problems()
        yield from self.data.problems()
        if self.stage == "image" and self.model.frames != 0:
            yield f"model.frames: stage image trains the first frame alone, so it must be 0, not {self.model.frames}"
        if self.stage == "video" and self.model.frames == 0:
            yield "model.frames: stage video needs at least 1"
        condition = self.model.condition
        if condition.learned_text and not self.data.text_tokenizer:
            yield "data.text_tokenizer: condition.kind text needs one (tools/train_text_tokenizer.py)"


@dataclass
class ClipDataConfig:
    """Videos for the video tokenizer.

    Attributes:
        path: manifest.jsonl; a line with `start` and `end` is that part of its video.
        frames: frames decoded of every clip, from its first frame on.
        size: side of the square frames in pixels (before objective.scales).
        crop: `center` crop of the resized frame, or `squash` to a square.
        split: lines of the manifest with this split are used.
        limit: use only the first so many clips (0: all).
        frames_schedule: step to the frames of a training window from that step on, as in {0: 9, 1500: 17}; windows
            start at a random frame. A list takes turns, a step each: {0: [17, 1]} trains on clips and on images, that
            is single frames. Empty: all frames always.
        cache: decode all videos once, before training, into a memory map in the run folder (frames x size^2 x 3 bytes a
            clip). Otherwise each is decoded whenever its turn comes; use train.workers then.
        images_per_clip: frames of each clip that a step of single frames takes, each an image of its own.
    """

    path: str
    frames: int = 17
    size: int = 64
    crop: Literal["center", "squash"] = "center"
    split: str = "train"
    limit: int = 0
    cache: bool = True
    frames_schedule: dict[int, int | list[int]] = field(default_factory=dict)
    images_per_clip: int = 1

    def turns(self, step: int) -> list[int]:
        """Frames of training windows at a step; they take turns."""
        schedule = self.frames_schedule or {0: self.frames}
        return _as_list(schedule[max(start for start in schedule if start <= step)])

    def all_turns(self) -> list[int]:
        """Frames of every training window of the run."""
        schedule = self.frames_schedule or {0: self.frames}
        return sorted({frames for turns in schedule.values() for frames in _as_list(turns)})

    def problems(self, temporal_patch: int) -> Iterator[str]:
        schedule = self.frames_schedule
        if schedule and (0 not in schedule or [] in schedule.values()):
            yield "data.frames_schedule: must say what happens from step 0 on"
        for frames in sorted({self.frames, *self.all_turns()}):
            if frames > self.frames or frames < 1 or (frames - 1) % temporal_patch:
                yield (
                    f"data.frames_schedule: {frames} frames; windows have 1 + {temporal_patch}k frames, "
                    f"at most data.frames = {self.frames}"
                )
        if not 1 <= self.images_per_clip <= self.frames:
            yield f"data.images_per_clip: {self.images_per_clip} must be 1 to data.frames = {self.frames}"


@dataclass
class TokenizerRunConfig:
    """A video tokenizer run, `pretrain/pretrain_tokenizer.py`. Fields as in `RunConfig`.

    Attributes:
        model: the network.
        objective: its loss.
        init_from: the finished run (or one of its checkpoints) that the network and its codebook are taken from. If
            that one saw images only, what a clip needs beyond is made of the weights for images.
        init_inflation: how: `average` as the original does, every repeated weight over temporal_patch; `still` such
            that a clip without motion gives what its image gives.
    """

    run_dir: str
    model: OmniTokenizerConfig
    data: ClipDataConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    seed: int = 0
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    init_from: str = ""
    init_inflation: Inflation = "average"
    deepspeed: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _raise(self._problems())

    def _problems(self) -> Iterator[str]:
        yield from self.train.problems()
        yield from self.optimizer.problems()
        yield from self.objective.problems()
        if self.train.precision != "fp32":
            yield "train.precision: the video tokenizer is trained in fp32"
        if self.train.zero == 3:
            yield "train.zero: the video tokenizer is too small for ZeRO stage 3; use 0, 1 or 2"
        if self.train.activation_checkpointing != "none" or self.train.compile:
            yield "train: activation_checkpointing and compile are for VRC, not for the video tokenizer"
        yield from self.data.problems(self.model.temporal_patch)
        for scale in sorted({1.0, *self.objective.scales}):
            side = self.data.size * scale
            try:
                self.model.grid(round(side), round(side))
            except ValueError as error:
                yield f"data.size: {error}" + (f" (objective.scales: {scale})" if scale != 1 else "")
        if self.init_from and self.objective.warmup_steps:
            yield "objective.warmup_steps: must be 0 with init_from, which brings a codebook"


def _as_list(frames: int | list[int]) -> list[int]:
    return frames if isinstance(frames, list) else [frames]


AnyRunConfig = RunConfig | TokenizerRunConfig


def _raise(problems: Iterator[str]) -> None:
    found = list(problems)
    if found:
        raise ValueError("; ".join(found))
