"""The converted folder of a tiny random model, made once."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import pytest
from hf_source import Source


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
