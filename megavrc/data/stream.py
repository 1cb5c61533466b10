"""The stream of micro-batches of one rank: the same global batches for any number of ranks, workers, micro-batches."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch.utils.data import DataLoader

from megavrc.config import UserError
from megavrc.data.order import Order

Item = dict[str, Any]


class Source(Protocol):
    """Anything with a length whose items are dictionaries; picklable when workers are used."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


class _Placed:
    """Items by (position, index): the main process decides the order, a worker only reads."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, place: tuple[int, int]) -> Item:
        position, index = place
        return {**self.source[index], "position": position}


class Stream:
    """Endless micro-batches of one rank, in order.

    Step s holds positions [s * global_batch, (s + 1) * global_batch). Its j-th forward pass, over all ranks, holds the
    j-th run of world_size * micro_batch of these, of which rank r gets the r-th slice. So the samples of a forward
    pass, on which BatchNorm depends, stay the same when world_size * micro_batch does.

    Args:
        source: items by index, see `Source`. Each item also gets its "position", from which (with the seed) any
            randomness of its own must be drawn.
        order: which sample stands at a position.
        global_batch: samples of an optimiser step; a multiple of world_size * micro_batch.
        micro_batch: samples of one forward pass on one rank.
        rank: of this process.
        world_size: number of ranks.
        collate: makes a batch of a list of items; picklable when workers are used.
        start_step: the first step to deliver.
        workers: reading processes; 0 reads in this process.

    Raises:
        UserError: the batch sizes do not divide, or the order is not that of the source.
    """

    def __init__(
        self,
        source: Source,
        order: Order,
        *,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
        collate: Callable[[list[Item]], Any],
        start_step: int = 0,
        workers: int = 0,
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

    def sample_ids(self, step: int) -> list[int]:
        """Indices into the source of the whole global batch of a step, in order of position (for audits)."""
        return [self.order.sample(step * self.global_batch + offset) for offset in range(self.global_batch)]

    def samples_of_rank(self, step: int, rank: int) -> list[int]:
        """Those of `sample_ids` that a rank gets, in its order."""
        ids = self.sample_ids(step)
        starts = range(rank * self.micro_batch, self.global_batch, self.world_size * self.micro_batch)
        return [sample for start in starts for sample in ids[start : start + self.micro_batch]]

    def __iter__(self) -> Iterator[Any]:
        placed = _Placed(self.source)
        if self.workers == 0:
            return (self.collate([placed[place] for place in places]) for places in self._places())
        loader: DataLoader[Any] = DataLoader(
            placed,  # type: ignore[arg-type]  # map-style, but not by integers
            batch_sampler=_Endless(self),
            num_workers=self.workers,
            collate_fn=self.collate,
            prefetch_factor=4,
        )
        return iter(loader)

    def _places(self) -> Iterator[list[tuple[int, int]]]:
        """(position, index) of each sample, by micro-batch, for ever."""
        first = self.start_step * self.global_batch + self.rank * self.micro_batch
        while True:
            yield [(p, self.order.sample(p)) for p in range(first, first + self.micro_batch)]
            first += self.world_size * self.micro_batch


class _Endless:
    """What DataLoader takes as a batch sampler: an iterable that has no length."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.stream._places()
