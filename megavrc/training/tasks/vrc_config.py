"""The configuration of a VRC run: what the YAML files of stages 1 and 2 hold."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from megavrc.model import ModelConfig
from megavrc.model.attention import Backend
from megavrc.training.config import BaseRunConfig, PreviewConfig, TrainConfig


@dataclass
class BlendPart:
    """One dataset of a blend.

    Attributes:
        path: dataset, as `data.path`.
        weight: share of the samples, relative to the other weights.
    """

    path: str
    weight: float = 1.0


@dataclass
class ValidationDataConfig:
    """Samples that are never trained on.

    Attributes:
        path, blend, split: as in `TokenDataConfig`; with neither path nor blend, the training data's.
        samples: number of samples of one pass over the set, its first ones; of a blend by weight, so that a small
            dataset begins anew before a large one is through.
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
        blend: several datasets instead of `path`: [{path: ..., weight: 0.7}, {path: ..., weight: 0.3}].
        text_tokenizer: sentencepiece tokenizer.model (for `condition.kind: text`).
        video_tokenizer: folder or published checkpoint of the video tokenizer, which decodes previews and
            whose hash must be that of the dataset. Empty: no previews, no check.
        split: split of the dataset.
        shuffle: `global` shuffles all samples of an epoch together, `window` those of `window` shards at a time, in
            a new order of the shards; for datasets at a URL that are larger than the cache.
        window: shards that `shuffle: window` mixes at a time.
        on_damage: effect of a damaged sample: `fail` ends the run, `replace` puts another one in its place and logs it.
        max_damaged: number of different damaged samples that a rank may replace between start and end of a process.
        max_incomplete: largest share of samples whose caption is cut to the slots, or that have no caption or
            label and train without one. A new run checks some samples before it starts; a run that resumes
            only warns.
        cache_dir: folder that shards from a URL are kept in; on a disk of this machine, shared by its ranks.
        cache_gb: size limit of that folder, in 10^9 bytes.
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
    max_incomplete: float = 0.05
    cache_dir: str = "~/.cache/megavrc"
    cache_gb: float = 100.0
    validation: dict[str, ValidationDataConfig] = field(default_factory=dict)

    def problems(self) -> Iterator[str]:
        if bool(self.path) == bool(self.blend):
            yield "data.path: give either it or data.blend"
        for name in ("window", "max_damaged", "cache_gb"):
            if getattr(self, name) <= 0:
                yield f"data.{name}: {getattr(self, name)} must be positive"
        if not 0 <= self.max_incomplete <= 1:
            yield f"data.max_incomplete: {self.max_incomplete} is a share, from 0 to 1"
        for name, chosen in self.validation.items():
            yield from chosen.problems(f"data.validation.{name}", self.split)


@dataclass
class VRCTrainConfig(TrainConfig):
    """The loop, and how VRC computes in it.

    Attributes:
        attention: backend of the segment attention; `auto` is MEGAVRC_ATTENTION or what suits the device
            (docs/attention.md). One that cannot run is an error.
    """

    attention: Literal["auto", Backend] = "auto"


@dataclass
class ClipPreviewConfig(PreviewConfig):
    """Clips generated while training.

    Attributes:
        first_temperature: temperature of the first frame's tokens.
        later_temperature: temperature of the later frames' tokens.
    """

    first_temperature: float = 0.7
    later_temperature: float = 0.5

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        for name in ("first_temperature", "later_temperature"):
            if getattr(self, name) < 0:
                yield f"preview.{name}: {getattr(self, name)} is negative"


@dataclass
class EvaluationConfig:
    """Metrics of clips generated while training, always from the same conditions and with the same seeds.

    The conditions are the first samples of the first validation set, or of the training data where there is none; their
    own clips, decoded, are the real ones. Temperatures are those of previews.

    Attributes:
        every: steps between measurements (0: never); one more at the end.
        clips: clips of one measurement.
        network: network of the kernel distance from the real clips: `i3d` (of $MEGAVRC_I3D) or a folder of
            megavrc evaluate fd-self (empty: no distance).
        clip: folder of the CLIP model of CLIPSIM (empty: no CLIPSIM).
    """

    every: int = 0
    clips: int = 32
    network: str = ""
    clip: str = ""

    def problems(self, stage: str) -> Iterator[str]:
        if self.every < 0:
            yield f"evaluation.every: {self.every} is negative"
        if self.clips < 4:
            yield f"evaluation.clips: {self.clips} must be at least 4"
        if self.every and stage == "image":
            yield "evaluation.every: stage image makes no clips, so it must be 0"
        if not self.every and (self.network or self.clip):
            yield "evaluation.every: is 0, so that evaluation.network and evaluation.clip are never asked"


# Other names of shipped files: the short one, and for command lines of before, those that are options of another now.
ALIASES = {
    "ucf101.yaml": ["ucf101_video.yaml"],
} | {
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


@dataclass(kw_only=True)
class RunConfig(BaseRunConfig):
    """Configuration of a VRC run (`megavrc pretrain_vrc`).

    Attributes:
        stage: `image` (stage 1, the first frame alone) or `video` (stage 2).
        model: the network.
        data: what it is trained on.
        train: the loop, and how VRC computes in it.
        preview: clips generated while training.
        evaluation: metrics of such clips.
        init_from: finished stage-1 run (or one of its checkpoints) that stage 2 starts from; or a finished
            run of the same stage on other data; or a folder written by megavrc convert_checkpoint from-hf.
    """

    stage: Literal["image", "video"]
    model: ModelConfig
    data: TokenDataConfig
    train: VRCTrainConfig = field(default_factory=VRCTrainConfig)
    preview: ClipPreviewConfig = field(default_factory=ClipPreviewConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    init_from: str = ""
    aliases: ClassVar = ALIASES

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.data.problems()
        yield from self.evaluation.problems(self.stage)
        yield from self.preview.problems()
        if self.stage == "image" and self.model.frames != 0:
            yield f"model.frames: stage image trains the first frame alone, so it must be 0, not {self.model.frames}"
        if self.stage == "video" and self.model.frames == 0:
            yield "model.frames: stage video needs at least 1"
        condition = self.model.condition
        if condition.learned_text and not self.data.text_tokenizer:
            yield "data.text_tokenizer: condition.kind text needs one (megavrc train_text_tokenizer)"

    def shared(self) -> dict[str, Any]:
        content = super().shared()
        del content["data"]["cache_dir"]  # a disk of each machine
        return content
