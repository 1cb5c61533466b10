"""The forward passes of generation, with cached keys and values; what is drawn from their logits is decided elsewhere.

`generate` samples with it, speculation verifies drafts with it, and tests drive it with known tokens and compare its
logits with the training forward pass.
"""

import logging

import torch
from torch import Tensor, nn

from .attention import SegmentMask
from .cache import DeviceStep, KVCache
from .condition import ConditionLike
from .fused_step import FusedStep, why_not_fused
from .rope import qkv_table
from .sampling import guide
from .vrc import VRC

log = logging.getLogger("megavrc")

Known = tuple[Tensor, Tensor]  # ids of cells, long [B, N], and which of them are known, bool [B, N]


class Memory:
    """Buffers that the passes of one model and batch size share: nothing of the model, so they may outlive a clip.

    CUDA graphs point into it.

    Attributes:
        copies: rows of a sample, 2 with guidance.
        cache: buffers for every row that a clip can have.
        held: [rows, max(M, g), D], what the newest segment (or row of the first frame) was before `refine_layer`.
        fused: the kernels of a token step on the device, or None where they cannot run or were found wrong.
    """

    def __init__(self, model: VRC, batch: int, copies: int = 1) -> None:
        config, weight = model.config, model.tokens.weight.detach()
        self.copies, rows = copies, copies * batch
        plans = {part: model.plan(part)[:2] for part in ("all", "first", "later")}
        self.layouts = {part: layout for part, (layout, _) in plans.items()}
        self.tables = {part: qkv_table(table, weight.dtype) for part, (_, table) in plans.items()}
        self._masks: dict[tuple[str, int, int], SegmentMask | None] = {}
        capacity = max(layout.length for layout in self.layouts.values())
        sizes = (config.layers, rows, config.heads, capacity, config.head_dim)
        self.cache = KVCache(*sizes, weight, model.trunk.cache_rounding)
        longest = max(config.segment_length, config.grid) if config.refine else 0
        self.held = weight.new_zeros(rows, longest, config.width)
        self.fused = self._fused(model, rows) if weight.is_cuda else None

    def _fused(self, model: VRC, rows: int) -> FusedStep | None:
        if reason := why_not_fused(model, rows):
            log.info("token steps run layer by layer, not in the fused kernels: %s", reason)
            return None
        return FusedStep(model.config, self.cache)

    def mask(self, part: str, start: int, stop: int, keep: bool = True) -> SegmentMask | None:
        """The mask of the rows [start, stop); None where they see everything up to stop. Graphs need it kept."""
        if stop == start + 1:
            return None
        key = part, start, stop
        if key in self._masks:
            return self._masks[key]
        mask = self.layouts[part].mask(start, stop)
        found = None if mask.is_full else mask
        if keep:
            self._masks[key] = found
        return found


class Decoder:
    """The passes of one batch of clips, in order; with guidance the unconditional copies ride in the batch.

    Attributes:
        guidance, plausibility: of the next logits, see `guide`.
        cache: rows already seen; `cache.length` counts them and `cache.truncate` forgets the newest.
        passes: trunk passes made so far.
    """

    def __init__(
        self,
        model: VRC,
        condition: ConditionLike,
        batch: int,
        guidance: float = 1.0,
        memory: Memory | None = None,
    ) -> None:
        """`memory`: of an earlier clip, to use again (default: a new one, with copies unless guidance is 1)."""
        self.model, self.config = model, model.config
        self.batch, self.guidance, self.plausibility = batch, guidance, 0.0
        self.memory = memory or Memory(model, batch, 1 if guidance == 1.0 else 2)
        self.copies = self.memory.copies
        self.part = "all" if self.config.keep_first_frame else "first"
        self.passes = 0
        rows = [model.embed_condition(condition)]
        if self.copies == 2:
            rows.append(model.embed_condition(model.null_condition(batch)))
        self._pending = [torch.cat(rows)]  # rows not yet seen by the trunk, each [copies * B, L, D]
        self.cache = self.memory.cache
        self.cache.truncate(0)

    @property
    def state(self) -> tuple[str, int]:
        """The state of the host between passes, when nothing is pending; `restore` takes it back."""
        return self.part, self.cache.length

    def restore(self, state: tuple[str, int]) -> None:
        self.part, self.cache.length = state
        self._pending.clear()

    @property
    def idle(self) -> bool:
        """Every row that was pushed has been seen."""
        return not self._pending

    def push(self, rows_BLD: Tensor) -> None:
        """Add input rows for the next pass (the same for the unconditional copies)."""
        self._pending.append(rows_BLD if self.copies == 1 else rows_BLD.repeat(self.copies, 1, 1))

    def push_raw(self, ids_BL: Tensor) -> None:
        """Add raw tokens as input."""
        self.push(self.model.embed_raw(ids_BL))

    def step(self, count: int, keep_mask: bool = True, hold: bool = False) -> Tensor:
        """One trunk pass over the pending rows; returns the normed states of its last `count` rows.

        `keep_mask`: for later clips, which make the same pass again. `hold`: these rows may be run again by `refine`.
        """
        rows = self._pending[0] if len(self._pending) == 1 else torch.cat(self._pending, dim=1)
        self._pending.clear()
        if not (hold and self.config.refine):
            return self._layers(rows, keep_mask)[:, -count:]
        layer, start = self.config.refine_layer, self.cache.length
        rows = self._layers(rows, keep_mask, stop=layer)
        self.memory.held[:, :count] = rows[:, -count:]
        self.cache.truncate(start)
        return self._layers(rows, keep_mask, start=layer)[:, -count:]

    def refine(self, added_BLD: Tensor) -> Tensor:
        """Run the rows of the last pass that were held again, with what known cells add; returns their normed states.

        Layers before `refine_layer` would compute what they did: they do not run again.
        """
        rows = self.memory.held[:, : added_BLD.shape[1]] + added_BLD.repeat(self.copies, 1, 1)
        self.cache.truncate(self.cache.length - rows.shape[1])
        return self._layers(rows, start=self.config.refine_layer)

    def _layers(
        self, rows_BLD: Tensor, keep_mask: bool = True, start: int = 0, stop: int | None = None
    ) -> Tensor:
        """Some of the trunk's layers over rows that follow those in the cache."""
        first, last = self.cache.length, self.cache.length + rows_BLD.shape[1]
        table = self.memory.tables[self.part][first:last]
        mask = self.memory.mask(self.part, first, last, keep_mask)
        states = self.model.trunk(rows_BLD, table, mask, cache=self.cache, start=start, stop=stop)
        self.cache.length = last
        self.passes += stop is None
        return states

    def device_step(self, ids_B1: Tensor, position: Tensor, keys: int) -> Tensor:
        """The pass over one raw token a sample at a position (long [1]) below `keys` that the host does not read.

        Returns:
            guided logits [B, V]. The host's count of rows stays as it is.
        """
        self.passes += 1
        rows_B1D = self.model.embed_raw(ids_B1).repeat(self.copies, 1, 1)
        if self.memory.fused and not self.memory.fused.tried:
            self._try_fused(rows_B1D, position, keys)
        if self.memory.fused:
            return self.guide(self._fused_step(self.memory.fused, rows_B1D, position))
        return self.guide(self._layers_step(rows_B1D, position, keys))

    def _layers_step(self, rows_B1D: Tensor, position: Tensor, keys: int) -> Tensor:
        table = self.memory.tables[self.part].index_select(0, position)
        states = self.model.trunk(rows_B1D, table, None, cache=DeviceStep(self.cache, position, keys))
        return self.model.head(states[:, 0])

    def _fused_step(self, fused: FusedStep, rows_B1D: Tensor, position: Tensor) -> Tensor:
        return fused(self.model, rows_B1D[:, 0], self.memory.tables[self.part], position)

    def _try_fused(self, rows_B1D: Tensor, position: Tensor, keys: int) -> None:
        """Compare the kernels with the layers at their first step; where they fail or differ, they are given up."""
        fused = self.memory.fused
        assert fused is not None
        expected = self._layers_step(rows_B1D, position, keys).float()
        limit = 1e-2 if self.cache.layers[0].dtype == torch.float32 else 5e-2
        try:
            difference = (self._fused_step(fused, rows_B1D, position).float() - expected).norm()
            error = float(difference / expected.norm().clamp(min=1e-6))
            problem = "" if error < limit else f"relative error {error:.1e}"
        except Exception as error:  # a compiler that does not know the device raises anything
            problem = f"{type(error).__name__}: {error}".splitlines()[0]
        fused.tried = True
        if problem:
            log.warning("the fused kernels of token steps are not used: %s", problem)
            self.memory.fused = None

    def guide(self, logits: Tensor) -> Tensor:
        """Classifier-free guidance over the two halves of the batch."""
        if self.copies == 1:
            return logits
        conditional, unconditional = logits.chunk(2)
        return guide(conditional, unconditional, self.guidance, self.plausibility)

    def raw_logits(self, count: int = 1, keep_mask: bool = True) -> Tensor:
        """Run the pending rows (see `step`) and return the logits of the last `count`, [B, count, V].

        A row's logits are those of the token that follows it (in `first_frame: row`: of the cell below it).
        """
        return self.guide(self.model.head(self.step(count, keep_mask)))

    def push_segment(self, features_BND: Tensor) -> None:
        """Compress the representations of the newest frame and add its segment as input.

        With `keep_first_frame: false` the first segment takes the place of the raw rows: their keys are dropped.
        """
        side = self.config.grid
        if not self.config.keep_first_frame and self.part == "first":
            slots = self.config.condition.slots
            if self.cache.length == 0:  # a known first frame: the condition has not been run yet
                self._pending = [torch.cat(self._pending, dim=1)[:, :slots]]
                self.step(1)
            self.part = "later"
            self.cache.truncate(slots)
            self._pending.clear()
        self.push(self.model.compress(features_BND.unflatten(1, (side, side))))

    def segment_logits(self, known: Known | None = None, cells_BK: Tensor | None = None) -> Tensor:
        """Run the pending rows and predict the next frame; or, with known cells of it, run its segment again.

        Args:
            known: of the frame.
            cells_BK: long, those whose logits are wanted.

        Returns:
            [B, K, V] (default: all N cells).
        """
        side = self.config.grid
        if known is None:
            states = self.step(self.config.segment_length, hold=True)
        else:
            ids_BHW, known_BHW = (each.unflatten(1, (side, side)) for each in known)
            states = self.refine(self.model.known_cells(ids_BHW, known_BHW))
        features = self._at(self.model.decompress(states), cells_BK)
        return self.guide(self.model.segment_logits(features))

    def row_logits(self, known: Known | None = None, cells_BK: Tensor | None = None) -> Tensor:
        """The same for a row of the first frame (`first_frame: row`)."""
        if known is None:
            states = self.step(self.config.grid, hold=True)
        else:
            states = self.refine(self.model.known_cells_of_row(*known))
        return self.guide(self.model.head(self._at(states, cells_BK)))

    def _at(self, features_BND: Tensor, cells_BK: Tensor | None) -> Tensor:
        """The features of some cells of each sample, [B, K, D]."""
        if cells_BK is None:
            return features_BND
        index = cells_BK.repeat(self.copies, 1)[..., None].expand(-1, -1, features_BND.shape[-1])
        return features_BND.gather(1, index)


def store_for_generation(model: VRC) -> None:
    """Keep the float32 matrices of a model on a CPU transposed in memory: products with one row take 0.7 of the time.
    Convolutions there have their channels last, as what they read has: they take 0.4 to 0.8, to the same bits.

    Names, shapes and values stay; only strides change, so the model still trains and saves. bfloat16 and other devices
    are slower with transposed matrices: those that come so are stored by rows again, convolutions on other devices too.
    """
    for module in (*model.trunk.modules(), model.head):
        if isinstance(module, nn.Linear) and type(module.weight.data) is Tensor:  # not quantised
            weight = module.weight.data
            if weight.device.type != "cpu" or weight.dtype != torch.float32:
                module.weight.data = weight.contiguous()
            elif weight.is_contiguous():
                module.weight.data = weight.t().contiguous().t()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            on_cpu = module.weight.device.type == "cpu"
            order = torch.channels_last if on_cpu else torch.contiguous_format
            module.weight.data = module.weight.data.contiguous(memory_format=order)
