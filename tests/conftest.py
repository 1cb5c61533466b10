"""What all tests share: one thread a process, and the reason why a GPU test is skipped."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: test processes run side by side
os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import forked
import ports
import pytest
import torch
from hf_source import Source

torch.set_num_threads(1)
SCHEDULER = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def ordinary_priority() -> Iterator[None]:
    """A process that is made real-time, as some libraries do under root, starves all that runs after it."""
    yield
    if SCHEDULER is not None and (now := os.sched_getscheduler(0)) != SCHEDULER:
        os.sched_setscheduler(0, SCHEDULER, os.sched_param(0))
        pytest.fail(f"this process became real-time: scheduler {now}, {SCHEDULER} at first")


@pytest.fixture(scope="session", autouse=True)
def forks() -> Iterator[None]:
    yield
    forked.end_server()


@pytest.fixture
def free_port() -> int:
    """A TCP port that nothing listens on now."""
    return ports.free_port()


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def folder(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted through the gate."""
    from megavrc.hf.convert import to_hf

    out = tmp_path_factory.mktemp("converted") / "vrc"
    to_hf(source.run, source.run.parent / "video", source.text.path, out)
    return out
