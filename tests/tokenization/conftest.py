import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from jobs import LENGTHS, make_tokenizer, tokenize

from megavrc.video.listing import list_folder
from megavrc.video.manifest import write_manifest
from megavrc.video.write import write_mp4


@pytest.fixture(autouse=True)
def _keep_signal_handlers() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizers") / "tiny", seed=0)


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for number, frames in enumerate([*LENGTHS, 20]):
        small = rng.integers(0, 256, (frames, 6, 8, 3), dtype=np.uint8)
        path = folder / "ab"[number % 2] / f"{number:02d}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_mp4(path, small.repeat(8, axis=1).repeat(8, axis=2))
        path.with_suffix(".txt").write_text(f"video {number}")
    damaged = folder / "a" / "10.mp4"
    damaged.write_bytes(damaged.read_bytes()[:-2000])
    write_manifest(folder / "manifest.jsonl", list_folder(folder, folder / "manifest.jsonl").entries)
    return folder / "manifest.jsonl"


@pytest.fixture(scope="session")
def done(manifest: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that ran undisturbed."""
    return tokenize(manifest, tokenizer, tmp_path_factory.mktemp("job") / "out")
