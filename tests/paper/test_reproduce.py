"""Tables and figures of the paper are functions of result files; every job of the matrix is a known command line."""

import functools
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parsing import parsed

from megavrc.config import run_command
from megavrc.errors import UserError
from megavrc.files import write_json
from megavrc.paper.jobs import read_state
from megavrc.paper.matrix import PaperMatrix, Places
from megavrc.paper.measured import SMOKE, Exhibit, Measured, published
from megavrc.paper.reproduce import COMMANDS, EXHIBITS, is_smoke, run_missing, write_exhibits
from megavrc.report.figures import svg
from megavrc.results import case, metric, result, write_result
from megavrc.video import read_picture, write_mp4

ROOT = Path(__file__).resolve().parents[2]
BANNER = 0xA3, 0x26, 0x2A  # its red
DATASETS, SIZES = ("ffs", "sky", "ucf101", "taichi"), ("b", "l", "xl")
MODELS = ("vrc", "token", "rate1", "rate16", "rate64", "scratch")


def numbers() -> Any:
    """Metrics with an interval, each of another value."""
    return (metric(10.0 + k, n=5, low=9.0 + k, high=12.0 + k) for k in itertools.count())


def write_results(folder: Path) -> None:
    """All results of the matrix, but for the clips."""
    value, jobs = numbers(), PaperMatrix(Places(folder, folder)).jobs

    def write(name: str, cases: list[Any], config: Any = None, protocol: Any = None) -> None:
        command = " ".join(jobs[name].words[2:4])
        write_result(folder / f"{name}.json", result(command, config or {}, cases, {}, protocol))

    for model, dataset, size in itertools.product(MODELS, DATASETS, SIZES):
        cases = [case("clips", {"fvd": next(value)}), case("real against real", {"fvd": next(value)})]
        write(f"fvd-{model}-{dataset}-{size}", cases)
    write("fvd-text", [case("clips", {"fvd": next(value)})])
    write("clipsim-text", [case("clips", {"clipsim": next(value)})])
    for size in SIZES:
        rows = [
            case(f"{name}, batch 1, guidance 1", {"seconds": next(value)})
            for name in ("token", "vrc-4", "row")
        ]
        write(f"speed-{size}", rows, {"dtype": "float32"}, {"extrapolated_from_steps": 0})
    sizes = {f"packet/{frame}": next(value) for frame in range(5)}
    coded = [case(f"H.264 {mode}", sizes, {"frames": ["I P P P P"]}) for mode in ("ippp", "paper")]
    blocks = case("blocks of pixels", {"unchanged": metric(0.4, "share", 5, 0.3, 0.5)})
    protocol = {"clips": 5, "frames": 5, "stride": 1, "encoder": "x264"}
    write("redundancy", [*coded, blocks], protocol=protocol)
    equal = {f"equal_to_the_one_before/{k}": metric(0.1 * k, "share", 5) for k in range(1, 5)}
    write("redundancy-tokens", [case("tokens of latent frames", equal)])
    memory = [
        case(
            f"{size} {kind}",
            {"training": metric(2**34, "B"), "inference": metric(2**33, "B")},
            preset=size,
            prediction=kind,
        )
        for size in SIZES
        for kind in ("segment", "token")
    ]
    write("memory", memory, {"train_batch": 1, "batch": 16, "precision": "bf16"}, {"how": "planned"})
    shares = {"first": metric(0.6, "share", 30, 0.5, 0.7), "tie": metric(0.1), "second": metric(0.3)}
    study = [case(name, shares) for name in ("consistency", "text_match")]
    write("user-study", study, {"first": "vrc", "second": "token"})


def write_clips(folder: Path, level: int) -> None:
    """Two grey clips, as `megavrc generate` leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(2):
        write_mp4(folder / f"{number}.mp4", np.full((5, 32, 32, 3), level + number, np.uint8), fps=8)
        lines.append(json.dumps({"id": str(number), "path": f"{number}.mp4", "caption": f"clip {number}"}))
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "sheet.png").write_bytes(b"")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_results(folder)
    return folder


@pytest.fixture
def places(written: Path, tmp_path: Path) -> Places:
    """Folders with results of everything but the clips."""
    found = Places(tmp_path, tmp_path)
    shutil.copytree(written, found.results)
    return found


matrix_of = functools.cache(PaperMatrix)  # a quarter of a second each


def make(name: str, places: Places) -> Exhibit:
    return EXHIBITS[name](Measured(matrix_of(places)))


def content(exhibit: Exhibit) -> str:
    """All that is shown of a table or figure."""
    return f"{exhibit.table} {svg(exhibit.figure) if exhibit.figure else ''}"


CHANGED = {  # a result that each shows, case, and metric
    "table1": ("fvd-token-sky-xl", 0, "fvd"),
    "table2": ("speed-l", 1, "seconds"),
    "table3": ("clipsim-text", 0, "clipsim"),
    "table4": ("fvd-scratch-taichi-xl", 0, "fvd"),
    "fig1": ("speed-b", 0, "seconds"),
    "fig2": ("redundancy", 1, "packet/3"),
    "fig4": ("fvd-vrc-ucf101-l", 0, "fvd"),
    "fig5": ("fvd-rate64-ffs-xl", 0, "fvd"),
    "fig6": ("memory", 3, "inference"),
    "fig9": ("user-study", 1, "tie"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_one_changed_value_changes_a_table_or_figure(name: str, places: Places) -> None:
    before = make(name, places)
    drawn = content(before)
    assert before.missing == {} and drawn == content(make(name, places))
    file, row, metric_name = CHANGED[name]
    path = places.results / f"{file}.json"
    written = path.read_text()
    for part in {"value", "low", "high"} & {*json.loads(written)["cases"][row]["metrics"][metric_name]}:
        changed = json.loads(written)
        changed["cases"][row]["metrics"][metric_name][part] *= 1.01
        path.write_text(json.dumps(changed))
        assert drawn != content(make(name, places)), part


@pytest.mark.parametrize("name", ["fig7", "fig8"])
def test_clips_of_other_pixels_are_another_figure(name: str, tmp_path: Path) -> None:
    places, drawn = Places(tmp_path, tmp_path), []
    assert make(name, places).figure is None
    matrix = PaperMatrix(places)
    for level in (50, 200):
        for job in [job for job in matrix.exhibits[name] if "ffs" in job or "text" in job]:
            write_clips(matrix.jobs[job].product.parent, level)
        drawn.append(content(make(name, places)))
    assert drawn[0] != drawn[1]


def test_what_was_not_measured_is_missing_and_says_which_command_makes_it(tmp_path: Path) -> None:
    made = make("table1", Places(tmp_path / "out", Path("my data")))
    assert [row for row in made.table if row[-1] == "measured"][-1][2:-1] == ["missing"] * 4
    line = made.missing["fvd-vrc-ucf101-xl"]
    assert line.startswith("megavrc evaluate fvd 'my data/ucf101/manifest.jsonl:train'")
    write_exhibits(list(EXHIBITS), Places(tmp_path / "out", Path("data")))
    assert "fvd-vrc-ucf101-xl: `megavrc evaluate fvd " in (tmp_path / "out" / "table1.md").read_text()
    assert "8 results are missing" in (tmp_path / "out" / "report.html").read_text()


def test_published_rows_are_marked_and_have_a_source(places: Places) -> None:
    made = make("table1", places)
    marks = {row[0]: row[-1] for row in made.table}
    assert marks["VideoAR"] == marks["VRC"] == "as published" and marks["VRC, xl"] == "measured"
    assert next(row for row in made.table if row[0] == "VideoAR")[4] == "88.6"
    notes = " ".join(made.notes)
    assert "Less Is More" in notes and "VideoAR: Ji et al." in notes
    assert "95% intervals" in notes and "FVD" in notes
    printed = {row["name"]: row for row in published()["table2"]["rows"]}
    for name in ("Latte", "Loong*"):  # the paper's factors are those of its seconds
        for size in SIZES:
            factor = float(printed[f"{name} / VRC"][size].rstrip("x"))
            assert printed[name][size] / printed["VRC"][size] == pytest.approx(factor, rel=0.002)


def test_distances_of_two_networks_do_not_stand_in_one_table(places: Places) -> None:
    path = places.results / "fvd-vrc-sky-xl.json"
    path.write_text(path.read_text().replace('"fvd"', '"frechet_unknown"'))
    with pytest.raises(
        UserError, match=r"fvd-.*json has fvd, .*fvd-vrc-sky-xl.json frechet_unknown: not comp"
    ):
        make("table1", places)


@pytest.mark.parametrize(
    ("file", "protocol", "said"),
    [
        ("fvd-token-sky-xl", {"fvd_protocol": {"real_stride": 1}}, r"alike: protocol\.fvd_p.*is 1 and 3"),
        ("fvd-token-sky-xl", {"real": {"n": 512}}, r"alike: protocol\.real\.n is 512 and 2048"),
        ("fvd-token-sky-xl", {"measured": [{"n": 512}]}, r"alike: clips \[512\] and \[\]"),
        ("fvd-vrc-taichi-xl", {"detector": {"sha256": "b"}}, "taichi-xl.json: of two networks: not comp"),
    ],
)
def test_distances_of_two_protocols_do_not_stand_in_one_table(
    file: str, protocol: Any, said: str, places: Places
) -> None:
    same = {"detector": {"sha256": "a"}, "real": {"n": 2048}}
    for path in places.results.glob("fvd-*-xl.json"):  # data sets have strides of their own
        own = {"fvd_protocol": {"real_stride": 6 if "taichi" in path.name else 3}}
        content = json.loads(path.read_text())
        write_json(path, content | {"protocol": same | own | (protocol if path.stem == file else {})})
    with pytest.raises(UserError, match=said):
        make("table1", places)
    if file.startswith("fvd-token"):
        assert make("table4", places).missing == {}  # which does not show it


def test_whoever_is_first_in_a_study_is_named_in_its_figure(places: Places) -> None:
    path = places.results / "user-study.json"
    path.write_text(path.read_text().replace('"first": "vrc"', '"first": "Loong*"'))
    said = [text.get_text() for text in make("fig9", places).figure.axes[0].get_legend().get_texts()]
    assert said == ["VRC; measured: Loong*", "no difference", "Loong*; measured: token"]


def test_a_file_of_another_command_is_refused_by_name(tmp_path: Path) -> None:
    path, places = tmp_path / "results" / "clipsim-text.json", Places(tmp_path, tmp_path)
    write_result(path, result("evaluate drift", {}, [case("a", {})]))
    with pytest.raises(
        UserError, match=r"clipsim-text\.json: made by megavrc evaluate drift; expected what mega"
    ):
        make("table3", places)
    write_result(path, result("evaluate clipsim", {}, [case("a", {})]))
    with pytest.raises(
        UserError, match=r"clipsim-text\.json: has no clipsim; expected what megavrc evaluate"
    ):
        make("table3", places)


def test_a_smoke_run_has_its_banner_on_every_table_and_picture(places: Places, tmp_path: Path) -> None:
    for path in list(places.results.glob("fvd-*-ffs-xl.json")):
        path.rename(path.with_name(path.name.replace("ffs-xl", "toy-debug")))
    (places.results / "speed-l.json").rename(places.results / "speed-debug.json")
    matrix = PaperMatrix(places, smoke=True)
    for name in ("samples-vrc-toy", "samples-token-toy", "samples-text"):
        write_clips(matrix.jobs[name].product.parent, 100)
    write_json(places.results / "matrix.json", {"format": 1, "smoke": True})
    write_exhibits(list(EXHIBITS), places)
    for name in EXHIBITS:
        assert SMOKE in (tmp_path / f"{name}.md").read_text()
    for name in EXHIBITS:
        if name.startswith("fig"):
            picture = read_picture((tmp_path / f"{name}.png").read_bytes())
            assert (picture[: len(picture) // 4] == BANNER).all(axis=-1).sum() > 5000, name
            assert "toy clips, toy models" in (tmp_path / f"{name}.svg").read_text()
    assert (tmp_path / "report.html").read_text().count(SMOKE) >= len(EXHIBITS)
    table = (tmp_path / "table1.md").read_text()
    assert "| toy clips |" in table and "as published" in table


# --- the matrix --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoke", [False, True])
def test_every_job_is_a_command_line_that_is_understood(smoke: bool, tmp_path: Path) -> None:
    seen = set()
    for job in PaperMatrix(Places(tmp_path / "my out", Path("data")), smoke).jobs.values():
        words = job.words[2:]
        kind = tuple(word.partition("=")[0] for word in words)
        if kind in seen or job.line.startswith("python"):
            continue
        seen.add(kind)
        folder = "pretrain" if words[0].startswith("pretrain") else "tools"
        parsed(f"{folder}/{words[0]}.py", words[1:])
    assert len(seen) > 10


def test_every_job_waits_for_jobs_that_exist_and_trainings_are_few(tmp_path: Path) -> None:
    for smoke in (False, True):
        matrix = PaperMatrix(Places(tmp_path, tmp_path), smoke)
        assert {name for job in matrix.jobs.values() for name in job.after} <= set(matrix.jobs)
        jobs = matrix.needed(list(EXHIBITS))
        places = {job.name: place for place, job in enumerate(jobs)}
        assert all(places[name] < places[job.name] for job in jobs for name in job.after)
    assert sum(job.words[2].startswith("pretrain") for job in jobs) == 6, "of a smoke run"


def test_several_processes_train_under_torchrun(tmp_path: Path) -> None:
    job = PaperMatrix(Places(tmp_path, tmp_path, processes=8)).jobs["vrc-ffs-b"]
    assert job.line.startswith(
        "python -m megavrc.distributed.torchrun --standalone --nproc-per-node=8 -m megavrc pretrain_vrc --config"
    )


def test_what_the_user_has_to_bring_is_asked_for_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEGAVRC_OMNITOKENIZER", raising=False)
    with pytest.raises(UserError, match="MEGAVRC_OMNITOKENIZER: needed"):
        run_missing(["table1"], Places(tmp_path, tmp_path), smoke=False)
    for name in ("OMNITOKENIZER", "I3D"):
        (tmp_path / name).touch()
        monkeypatch.setenv(f"MEGAVRC_{name}", str(tmp_path / name))
    (tmp_path / "sky").mkdir()
    (tmp_path / "sky" / "manifest.jsonl").touch()
    with pytest.raises(
        UserError, match=r"ffs/manifest\.jsonl, \S+taichi/manifest\.jsonl, \S+ucf101/man.*: no such"
    ):
        run_missing(["table1"], Places(tmp_path, tmp_path), smoke=False)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("content", ["[]", '{"format": 1}', '{"format": 1, "jobs": 7}', '{"jobs": {"a": 1}}'])
def test_a_record_of_jobs_that_is_none_is_refused_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(UserError, match=r"state\.json: "):
        read_state(tmp_path)


def test_toy_results_and_others_are_kept_apart(tmp_path: Path) -> None:
    write_result(tmp_path / "results" / "memory.json", result("x", {}))
    with pytest.raises(UserError, match="holds results that are no smoke run's; choose another --out"):
        run_missing(["fig6"], Places(tmp_path, tmp_path), smoke=True)
    assert not is_smoke(tmp_path / "results")


def test_commands_have_help_and_refuse_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(COMMANDS, ["table1", "--processes=0"], "megavrc reproduce") == 2
    assert "--processes: 0, at least 1" in capsys.readouterr().err
    assert run_command(COMMANDS, ["table1", "--results=none"], "megavrc reproduce") == 2
    assert "--results none: no folder" in capsys.readouterr().err
    assert run_command(COMMANDS, ["table5"], "megavrc reproduce") == 2
    assert "did you mean table" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["report.html", "table1.md", "fig4.png", "fig4.svg"])
def test_a_file_of_someone_else_stays(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_text("# Notes\n")
    words = ["fig4" if name.startswith("fig") else "table1", "--smoke", f"--out={tmp_path}"]
    assert run_command(COMMANDS, words, "megavrc reproduce") == 2
    assert f"{name}: is there and is no" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name], "said before anything runs"
    (tmp_path / name).unlink()
    for _ in range(2):  # its own are replaced
        assert run_command(COMMANDS, [words[0], f"--out={tmp_path}"], "megavrc reproduce") == 0
    assert f"--run --out={tmp_path}`" in (tmp_path / f"{words[0]}.md").read_text()


def test_a_count_that_is_not_known_is_said(places: Places) -> None:
    path = places.results / "fvd-vrc-ffs-xl.json"
    content = json.loads(path.read_text())
    del content["cases"][1]["metrics"]["fvd"]["n"]
    path.write_text(json.dumps(content))
    assert "ffs not known, sky 5" in str(make("table1", places).notes)


@pytest.mark.parametrize(
    ("name", "file", "damage", "said"),
    [
        ("fig6", "memory", lambda c: c["protocol"].pop("how"), r"memory\.json: protocol: how is missing"),
        ("fig6", "memory", lambda c: c["config"].pop("batch"), r"memory\.json: config: batch is missing"),
        ("fig6", "memory", lambda c: c["cases"][0]["config"].pop("preset"), "b segment: preset is missing"),
        ("fig2", "redundancy", lambda c: c["protocol"].pop("clips"), "protocol: clips is missing"),
        ("fig2", "redundancy", lambda c: c["cases"][2]["metrics"].clear(), "has no unchanged of 'blocks"),
        ("fig2", "redundancy", lambda c: c["cases"][0]["metrics"].clear(), "has no packet/0 of 'H.264 ippp'"),
        (
            "fig2",
            "redundancy",
            lambda c: c["cases"][1]["facts"].update(frames=5),
            "paper: frames is 5, expected list",
        ),
        ("fig9", "user-study", lambda c: c["config"].pop("first"), "config: first is missing"),
        ("fig9", "user-study", lambda c: c["cases"][0]["metrics"]["tie"].update(value=None), "has no tie of"),
    ],
)
def test_what_a_figure_needs_and_a_file_lacks_is_named(
    name: str, file: str, damage: Any, said: str, places: Places
) -> None:
    path = places.results / f"{file}.json"
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        make(name, places)


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_number_that_was_not_measured_is_missing(value: float | None, places: Places) -> None:
    for file, row, metric_name in (("speed-l", 1, "seconds"), ("fvd-vrc-ffs-l", 0, "fvd")):
        path = places.results / f"{file}.json"
        content = json.loads(path.read_text())
        content["cases"][row]["metrics"][metric_name]["value"] = value
        path.write_text(json.dumps(content))
    table = make("table2", places)
    assert set(table.missing) == {"speed-l"} and "missing" in str(table.table)
    assert {"speed-l", "fvd-vrc-ffs-l"} == set(make("fig1", places).missing)


def test_a_row_that_an_old_file_lacks_is_missing_and_the_file_must_go_first(places: Places) -> None:
    path = places.results / "speed-b.json"
    path.write_text(path.read_text().replace("row, batch 1", "column, batch 1"))
    line = f"rm {path} && {matrix_of(places).jobs['speed-b'].line}"
    assert make("table2", places).missing == {"speed-b": line}
