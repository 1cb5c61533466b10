"""No evaluation replaces a file of another kind: each is asked where its results go before anything is measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megavrc.benchmarks.attention import attention
from megavrc.benchmarks.generate import generate
from megavrc.benchmarks.loader import loader
from megavrc.benchmarks.memory import memory
from megavrc.benchmarks.speed import speed
from megavrc.benchmarks.tokenize import tokenize
from megavrc.benchmarks.train import train
from megavrc.errors import UserError
from megavrc.files import check_picture_place, write_json
from megavrc.generation.evaluate import alignment, check_places
from megavrc.generation.evaluate_all import all_metrics
from megavrc.generation.evaluate_clips import clipsim, drift, redundancy
from megavrc.generation.evaluate_copying import copying
from megavrc.generation.evaluate_distance import fvd, kvd
from megavrc.generation.evaluate_scenes import scenes
from megavrc.generation.evaluate_self import fd_self
from megavrc.results import result, write_result
from megavrc.tokenization.inspect import inspect
from megavrc.training.compare import compare_runs
from megavrc.web.user_study_report import report_study

NONE = Path("/nowhere")
MINE = b'{"mine": [1, 2, 3]}'
COMMANDS: dict[str, Callable[[Path], Any]] = {  # given the place of a file of the user's
    "alignment --json": lambda path: alignment(NONE, NONE, json=path),
    "alignment --clips --json": lambda path: alignment(clips=NONE, json=path),
    "alignment --sheet": lambda path: alignment(NONE, NONE, sheet=path.rename(path.with_suffix(".png"))),
    "all": lambda path: all_metrics(NONE, NONE, path.rename(path.with_name("drift.json")).parent),
    "all, its page": lambda path: all_metrics(NONE, NONE, path.rename(path.with_name("metrics.md")).parent),
    "clipsim": lambda path: clipsim(NONE, json=path),
    "drift": lambda path: drift(NONE, json=path),
    "redundancy --json": lambda path: redundancy(NONE, json=path),
    "redundancy --picture": lambda path: redundancy(NONE, picture=path),
    "copying": lambda path: copying(NONE, NONE, json=path),
    "fvd": lambda path: fvd(NONE, NONE, json=path),
    "kvd": lambda path: kvd(NONE, NONE, json=path),
    "scenes --json": lambda path: scenes(NONE, json=path),
    "scenes --sheet": lambda path: scenes(NONE, sheet=path.rename(path.with_suffix(".png"))),
    "fd-self --json": lambda path: fd_self(NONE, NONE, json=path),
    "fd-self --out": lambda path: fd_self(NONE, path.parent),
    "fd-self --out FILE": lambda path: fd_self(NONE, path),
    "memory": lambda path: memory(json=path),
    "speed": lambda path: speed(NONE, json=path),
    "benchmark attention": lambda path: attention(json=path),
    "benchmark generate": lambda path: generate(json=path),
    "benchmark loader": lambda path: loader(json=path),
    "benchmark tokenize": lambda path: tokenize(json=path),
    "benchmark train": lambda path: train(json=path),
    "user_study report --json": lambda path: report_study(NONE, json=path),
    "user_study report --figure": lambda path: report_study(
        NONE, figure=path.rename(path.with_suffix(".svg"))
    ),
    "compare_runs --plot": lambda path: compare_runs(NONE, NONE, plot=path.rename(path.with_suffix(".svg"))),
    "inspect_shards --sheet": lambda path: inspect(
        NONE, sheet=path.rename(path.with_suffix(".png")), tokenizer=NONE
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_of_another_kind_stays(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(MINE)
    with pytest.raises(UserError, match=r"is there and is no |name a file that ends in \.png"):
        COMMANDS[name](path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [MINE]


def test_results_scores_and_pictures_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for write in (
        lambda: write_result(path, result("evaluate drift", {})),
        lambda: write_json(path, {"real": {"colour": 1.0}}),
    ):
        write()
        check_places(path)
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n..")
    check_picture_place(picture)
    check_picture_place(tmp_path / "none.svg")
    for wrong in (path, tmp_path / "none.jpg", tmp_path / "none"):
        with pytest.raises(UserError, match=r"name a file that ends in \.png or \.svg"):
            check_picture_place(wrong)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match="is there and is no PNG picture"):
        check_picture_place(tmp_path / "folder.png")
