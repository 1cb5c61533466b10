"""`megavrc reproduce`: the tables and figures of the paper, from result files; see docs/paper.md."""

from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any

from megavrc.errors import UserError
from megavrc.files import (
    PICTURES,
    check_format,
    check_picture_place,
    check_place,
    read_json,
    write_atomic,
    write_json,
)
from megavrc.paper import plots, sheets, tables
from megavrc.paper.child import stop_on_signals
from megavrc.paper.jobs import JobRunner, MatrixJob, hold
from megavrc.paper.matrix import PaperMatrix, Places
from megavrc.paper.measured import SMOKE, Exhibit, Measured
from megavrc.paper.study import study
from megavrc.report.figures import banner, save, svg
from megavrc.report.page import render
from megavrc.results import markdown
from megavrc.user_files import USER_FILES, resolve

FORMAT = 1  # of matrix.json
TEMPLATE = Path(__file__).with_name("report.html")
EXHIBITS: dict[str, Callable[[Measured], Exhibit]] = {
    "table1": tables.table1,
    "table2": tables.table2,
    "table3": tables.table3,
    "table4": tables.table4,
    "fig1": plots.fig1,
    "fig2": plots.fig2,
    "fig4": plots.fig4,
    "fig5": plots.fig5,
    "fig6": plots.fig6,
    "fig7": sheets.fig7,
    "fig8": sheets.fig8,
    "fig9": plots.fig9,
}
OPTIONS = """
    From the result files that are there; what is missing is named with the command that makes it.

    Args:
        out: folder for the tables (Markdown), figures (PNG, SVG), report.html and the runs (default: runs/paper, with
            --smoke runs/paper-smoke).
        results: folder of result files (default: OUT/results).
        data: folder of the data sets, DATASET/manifest.jsonl.
        run: first run the missing commands, one after the other; after a stop or a failure, the same command continues.
        smoke: run everything at toy size, without your data and weights: minutes on a CPU.
        processes: processes of each training, one a GPU.
"""


def _command(name: str) -> Callable[..., int]:
    """The command of one table or figure, or of all."""
    says = EXHIBITS[name].__doc__ if name in EXHIBITS else "All tables and figures of the paper."

    def make(
        out: Path | None = None,
        results: Path | None = None,
        data: Path = Path("data"),
        run: bool = False,
        smoke: bool = False,
        processes: int = 1,
    ) -> int:
        if processes < 1:
            raise UserError(f"--processes: {processes}, at least 1")
        if results and not results.is_dir() and (results.exists() or not (run or smoke)):
            raise UserError(f"--results {results}: no folder")
        names = list(EXHIBITS) if name == "all" else [name]
        folder = out or Path("runs/paper-smoke" if smoke else "runs/paper")
        check_out(names, folder)
        places = Places(folder, data, processes, results)
        fine = run_missing(names, places, smoke) if run or smoke else True
        write_exhibits(names, places)
        return 0 if fine else 1

    make.__doc__ = f"{says}\n{OPTIONS}"
    return make


COMMANDS: dict[str, Callable[..., Any]] = {name: _command(name) for name in EXHIBITS}
COMMANDS |= {"study": study, "all": _command("all")}


def check_out(names: list[str], out: Path) -> None:
    """Before any work: UserError if a table, a figure or the report would replace another one's file."""
    head = render(TEMPLATE, exhibits=[], smoke="").partition("<style>")[0]
    check_place(out / "report.html", (head.encode(),), "report of megavrc reproduce")
    for name in names:
        title = f"# {'Table' if name.startswith('table') else 'Figure'} {name[-1]}. "
        check_place(out / f"{name}.md", (title.encode(),), "page of megavrc reproduce")
        for kind in PICTURES:
            check_picture_place(out / f"{name}{kind}")


def run_missing(names: list[str], places: Places, smoke: bool) -> bool:
    """Run the commands whose results these tables and figures lack. False if one failed; its last line is printed.

    Raises:
        UserError: a file of the user's that they need is not there; the folder holds results of the other size; another
            runner is at work there.
    """
    matrix = PaperMatrix(places, smoke)
    jobs = matrix.needed(names)
    if not smoke:
        _check_user_files([job for job in jobs if not job.product.exists()], places.data)
    places.work.mkdir(parents=True, exist_ok=True)
    with open(places.work / "lock", "w") as lock:
        hold(lock, places.work)
        _note_size(places.results, smoke)
        products = {name: job.product for name, job in matrix.jobs.items()}
        runner = JobRunner(places.work, Path.cwd(), products, matrix.environment, stop_on_signals())
        fine = runner.run(jobs, retry=True)
    for job in jobs:
        if runner.status(job) == "failed":
            lines = runner.log(job).read_text(errors="replace").strip().splitlines()
            print(f"{job.name} failed: {lines[-1] if lines else 'it said nothing'}")
    return fine


def _check_user_files(jobs: list[MatrixJob], data: Path) -> None:
    """What days of training would miss in the end."""
    needs = {"tokenize_videos": "omnitokenizer", "fvd": "i3d", "clipsim": "clip"}
    for word, name in needs.items():
        if any(word in job.words[2:4] for job in jobs):
            resolve(name, option=USER_FILES[name][0])
    words = {word.rpartition("=")[2].partition(".jsonl:")[0] for job in jobs for word in job.words}
    lists = {Path(word).with_suffix(".jsonl") for word in words if Path(word).stem == "manifest"}
    if missing := sorted(str(path) for path in lists if path.is_relative_to(data) and not path.is_file()):
        raise UserError(
            f"{', '.join(missing)}: no such file; megavrc prepare_dataset makes it, --data says where"
        )


def _note_size(results: Path, smoke: bool) -> None:
    """Keep results of toy size and others apart."""
    if not (results / "matrix.json").exists() and not any(results.glob("*.json")):
        write_json(results / "matrix.json", {"format": FORMAT, "smoke": smoke})
    if is_smoke(results) != smoke:
        held = "of a smoke run" if not smoke else "that are no smoke run's"
        raise UserError(f"{results}: holds results {held}; choose another --out")


def write_exhibits(names: list[str], places: Places) -> None:
    """Make tables and figures from what has been measured, and the report of all of them.

    Raises:
        UserError: a result file that is damaged or of another command.
    """
    matrix = PaperMatrix(places, is_smoke(places.results))
    report = []
    for name, make in EXHIBITS.items():
        exhibit = make(Measured(matrix))
        if matrix.smoke and exhibit.figure:
            banner(exhibit.figure, SMOKE)
        report.append((exhibit, svg(exhibit.figure) if exhibit.figure else ""))
        if name in names:
            missing = f", {len(exhibit.missing)} results missing" if exhibit.missing else ""
            print(f"{write_exhibit(exhibit, places.out, matrix.smoke)}: {exhibit.title}{missing}")
    page = render(TEMPLATE, exhibits=report, smoke=SMOKE if matrix.smoke else "")
    write_atomic(places.out / "report.html", page.encode())
    print(f"{places.out / 'report.html'}: all of them")


def is_smoke(results: Path) -> bool:
    """Whether the results of a folder were made at toy size."""
    record = results / "matrix.json"
    if not record.exists():
        return False
    content = read_json(record)
    if not isinstance(content, dict) or not isinstance(content.get("smoke"), bool):
        raise UserError(f"{record}: not as megavrc reproduce writes it; choose another --out")
    check_format(record, content.get("format"), FORMAT)
    return bool(content["smoke"])


def write_exhibit(exhibit: Exhibit, folder: Path, smoke: bool) -> Path:
    """Write NAME.md, and NAME.png and NAME.svg where there is a figure; returns the Markdown file."""
    parts = [f"# {exhibit.title}"]
    if smoke:
        parts.append(f"**{SMOKE}**")
    if exhibit.table:
        parts.append(markdown(exhibit.table[0], exhibit.table[1:]))
    if exhibit.figure:
        save(exhibit.figure, *(folder / f"{exhibit.name}{kind}" for kind in (".png", ".svg")))
        parts.append(f"![{exhibit.title}]({exhibit.name}.png)")
    parts += exhibit.notes
    if exhibit.missing:
        again = (
            f"`megavrc reproduce {exhibit.name} {'--smoke' if smoke else '--run'} --out={quote(str(folder))}`"
        )
        parts.append(
            f"## Missing\n\n{again} runs these commands and what they wait for, but no study of people and nothing "
            "that begins with rm, whose old file must go first:"
        )
        parts.append("\n".join(f"- {job}: `{line}`" for job, line in exhibit.missing.items()))
    path = folder / f"{exhibit.name}.md"
    write_atomic(path, ("\n\n".join(parts) + "\n").encode())
    return path
