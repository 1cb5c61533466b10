"""What several tests of training need."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from megavrc.distributed import Rank


@pytest.fixture
def alone() -> Iterator[Rank]:
    """A world of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Rank(0, 1, 0, torch.device("cpu"))
    dist.destroy_process_group()
