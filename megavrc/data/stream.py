"""The stream of micro-batches of one rank: the same global batches for any number of ranks, workers, micro-batches."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from megavrc.data.order import SampleOrder
from megavrc.data.shards import DataError
from megavrc.data.workers import in_workers
from megavrc.errors import UserError

log = logging.getLogger(__name__)

SUBSTITUTES = 100  # damaged samples in a row at one position; then the dataset is no dataset

Item = dict[str, Any]
Places = list[tuple[int, int]]  # (position, index) of the samples of a micro-batch
Damaged = list[tuple[int, str]]  # (position, reason) of each damaged sample that was replaced


class Source(Protocol):
    """Anything with a length whose items are dictionaries; reading a damaged one raises DataError."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


@runtime_checkable
class ReadsAhead(Protocol):
    """A source that is faster if it knows what comes."""

    def will_read(self, indices: Iterable[int]) -> None: ...


class Stream:
    """Endless micro-batches of one rank, in order.

    Step s holds positions [s * global_batch, (s + 1) * global_batch). Its j-th forward pass, over all ranks, holds the
    j-th run of world_size * micro_batch of these, of which rank r gets the r-th slice. So the samples of a forward
    pass, on which BatchNorm depends, stay the same when world_size * micro_batch does.

    Args:
        source: items by index, see `Source`. Each item also gets its "position", from which (with the seed) any
            randomness of its own must be drawn.
        order: which sample stands at a position, and which takes its place when it is damaged.
        global_batch: samples of an optimiser step; a multiple of world_size * micro_batch.
        micro_batch: samples of one forward pass on one rank.
        rank: of this process.
        world_size: number of ranks.
        collate: makes a batch of a list of items; batches are pickled when workers are used.
        start_step: the first step to deliver; may be changed between one iteration and the next.
        workers: reading processes; 0 reads in this process.
        max_damaged: how many different damaged samples are replaced by others before one is an error; 0: none is.

    Attributes:
        samples: indices into the source of the last micro-batch, damaged samples replaced.
        replaced: samples delivered in the place of damaged ones.

    Raises:
        UserError: the batch sizes do not divide, or the order is not that of the source.
    """

    def __init__(
        self,
        source: Source,
        order: SampleOrder,
        *,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
        collate: Callable[[list[Item]], Any],
        start_step: int = 0,
        workers: int = 0,
        max_damaged: int = 0,
    ) -> None:
        if min(global_batch, micro_batch) < 1 or global_batch % (world_size * micro_batch):
            raise UserError(
                f"global_batch {global_batch} is not a multiple of {world_size} ranks x micro_batch {micro_batch}"
            )
        if len(source) != order.n:
            raise ValueError(f"the order is over {order.n} samples, the source has {len(source)}")
        self.source, self.order, self.collate = source, order, collate
        self.global_batch, self.micro_batch = global_batch, micro_batch
        self.rank, self.world_size = rank, world_size
        self.start_step, self.workers = start_step, workers
        self.max_damaged, self.replaced = max_damaged, 0
        self.samples: list[int] = []
        self._damaged: set[str] = set()

    def __iter__(self) -> Iterator[Any]:
        """Raises DataError for a damaged sample that may not be replaced, WorkerDied if the workers cannot live."""
        places = self._places()
        read = in_workers(self._read, places, self.workers) if self.workers else map(self._read, places)
        try:
            for batch, self.samples, damaged in read:
                for position, reason in damaged:
                    self._account(position, reason)
                yield batch
        except UserError as error:  # on this rank alone; the others only see that it is gone
            log.error("%s", error)
            raise

    def _places(self) -> Iterator[Places]:
        """Micro-batch by micro-batch, for ever."""
        first = self.start_step * self.global_batch + self.rank * self.micro_batch
        while True:
            yield [(p, self.order.sample(p)) for p in range(first, first + self.micro_batch)]
            first += self.world_size * self.micro_batch

    def _read(self, places: Places) -> tuple[Any, list[int], Damaged]:
        """A batch, the indices of its samples, and those that were replaced; in a worker."""
        if isinstance(self.source, ReadsAhead):
            self.source.will_read(index for _, index in places)
        damaged: Damaged = []
        read = [
            _item(self.source, self.order, position, index, damaged, self.max_damaged > 0)
            for position, index in places
        ]
        return self.collate([item for item, _ in read]), [index for _, index in read], damaged

    def _account(self, position: int, reason: str) -> None:
        """Here and not in the workers, so that all of them share one budget."""
        self.replaced += 1
        self._damaged.add(reason)
        if len(self._damaged) > self.max_damaged:
            raise DataError(f"{len(self._damaged)} damaged samples, data.max_damaged allows fewer; {reason}")
        log.warning("position %d: %s; another sample takes its place", position, reason)


def _item(
    source: Source,
    order: SampleOrder,
    position: int,
    index: int,
    damaged: Damaged,
    replace: bool,
) -> tuple[Item, int]:
    """The sample at a position and its index, or with `replace` one in its place; then it is added to `damaged`."""
    for attempt in range(SUBSTITUTES):
        try:
            return {**source[index], "position": position}, index
        except DataError as error:
            if not replace:
                raise
            damaged.append((position, str(error)))
            index = order.substitute(position, attempt)
    raise DataError(f"position {position}: {SUBSTITUTES} damaged samples in a row; {damaged[-1][1]}")


def evaluation_batches(
    source: Source,
    order: SampleOrder,
    *,
    count: int,
    micro_batch: int,
    rank: int = 0,
    world_size: int = 1,
    collate: Callable[[list[Item]], Any],
    replace: bool = False,
) -> Iterator[tuple[Any, int]]:
    """One pass of one rank over the samples at positions 0 to count - 1, each on one rank, each time the same.

    All ranks get equally many batches, so collective forward passes stay in step. The last may be smaller; a rank for
    which nothing is left gets one sample that does not count. So the mean over all samples, for any number of ranks, is
    the sum over batches and ranks of (mean of the batch) x (samples that count), divided by `count`.

    Args:
        replace: put another sample in the place of a damaged one, each time the same.

    Yields:
        The collated batch, and how many samples of it count: all, or none.

    Raises:
        DataError: a damaged sample that may not be replaced.
    """
    for first in range(0, count, world_size * micro_batch):
        start = first + rank * micro_batch
        mine = range(start, min(start + micro_batch, count))
        damaged: Damaged = []
        try:
            items = [_item(source, order, p, order.sample(p), damaged, replace)[0] for p in mine or [first]]
        except UserError as error:  # as in `Stream`: on this rank alone
            log.error("%s", error)
            raise
        for position, reason in damaged:
            log.warning("evaluation, position %d: %s; another sample takes its place", position, reason)
        yield collate(items), len(mine)
