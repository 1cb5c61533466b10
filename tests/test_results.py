"""Result files: written, shown, compared; a newer or foreign file is refused by name."""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megavrc.errors import UserError
from megavrc.measure import in_turn
from megavrc.results import (
    TABLE,
    case,
    circumstances,
    differences,
    median_of,
    metric,
    page_text,
    read_result,
    result,
    shown,
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
        "samples": [1.0, 3.0, 2.0],
    }
    assert wanted["machine"]["cpu"] and wanted["versions"]["torch"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.pop("format"), "without a common schema"),
        (lambda content: content.update(format=3), "newer megavrc"),
        (lambda content: content.pop("cases"), "cases missing"),
        (
            lambda content: content.update(machine=None, metrics=[]),
            "machine, metrics missing or of another kind",
        ),
        (lambda content: content["metrics"].update(a=3), "metric a is not"),
        (lambda content: content["metrics"].update(a={"value": "3", "unit": ""}), "metric a is not"),
        (lambda content: content["cases"].append({"name": "b"}), "case 2 is not"),
        (lambda content: content["cases"][0]["metrics"].update(time={"value": 1}), "case 1 is not"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: Any, said: str) -> None:
    content = made([1.0])
    change(content)
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        read_result(tmp_path / "a.json")


def test_a_result_replaces_results_alone(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        write_result(tmp_path / "a.json", made([value]))
    for name, text in (
        ("m.jsonl", '{"path": "a.mp4"}\n'),
        ("config.json", '{"layers": 3}'),
        ("b.csv", "path\na\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"{name}: is there and is no result file; choose another name"):
            write_result(tmp_path / name, made([1.0]))
        assert (tmp_path / name).read_text() == text


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


def test_cases_of_one_name_are_compared_in_their_order() -> None:
    twice = result("c", {}, [case("a", {"x": metric(value)}) for value in (1.0, 2.0)])
    found = differences(twice, twice)
    assert [item.where for item in found] == ["a: x", "a (2): x"] and not any(item.apart for item in found)


def test_what_is_not_finite_is_alone() -> None:
    """As null is: a run that diverged is not within the spread of another."""
    fine, lost = (result("c", {}, [], {"loss": metric(value, "", 3, 1, 2)}) for value in (1.5, float("nan")))
    assert not differences(fine, lost) and len(differences(fine, fine)) == 1


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


ROOT = TOOL.parents[1]
PAGES = [
    path
    for path in (ROOT / "README.md", ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").glob("*.md")))
    if TABLE.search(path.read_text())
]
RESULTS = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_tables_of_a_page_are_those_of_its_files(path: Path) -> None:
    assert page_text(path) == path.read_text(), f"megavrc results page {path.relative_to(ROOT)}"


def test_a_changed_number_changes_the_page(tmp_path: Path) -> None:
    page, file = tmp_path / "page.md", tmp_path / "a.json"
    page.write_text("before\n<!-- table: a.json time -->\nold\n<!-- end -->\nafter\n")
    write_result(file, made([1.0, 3.0, 2.0]))
    run("page", page)
    first = page.read_text()
    assert (
        "| b | 2 s (1 to 3) |" in first
        and "old" not in first
        and first.startswith("before\n<!-- table: a.json time")
    )
    assert first.endswith("<!-- end -->\nafter\n") and page_text(page) == first
    windows = b"one line of another end\n" + page.read_bytes().replace(b"\n", b"\r\n")
    page.write_bytes(windows)
    run("page", page)
    assert page.read_bytes() == windows
    content = read_result(file)
    content["cases"][0]["metrics"]["time"]["value"] = 2.5
    write_result(file, content)
    assert "2.5 s (1 to 3)" in page_text(page)
    page.write_text("<!-- table: a.json nothing -->\n<!-- end -->\n")
    with pytest.raises(UserError, match="no column 'nothing'; there are clips, preset, time"):
        page_text(page)


@pytest.mark.parametrize(
    "damage", [("<!-- end -->\nkept", "kept"), ("<!-- table: a.json time", "<!-- table: a.json\n time")]
)
def test_a_table_without_its_end_takes_no_text_with_it(tmp_path: Path, damage: tuple[str, str]) -> None:
    page, made_anew = tmp_path / "page.md", "<!-- table: a.json time -->\n<!-- end -->\n"
    write_result(tmp_path / "a.json", made([1.0]))
    page.write_text(f"{made_anew}kept\n{made_anew}".replace(*damage, 1))
    before = page.read_text()
    refused = run("page", page)
    assert refused.returncode == 2 and "1 tables without <!-- end -->" in refused.stderr, refused.stderr
    assert page.read_text() == before


def test_a_name_of_any_text_is_one_cell() -> None:
    one = made([1.0])
    one["cases"][0]["name"] = "a|b\n# c\r\n"
    assert table(one).splitlines()[2:] == ["| a\\|b # c | 1 s | 4 |"]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_values_of_result_files_are_those_of_their_samples(path: Path) -> None:
    content = read_result(path)
    for metrics in (content["metrics"], *(row["metrics"] for row in content["cases"])):
        for name, found in metrics.items():
            assert {"value", "unit", "n"} <= set(found), name
            if samples := found.get("samples"):
                values = {statistics.median(samples), max(samples)}  # of memory the most
                assert found["value"] in values, name
                assert (found["n"], found["low"], found["high"]) == (
                    len(samples),
                    min(samples),
                    max(samples),
                ), name


def test_units_are_shown_in_the_size_that_reads_best() -> None:
    assert shown(metric(0.0123, "s", 3, 0.01, 0.02)) == "12.3 ms (10 to 20)"
    assert shown(metric(0.9697, "share")) == "97 %"
    assert shown(metric(3 * 2**29, "B")) == "1.5 GiB" and shown(metric(2**20, "B")) == "1 MiB"
    assert shown(metric(999.7, "s", 3, 99.96, 1000.2)) == "1,000 s (100 to 1,000)"
    assert shown(metric(None)) == "" and shown(metric(1.0, "s", 3, 1.0, 1.0)) == "1 s"


def test_a_comparison_measures_by_the_spread_and_names_what_is_alone(tmp_path: Path) -> None:
    write_result(tmp_path / "a.json", made([1.0, 3.0], mine=metric(1)))
    write_result(tmp_path / "b.json", made([5.0, 6.0]))
    said = run("compare", tmp_path / "a.json", tmp_path / "b.json").stdout
    assert "| 2.750 | 1.75 | differs |" in said  # medians 2 and 5.5, the larger spread 2
    assert "a.json: mine" in said and "Only in" in said


def test_what_was_measured_is_compared_whatever_it_is_called(tmp_path: Path) -> None:
    for name, value in (("mine", 1.0), ("yours", 2.0)):
        cases = [case(name, {"fvd": metric(value)}), case("real against real", {"fvd": metric(0.5)})]
        write_result(tmp_path / f"{name}.json", result("evaluate fvd", {}, cases))
    done = run("compare", tmp_path / "mine.json", tmp_path / "yours.json")
    assert done.returncode == 1 and "| mine / yours: fvd | 1 | 2 | 2.000 |" in done.stdout
    assert "Only in" not in done.stdout
