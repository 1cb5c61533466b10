"""Training seeds: the interval is Welch's, and the difference of two protocols is named."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from megavrc.errors import UserError
from megavrc.evaluation.seeds import difference_of_means, seeds
from megavrc.results import case, circumstances, metric, read_result, result, write_result


def test_as_welch_and_right_in_95_percent() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.normal(0, 1, 4), rng.normal(1, 3, 6)
    found = difference_of_means(list(one), list(two))
    interval = stats.ttest_ind(two, one, equal_var=False).confidence_interval()
    assert (found["low"], found["high"]) == pytest.approx(tuple(interval))
    sides = rng.normal(0, 1, (300, 2, 3)) * [[[1], [2]]]
    inside = [f["low"] <= 0 <= f["high"] for f in (difference_of_means(*pair) for pair in sides.tolist())]
    assert 0.92 <= np.mean(inside) <= 0.995
    assert difference_of_means([1, 1], [0.99, 0.99]) == metric(
        0.99 - 1, n=2
    )  # equal readings show no spread of 0
    # nor do they beside others: both spread by 0.01, of 2 degrees of freedom
    half = difference_of_means([1, 1, 1], [0.96, 0.97, 0.98])
    assert half["high"] + 0.03 == pytest.approx(4.302653 * 0.01 * (2 / 3) ** 0.5) and half["low"] < -0.06


def save(path: Path, value: float, name: str = "fvd", **protocol: object) -> Path:
    cases = [case(path.stem, {name: metric(value)}), case("real against real", {name: metric(1.0)})]
    write_result(path, result("evaluate fvd", {}, cases, {}, {"fvd_protocol": protocol}))
    return path


def test_seeds_of_two_ways(tmp_path: Path) -> None:
    first = [save(tmp_path / f"a{i}.json", 10 + i) for i in range(3)]
    second = [save(tmp_path / f"b{i}.json", 20 + i) for i in range(3)]
    seeds(first, second, tmp_path / "s.json")
    rows = {row["name"]: row for row in read_result(tmp_path / "s.json")["cases"]}
    assert rows["fvd"]["metrics"]["second - first"]["value"] == 10 and rows["fvd"]["facts"]["differs"]
    same = rows["real against real: fvd"]["facts"]
    assert "differs" not in same and "cannot be told: on both sides all seeds gave one number" in same["note"]
    for sides, words in (((first[:1], second), "at least two"), ((first, first), "stands there twice")):
        with pytest.raises(UserError, match=words):
            seeds(*sides)
    unknown = save(tmp_path / "n.json", float("nan"))
    seeds([first[0], unknown], second, tmp_path / "s.json")
    assert "fvd" not in [row["name"] for row in read_result(tmp_path / "s.json")["cases"]]
    write_result(tmp_path / "o.json", result("plan", {}, [], {"hours": metric(3.0)}))
    with pytest.raises(UserError, match="no metric in common"):
        seeds(first, [second[0], tmp_path / "o.json"])
    other = save(tmp_path / "x.json", 3, real_stride=3)
    with pytest.raises(
        UserError, match=r"a0.json and .*x.json were not measured alike: protocol.fvd.*_stride is"
    ):
        seeds(first, [second[0], other])
    more = read_result(second[1])
    more["protocol"]["measured"] = [{"name": "b", "n": 400}]
    write_result(tmp_path / "more.json", more)
    with pytest.raises(UserError, match=r"more.json were not measured alike: clips \[\] and \[400\]"):
        seeds(first, [second[0], tmp_path / "more.json"])


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ({"encoder": "x264, crf 40"}, "protocol.encoder is x264, crf 23 and x264, crf 40"),
        ({"size": 128}, "protocol.size is None and 128"),
        ({"real": {"name": "v", "n": 9, "sha256": "b"}}, "the real clips are others, of v and of v"),
        ({"real": {"name": "w", "n": 9, "sha256": "b"}, "seed": 1}, "are others, of v and of w"),
        ({"real": {"name": "v", "n": 9, "sha256": "a", "storage": "png"}}, "real.storage is None and png"),
    ],
)
def test_all_that_decides_a_number_must_be_alike(
    tmp_path: Path, protocol: dict[str, object], words: str
) -> None:
    same = {"encoder": "x264, crf 23", "seed": 0, "real": {"name": "v", "n": 9, "sha256": "a"}}
    paths = [tmp_path / f"{number}.json" for number in range(4)]
    for number, path in enumerate(paths):
        row = case("clips", {"later_over_first": metric(number)})
        own = same | {"interval": f"{number} prompts", "sources": [{"name": path.stem, "n": 5}]}
        write_result(path, result("evaluate redundancy", {}, [row], {}, own))
    seeds(paths[:2], paths[2:])
    alike: list[dict[str, object]] = [
        {"real": {"name": "elsewhere", "n": 9, "sha256": "a"}},  # the same clips
        {"real": {"name": "v", "n": 9, "sha256": "b"}, "seed": 1},  # drawn again from the same list
    ]
    for change in alike:
        write_result(paths[3], result("evaluate redundancy", {}, [row], {}, own | change))
        seeds(paths[:2], paths[2:])
    for name, values in {"temperature": ([1, 1], [0.7, 0.5]), "later_passes": (1, [8, 1])}.items():
        for path, value in zip(paths, (*values[:1] * 3, values[1]), strict=True):
            write_result(path, result("evaluate scenes", {name: value}, [row], {}, own))
        with pytest.raises(UserError, match=f"config.{name}"):
            seeds(paths[:2], paths[2:])
    for path in paths[:3]:
        write_result(path, result("evaluate redundancy", {}, [row], {}, own))
    write_result(paths[3], result("evaluate redundancy", {}, [row], {}, own | protocol))
    with pytest.raises(UserError, match=words):
        seeds(paths[:2], paths[2:])


def test_clips_that_models_drew_in_other_ways_are_refused(tmp_path: Path) -> None:
    """What a folder leaves out is its default; the model, its seeds and its batch may be others."""

    def drawn(path: Path, value: float, **made: object) -> Path:
        how = {"dtype": "float32", "model": path.stem, "sampling": {}} | made
        row, sources = (
            case(path.stem, {"motion": metric(value)}),
            [{"name": path.stem, "n": 5, "made_with": how}],
        )
        write_result(path, result("evaluate drift", {}, [row], {}, {"sources": sources}))
        return path

    first = [drawn(tmp_path / f"a{n}.json", n) for n in range(2)]
    second = [drawn(tmp_path / f"b{n}.json", n, seed=n, sampling={"guidance": 1.0}) for n in range(2)]
    seeds(first, second)
    for change in ({"sampling": {"later_passes": [8]}}, {"dtype": "bfloat16"}):
        drawn(second[1], 3, **change)
        with pytest.raises(UserError, match=r"a0.json and .*b1.json were not measured alike: clips drawn by"):
            seeds(first, second)


def test_one_measurement_is_not_two_seeds(tmp_path: Path) -> None:
    first, second = ([save(tmp_path / f"{side}{n}.json", n) for n in range(2)] for side in "ab")
    with pytest.raises(UserError, match="stands there twice"):
        seeds([first[0], tmp_path / ".." / tmp_path.name / "a0.json"], second)
    copied = shutil.copy(first[0], tmp_path / "copied.json")
    with pytest.raises(UserError, match=r"a0.json and .*copied.json are one measurement"):
        seeds([first[0], copied], second)


def test_two_protocols_on_the_same_clips_are_told_apart(tmp_path: Path) -> None:
    """`results compare` names the field."""
    one, two = (read_result(save(tmp_path / f"{s}.json", 1, real_stride=s, size=256)) for s in (1, 3))
    assert circumstances(one, two) == [("protocol.fvd_protocol.real_stride", 1, 3)]
