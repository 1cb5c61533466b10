"""The configuration of a VRC model: one flat description of what design choices and ablations are available.

Values left at 0 come from the preset. Every ablation of the paper is a field here, never another model file.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin

Preset = Literal["debug", "b", "l", "xl", "1.2b"]
# Sizes of the paper's appendix A, which are those of LlamaGen (arXiv 2406.06525); `debug` is for tests and the demo.
PRESETS: dict[Preset, dict[str, Any]] = {
    "debug": dict(
        layers=4, heads=4, width=128, hidden_multiple=8, vocab=512, grid=8, rope_base=100.0, slots=8
    ),
    "b": dict(layers=12, heads=12, width=768),
    "l": dict(layers=24, heads=16, width=1024),
    "xl": dict(layers=36, heads=20, width=1280),
    "1.2b": dict(layers=22, heads=32, width=2048),
}
# More than any model has: a number beyond is a slip, and would only be noticed when the memory is full.
MOST = dict(layers=1000, heads=1000, width=100_000, hidden_multiple=100_000, vocab=1 << 24, grid=1000)
PAPER = dict(hidden_multiple=256, vocab=8192, grid=32, rope_base=10000.0, slots=128)


@dataclass
class ConditionConfig:
    """What the video is generated from.

    Attributes:
        kind: `text` (a caption) or `class` (one label).
        text: `learned` embeddings of sentencepiece tokens, or `features` of a frozen text encoder.
        slots: condition positions in the sequence (0: from the preset; a class has 1).
        vocab: size of the text vocabulary (`text: learned`).
        feature_dim: width of the encoder's features (`text: features`).
        classes: number of classes (`kind: class`); one more row is the null class.
        drop: probability of training a sample without its condition, for classifier-free guidance.
        attention: `causal` or `bidirectional` among the condition slots.
    """

    kind: Literal["text", "class"] = "text"
    text: Literal["learned", "features"] = "learned"
    slots: int = 0
    vocab: int = 0
    feature_dim: int = 0
    classes: int = 0
    drop: float = 0.1
    attention: Literal["causal", "bidirectional"] = "causal"

    def problems(self) -> Iterator[str]:
        """Values that do not fit together, a sentence each."""
        if self.learned_text and self.vocab <= 0:
            yield "condition.vocab: the size of the text vocabulary is needed"
        if self.features and self.feature_dim <= 0:
            yield "condition.feature_dim: the width of the text features is needed"
        if self.is_class and self.classes <= 0:
            yield "condition.classes: the number of classes is needed"
        if self.is_class and self.slots != 1:
            yield f"condition.slots: a class takes 1 slot, not {self.slots}"
        if self.kind == "text" and self.slots < 2:
            yield "condition.slots: text needs at least 2 (the last is begin-video)"
        for name in ("slots", "vocab", "feature_dim", "classes"):
            if getattr(self, name) > MOST["vocab"]:
                yield f"condition.{name}: {getattr(self, name)} is more than {MOST['vocab']}"
        if not 0 <= self.drop <= 1:
            yield f"condition.drop: {self.drop} is not a probability, from 0 to 1"

    @property
    def name(self) -> str:
        """The name of its class in `condition.KINDS`."""
        return self.text if self.kind == "text" else self.kind

    @property
    def is_class(self) -> bool:
        return self.kind == "class"

    @property
    def learned_text(self) -> bool:
        return self.kind == "text" and self.text == "learned"

    @property
    def features(self) -> bool:
        return self.kind == "text" and self.text == "features"


@dataclass
class CompressionConfig:
    """Compressor and decompressor.

    Attributes:
        rate: compression by area: 1, 4 (2x2), 16 (4x4) or 64 (8x8); 1 is block prediction without compression.
        kind: `conv` is the paper's; `avgpool` and `strided` replace the compressor only (the decompressor stays
            convolutional); `space_to_depth` is a linear patch embedding and its inverse; `identity` needs rate 1.
        norm: `batch` is the paper's (synchronised over ranks); `group` and `rms` do not mix samples.
    """

    rate: Literal[1, 4, 16, 64] = 4
    kind: Literal["conv", "avgpool", "strided", "space_to_depth", "identity"] = "conv"
    norm: Literal["batch", "group", "rms"] = "batch"

    @property
    def side(self) -> int:
        """Cells of the grid that one compressed cell covers along one axis."""
        return {1: 1, 4: 2, 16: 4, 64: 8}[self.rate]


@dataclass
class ModelConfig:
    """A VRC model.

    Attributes:
        preset: named size; values left at 0 come from it.
        layers: blocks of the trunk.
        heads: attention heads of a block.
        width: width of the trunk's rows; a multiple of 16 for every head.
        hidden_multiple: the SwiGLU width is int(8 width / 3) rounded up to a multiple of this.
        vocab: codebook size of the video tokenizer.
        grid: cells along one side of a latent frame (N = grid x grid tokens a frame).
        frames: latent frames after the first (F); 0 is the image model of stage 1.
        condition: what the video is generated from.
        compression: compressor and decompressor.
        decompressor_head: `shared` with the first frame, or its `own` 1x1 projection to the vocabulary.
        prediction: `segment` is VRC; `token` the paper's baseline: no compression, next token everywhere.
        first_frame: `token` by token, or `row` by row with the segment mechanism (not in the paper).
        keep_first_frame: let segments see the raw first-frame tokens (Eq. 5 and 7); false is Algorithm 1 read
            literally.
        segment_attention: inside a segment, `bidirectional` (Eq. 6) or `causal`.
        feedback: input of the compressor for the next pass at generation: sampled `tokens`, or the `soft` mean
            embedding of their distribution.
        refine: let the rows that predict a frame (with `first_frame: row` a row of the first one, too) also
            see its known cells, so that it can be drawn in several passes; false is the paper.
        refine_layer: layer before which the known cells are added; further passes run the layers from it on.
        context_noise: share of the tokens that training replaces by random ones before they are compressed.
        rope_base: base of the rotary frequencies.
        dropout: dropout of embeddings, residual branches and feed-forward outputs.
        loss_reduction: `term` = mean over the first frame + mean over the later ones; `token` = mean over all
            tokens; `block` = Eq. 7 literally, a later frame being one outcome (a sum over its tokens).
        frame_loss_weight: 1 + frames weights of the frames within their terms (empty: all 1).
    """

    preset: Preset = "debug"
    layers: int = 0
    heads: int = 0
    width: int = 0
    hidden_multiple: int = 0
    vocab: int = 0
    grid: int = 0
    frames: int = 4
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    compression: CompressionConfig = field(default_factory=CompressionConfig)
    decompressor_head: Literal["shared", "own"] = "shared"
    prediction: Literal["segment", "token"] = "segment"
    first_frame: Literal["token", "row"] = "token"
    keep_first_frame: bool = True
    segment_attention: Literal["bidirectional", "causal"] = "bidirectional"
    feedback: Literal["tokens", "soft"] = "tokens"
    refine: bool = False
    refine_layer: int = 0
    context_noise: float = 0.0
    rope_base: float = 0.0
    dropout: float = 0.1
    loss_reduction: Literal["term", "token", "block"] = "term"
    frame_loss_weight: list[float] = field(default_factory=list)
    retired: ClassVar = {"loss_weights": ([1.0, 1.0], "frame_loss_weight has a factor for every frame")}

    def __post_init__(self) -> None:
        preset: dict[str, Any] = PAPER | PRESETS[self.preset] if self.preset in PRESETS else PAPER
        for name in ("layers", "heads", "width", "hidden_multiple", "vocab", "grid", "rope_base"):
            if not getattr(self, name):
                setattr(self, name, preset.get(name, 0))
        if not self.condition.slots:
            self.condition.slots = 1 if self.condition.is_class else preset["slots"]
        if problems := list(self.problems()):
            raise ValueError("; ".join(problems))

    def problems(self) -> Iterator[str]:
        """Everything that does not fit together, each as one sentence that names the field."""
        compression = self.compression
        if self.preset not in PRESETS:
            yield f"preset: {self.preset!r} is not one of {', '.join(PRESETS)}"
        for name, most in MOST.items() if self.preset in PRESETS else ():
            if not 0 < getattr(self, name) <= most:
                yield f"{name}: {getattr(self, name)} is not from 1 to {most}"
        if self.heads <= 0 or self.width % (self.heads * 16):
            yield f"width: {self.width} must be heads ({self.heads}) times a multiple of 16"
        if not 0 <= self.frames <= 10_000:
            yield f"frames: {self.frames} is not from 0 to 10000"
        if compression.rate not in (1, 4, 16, 64):
            yield f"compression.rate: {compression.rate} is not 1, 4, 16 or 64"
        elif self.grid % compression.side:
            yield f"grid: {self.grid} cannot be divided by compression.rate {compression.rate}"
        if compression.kind == "identity" and compression.rate != 1:
            yield "compression.kind: identity needs compression.rate 1"
        yield from self.condition.problems()
        if self.prediction == "token" and (self.first_frame != "token" or not self.keep_first_frame):
            yield "prediction: token has no segments, so first_frame must be token and keep_first_frame true"
        if len(self.frame_loss_weight) not in (0, 1 + self.frames):
            yield f"frame_loss_weight: needs 1 + frames = {1 + self.frames} values, has {len(self.frame_loss_weight)}"
        if self.feedback not in ("tokens", "soft"):
            yield (
                f"feedback: {self.feedback!r} is not tokens or soft; features need a model that was trained to "
                "compress them, which nothing here does"
            )
        if self.prediction == "token" and (self.refine or self.context_noise):
            yield (
                "prediction: token draws every token in a pass of its own and compresses none, so refine must be false "
                "and context_noise 0"
            )
        if not 0 <= self.refine_layer < max(self.layers, 1):
            yield f"refine_layer: {self.refine_layer} is not one of the layers 0..{self.layers - 1}"
        if not 0 <= self.context_noise < 1:
            yield f"context_noise: {self.context_noise} is not a share below 1"
        if not 0 <= self.dropout < 1:
            yield f"dropout: {self.dropout} is not a share below 1"
        if not 0 < self.rope_base < math.inf:
            yield f"rope_base: {self.rope_base} must be positive"

    @property
    def tokens_per_frame(self) -> int:
        """N, the tokens of one latent frame."""
        return self.grid * self.grid

    @property
    def segment_length(self) -> int:
        """M = N / rate, the compressed cells of one latent frame (Eq. 4)."""
        return self.tokens_per_frame // self.compression.rate

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        """SwiGLU width: int(8 width / 3) rounded up (LlamaGen)."""
        return -(-int(8 * self.width / 3) // self.hidden_multiple) * self.hidden_multiple

    @property
    def has_segments(self) -> bool:
        return self.prediction == "segment" and self.frames > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """The inverse of `to_dict`; ValueError names unknown keys."""
        return _build(cls, values, "")


def _build(cls: Any, values: dict[str, Any], prefix: str) -> Any:
    known = {item.name: item for item in fields(cls)}
    for name, (nothing, instead) in getattr(cls, "retired", {}).items():
        if values.get(name, nothing) != nothing:
            raise ValueError(f"{prefix}{name}: {values[name]!r} is no longer possible: {instead}")
        values = {key: value for key, value in values.items() if key != name}
    unknown = [f"{prefix}{name}" for name in values if name not in known]
    if unknown:
        raise ValueError(f"unknown key {', '.join(unknown)}")
    for name, value in values.items():
        if not _fits(value, known[name].type):
            raise ValueError(f"{prefix}{name}: {value!r:.40} is of another kind than its values are")
    return cls(
        **{
            name: _build(known[name].type, value, f"{prefix}{name}.")
            if is_dataclass(known[name].type)
            else value
            for name, value in values.items()
        }
    )


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value, from JSON, is one of a field of this type."""
    if is_dataclass(kind):
        return isinstance(value, dict)
    if get_origin(kind) is Literal:
        return (type(value), value) in [(type(one), one) for one in get_args(kind)]  # 4.0 == 4
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(one, get_args(kind)[0]) for one in value)
    return isinstance(value, int | float if kind is float else kind) and (
        kind is bool or not isinstance(value, bool)
    )
