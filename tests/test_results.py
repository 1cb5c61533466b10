"""Result files: written, shown, compared; a newer or foreign file is refused by name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megavrc.errors import UserError
from megavrc.measure import in_turn
from megavrc.results import (
    case,
    circumstances,
    differences,
    median_of,
    metric,
    read_result,
    result,
    table,
    write_result,
)

TOOL = Path(__file__).resolve().parents[1] / "tools" / "results.py"


def made(seconds: list[float], rounds: int = 3, **metrics: Any) -> dict[str, Any]:
    rows = [case("b", {"time": median_of(seconds, "s"), "clips": metric(4)}, preset="b")]
    return result("megavrc benchmark x", {"preset": "b"}, rows, metrics, {"rounds": rounds})


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *words], capture_output=True, text=True, timeout=120)


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    wanted = made([1.0, 3.0, 2.0], ratio=metric(2.5, "", 3, 2.0, 3.0))
    write_result(tmp_path / "a.json", wanted)
    assert read_result(tmp_path / "a.json") == wanted
    assert wanted["cases"][0]["metrics"]["time"] == {
        "value": 2.0,
        "unit": "s",
        "n": 3,
        "low": 1.0,
        "high": 3.0,
    }
    assert wanted["machine"]["cpu"] and wanted["versions"]["torch"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.pop("format"), "no common schema"),
        (lambda content: content.update(format=3), "newer megavrc"),
        (lambda content: content.pop("cases"), "cases missing"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: Any, said: str) -> None:
    content = made([1.0])
    change(content)
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        read_result(tmp_path / "a.json")


def test_the_table_is_that_of_the_file() -> None:
    one = made([1.0, 3.0, 2.0])
    assert table(one).splitlines() == [
        "|  | time | clips |",
        "| --- | ---: | ---: |",
        "| b | 2 s (1 to 3) | 4 |",
    ]
    one["cases"][0]["metrics"]["time"]["value"] = 2.5
    assert "2.5 s" in table(one)
    assert table(one, ["clips"]).splitlines()[-1] == "| b | 4 |"


def test_numbers_differ_when_their_spreads_do_not_touch() -> None:
    near, far = made([2.9, 3.5]), made([3.1, 3.5])
    one = made([1.0, 3.0])
    assert [item.apart for item in differences(one, near)] == [False, False]
    assert [item.apart for item in differences(one, far)] == [True, False]


def test_a_comparison_says_what_else_differs(tmp_path: Path) -> None:
    one, two = made([1.0, 3.0]), made([5.0, 6.0], rounds=9)
    two["machine"] = two["machine"] | {"cpu": "another"}
    assert [key for key, _, _ in circumstances(one, two)] == ["machine.cpu", "protocol.rounds"]
    write_result(tmp_path / "a.json", one)
    write_result(tmp_path / "b.json", two)
    same = run("compare", tmp_path / "a.json", tmp_path / "a.json")
    assert (same.returncode, "Nothing else differs" in same.stdout) == (0, True), same.stderr
    other = run("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert other.returncode == 1, other.stderr
    assert (
        "differs" in other.stdout
        and "machine.cpu" in other.stdout
        and "protocol.rounds: 3 | 9" in other.stdout
    )
    shown = run("show", tmp_path / "a.json")
    assert "| b | 2 s (1 to 3) | 4 |" in shown.stdout, shown.stderr


def test_cases_take_turns_and_warm_up_is_left_out() -> None:
    order: list[str] = []
    ticks = iter(range(100))
    cases = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = in_turn(cases, rounds=2, warmup=1, clock=lambda: float(next(ticks)))
    assert order == ["a", "b"] * 3
    assert seconds == {"a": [1.0, 1.0], "b": [1.0, 1.0]}
