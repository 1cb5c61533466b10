"""VRC: an LLM that predicts a first frame token by token and every later frame as one segment of compressed cells.

"Less Is More: Vision Representation Compression for Efficient Video Generation with Large Language Models".
Shapes: B batch, C condition slots, F latent frames after the first, N = g x g tokens a frame, M compressed cells of a
frame, S rows of the sequence, V codebook size, D width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import SegmentMask
from .compressor import RESETTABLE, Compressor, Decompressor
from .condition import Condition, ConditionLike, kind_of
from .config import ModelConfig
from .layout import COMPRESSED, RAW, Layout, make_layout
from .quick_start import embedding
from .refinement import frame_partial, row_partial
from .rope import rope_table
from .transformer import RMSNorm, Trunk

INIT_STD = 0.02


@dataclass
class VRCOutput:
    """Losses of one forward pass, and the logits when asked for.

    Attributes:
        loss: the training objective (scalar).
        loss_first, loss_later: mean cross-entropy of the first frame and of the later frames, detached (nats).
        loss_frames: [1 + F] mean cross-entropy of each frame, detached.
        logits_first: [B, N, V]; logits_later: [B, F, N, V].
    """

    loss: Tensor
    loss_first: Tensor
    loss_later: Tensor
    loss_frames: Tensor
    logits_first: Tensor | None = None
    logits_later: Tensor | None = None


class VRC(nn.Module):
    """The generator. `frames: 0` is the image model of stage 1 and has neither compressor nor decompressor."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.condition = kind_of(config.condition)(config.condition, config.width)
        self.tokens = embedding(config.vocab, config.width)
        self.types = embedding(3, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.trunk = Trunk(config)
        self.head = nn.Linear(config.width, config.vocab, bias=False)
        if config.first_frame == "row":
            self.start_row = nn.Parameter(torch.zeros(config.grid, config.width))
        if config.has_segments:
            self.compressor = Compressor(config.compression, config.width)
            self.decompressor = Decompressor(config.compression, config.width)
            if config.decompressor_head == "own":
                self.decompressor_head = nn.Linear(config.width, config.vocab, bias=False)
            if config.refine:
                self.partial = frame_partial(config)
        if config.refine and config.first_frame == "row":
            self.row_partial = row_partial(config)
        self._tables: dict[tuple[str, torch.device], tuple[Layout, Tensor, SegmentMask]] = {}
        if self.tokens.weight.device.type != "meta":
            self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """N(0, 0.02) everywhere, zero heads: both loss terms start at ln V."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
            elif isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
        self.condition.init_weights(INIT_STD)
        if self.config.first_frame == "row":
            nn.init.normal_(self.start_row, std=INIT_STD)
        nn.init.zeros_(self.head.weight)
        self.init_segments()
        if self.config.refine and self.config.first_frame == "row":
            self.row_partial.init_weights(INIT_STD)

    @torch.no_grad()
    def init_segments(self) -> None:
        """Fresh compressor and decompressor, in PyTorch's own initialisation (also called when stage 2 starts).

        A warm head takes it without a spike, and it learns faster than a start at average pooling and nearest
        upsampling did (docs/model.md).
        """
        if not self.config.has_segments:
            return
        for module in (*self.compressor.modules(), *self.decompressor.modules()):
            if isinstance(module, RESETTABLE):
                module.reset_parameters()
        if self.config.decompressor_head == "own":
            nn.init.zeros_(self.decompressor_head.weight)
        if self.config.refine:
            self.partial.init_weights(INIT_STD)

    # --- pieces that training and generation share -------------------------------------------------------------

    def plan(self, part: str = "all") -> tuple[Layout, Tensor, SegmentMask]:
        """Layout, rotary table [2, S, P] and mask of a sequence; built once per device (see `make_layout`)."""
        key = (part, self.tokens.weight.device)
        if key not in self._tables:
            # A table first used in generation may be used in training later.
            with torch.inference_mode(False):
                layout = make_layout(self.config, part)
                rotated = layout.kinds_S > 0
                table = rope_table(layout.positions_S3, rotated, self.config.head_dim, self.config.rope_base)
                self._tables[key] = (layout, table.to(key[1]), layout.mask())
        return self._tables[key]

    def embed_condition(self, condition: ConditionLike, drop: Tensor | None = None) -> Tensor:
        """[B, C, D] condition rows (see `forward`), with the null condition where `drop` (bool [B]) is True."""
        return self.condition(Condition.of(condition), drop) + self.types.weight[0]

    def embed_raw(self, ids: Tensor) -> Tensor:
        """Raw token rows [..., D]."""
        return self.tokens(ids) + self.types.weight[RAW]

    def embed_start_row(self, batch: int) -> Tensor:
        """The learned row before the first one, [B, g, D] (`first_frame: row`)."""
        return (self.start_row + self.types.weight[RAW]).expand(batch, -1, -1)

    def compress(self, features_BHWD: Tensor) -> Tensor:
        """Token representations [B, g, g, D] of frames to segment rows [B, M, D]."""
        return self.compressor(features_BHWD).flatten(1, 2) + self.types.weight[COMPRESSED]

    def decompress(self, states_BMD: Tensor) -> Tensor:
        """Normed states of segments [B, M, D] to token representations [B, N, D] of the frames they predict."""
        side = self.config.grid // self.config.compression.side
        return self.decompressor(states_BMD.unflatten(1, (side, side))).flatten(1, 2)

    def known_cells(self, ids_BHW: Tensor, known_BHW: Tensor) -> Tensor:
        """The rows that the known cells of a frame add to those that predict it, [B, M, D]; zero where there are
        none.
        """
        return self.partial(self.tokens(ids_BHW), known_BHW).flatten(1, 2)

    def known_cells_of_row(self, ids_BW: Tensor, known_BW: Tensor) -> Tensor:
        """The same for a row of the first frame, [B, g, D] (`first_frame: row`)."""
        return self.row_partial(self.tokens(ids_BW)[:, None], known_BW[:, None])[:, 0]

    def segment_logits(self, features_BND: Tensor) -> Tensor:
        """[B, N, V] logits of decompressed representations."""
        head = self.decompressor_head if self.config.decompressor_head == "own" else self.head
        return head(features_BND)

    def null_condition(self, batch: int) -> Condition:
        """The condition of an unconditional sample: all pads, or the extra class."""
        return self.condition.null(batch)

    # --- training ----------------------------------------------------------------------------------------------

    def forward(
        self,
        ids_BTHW: Tensor,
        condition: ConditionLike,
        drop: Tensor | None = None,
        known: Tensor | None = None,
        context: Tensor | None = None,
        logits: bool = False,
        backend: str = "auto",
    ) -> VRCOutput:
        """Teacher-forced losses of a batch of clips.

        Args:
            ids_BTHW: long [B, 1 + F, g, g] tokens.
            condition: a `Condition`, or its tensors: long [B, C] text tokens; (float [B, C - 1, Df], bool [B, C - 1])
                text features and where they are real; or long [B] class labels.
            drop: bool [B], True where the condition is replaced by the null condition.
            known: bool [B, 1 + F, g, g], the cells that the rows which predict their frame see (`refine`); the loss is
                that of the others, a mean over them for each sample and frame. None: no cell, as in one pass.
            context: long [B, F, g, g], tokens that are compressed in the place of frames 0..F-1 (`context_noise`).
            logits: also return the logits.
            backend: of `segment_attention`.

        Raises:
            ValueError: ids of another shape than the configuration's.
        """
        config = self.config
        expected = (1 + config.frames, config.grid, config.grid)
        if tuple(ids_BTHW.shape[1:]) != expected:
            raise ValueError(f"ids have shape {tuple(ids_BTHW.shape[1:])}, the model takes {expected}")
        if known is not None and not config.refine:
            raise ValueError("known: this model has no refinement (refine is false)")
        raw_BLD = self._raw_rows(ids_BTHW)
        condition_BCD = self.embed_condition(condition, drop)
        pieces = [condition_BCD, raw_BLD]
        if not config.has_segments:
            states = self._run(pieces, "all", backend, ids_BTHW, known)
            return self._output(ids_BTHW, self._raw_logits(states), logits, known)
        features = self.tokens(ids_BTHW[:, :-1] if context is None else context).flatten(0, 1)
        segments_BLD = self.compress(features).unflatten(0, (-1, config.frames)).flatten(1, 2)
        if config.keep_first_frame:
            states = self._run([*pieces, segments_BLD], "all", backend, ids_BTHW, known)
            raw_logits = self._raw_logits(states)
        else:
            raw_logits = self._raw_logits(self._run(pieces, "first", backend, ids_BTHW, known))
            states = self._run([condition_BCD, segments_BLD], "later", backend, ids_BTHW, known)
        segment_states = states[:, -segments_BLD.shape[1] :].unflatten(1, (config.frames, -1)).flatten(0, 1)
        later = self.segment_logits(self.decompress(segment_states)).unflatten(0, (-1, config.frames))
        return self._output(ids_BTHW, torch.cat([raw_logits[:, None], later], dim=1), logits, known)

    def _raw_rows(self, ids_BTHW: Tensor) -> Tensor:
        """Inputs of the raw part, without the last token or row when nothing reads it (see layout)."""
        config = self.config
        frames = ids_BTHW if config.prediction == "token" else ids_BTHW[:, :1]
        rows = self.embed_raw(frames.flatten(1))
        if config.first_frame == "row":
            rows = torch.cat([self.embed_start_row(len(rows)), rows], dim=1)
        return rows[:, : self.plan("all" if config.keep_first_frame else "first")[0].raw]

    def _run(
        self, pieces: list[Tensor], part: str, backend: str, ids_BTHW: Tensor, known: Tensor | None
    ) -> Tensor:
        layout, table, mask = self.plan(part)
        rows_BSD = self.dropout(torch.cat(pieces, dim=1))
        if known is None:
            return self.trunk(rows_BSD, table, mask, backend=backend)
        first = self.config.refine_layer
        rows_BSD = self.trunk(rows_BSD, table, mask, backend=backend, stop=first)
        rows_BSD = rows_BSD + self._known_rows(layout, ids_BTHW, known)
        return self.trunk(rows_BSD, table, mask, backend=backend, start=first)

    def _known_rows(self, layout: Layout, ids_BTHW: Tensor, known_BTHW: Tensor) -> Tensor:
        """What known cells add to each row of a sequence, [B, S, D]."""
        batch, side = len(ids_BTHW), self.config.grid
        nothing = self.types.weight.new_zeros(batch, 1, self.config.width)
        added = [nothing.expand(-1, layout.condition, -1)]
        left = layout.raw
        if left and self.config.first_frame == "row":
            ids, known = ids_BTHW[:, 0].flatten(0, 1), known_BTHW[:, 0].flatten(0, 1)
            added.append(self.known_cells_of_row(ids, known).unflatten(0, (batch, -1)).flatten(1, 2))
            left -= side * side  # what is left is the last row, which predicts none
        added.append(nothing.expand(-1, left, -1))
        if layout.segments:
            ids, known = ids_BTHW[:, 1:].flatten(0, 1), known_BTHW[:, 1:].flatten(0, 1)
            added.append(self.known_cells(ids, known).unflatten(0, (batch, -1)).flatten(1, 2))
        return torch.cat(added, dim=1)

    def _raw_logits(self, states_BSD: Tensor) -> Tensor:
        """Logits of what the raw part predicts: [B, N, V], or [B, 1 + F, N, V] for `prediction: token`."""
        config = self.config
        slots, count = config.condition.slots, config.tokens_per_frame
        if config.prediction == "token":
            return self.head(states_BSD[:, slots - 1 :]).unflatten(1, (1 + config.frames, count))
        start = slots if config.first_frame == "row" else slots - 1
        return self.head(states_BSD[:, start : start + count])

    def _output(self, ids_BTHW: Tensor, logits: Tensor, keep: bool, known: Tensor | None = None) -> VRCOutput:
        """Losses from logits [B, 1 + F, N, V] (or [B, N, V] for a single frame), of the cells that are not known."""
        config = self.config
        logits = logits if logits.dim() == 4 else logits[:, None]
        wide = logits if logits.dtype == torch.float64 else logits.float()
        losses_BTN = F.cross_entropy(wide.flatten(0, 2), ids_BTHW.flatten(), reduction="none").view(
            logits.shape[:3]
        )
        if known is None:
            frames_T = losses_BTN.mean((0, 2))
        else:
            unknown_BTN = ~known.flatten(2)
            frames_T = ((losses_BTN * unknown_BTN).sum(2) / unknown_BTN.sum(2).clamp(min=1)).mean(0)
        detached = frames_T.detach()
        later = detached[1:].mean() if config.frames else detached.new_zeros(())
        return VRCOutput(
            loss=self._objective(frames_T),
            loss_first=detached[0],
            loss_later=later,
            loss_frames=detached,
            logits_first=logits[:, 0] if keep else None,
            logits_later=logits[:, 1:] if keep else None,
        )

    def _objective(self, frames_T: Tensor) -> Tensor:
        """Combine the frames' mean losses by `loss_reduction` (Eq. 7 is `block`)."""
        config = self.config
        if config.frame_loss_weight:
            frames_T = frames_T * frames_T.new_tensor(config.frame_loss_weight)
        first, later = frames_T[0], frames_T[1:]
        if not config.frames:
            return first
        if config.loss_reduction == "token":
            return frames_T.mean()
        if config.loss_reduction == "block":
            later = later * config.tokens_per_frame
        return first + later.mean()

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by part: `body` is the layers and the final norm, as LlamaGen counts."""
        counts = {name: sum(p.numel() for p in module.parameters()) for name, module in self.named_children()}
        counts["body"] = counts.pop("trunk")
        counts["total"] = sum(p.numel() for p in self.parameters())
        return {name: count for name, count in counts.items() if count}
