"""What each `evaluate` and `reproduce` command costs on the demo: `python benchmarks/evaluation.py --work FOLDER`.

Each is started as a user would, one after the other, after `make demo`. A fixed random network stands in the place of
I3D, which is the user's: with it a clip costs 1.5 s more.
"""

import json
import shlex
import sys
import threading
from pathlib import Path
from typing import Any

from megavrc.config import command
from megavrc.errors import UserError
from megavrc.files import write_atomic
from megavrc.paper.child import run_child
from megavrc.results import Result, case, check_result_place, metric, result, table, write_result
from megavrc.video.manifest import read_manifest

COMMANDS = {  # name -> the command line; {demo}, {work} and {real} are filled in
    "evaluate export (generates the clips)": "evaluate export {demo}/hf --planned {work}/plan.jsonl "
    "--out {work}/clips.npz --layout npz",
    "evaluate drift": "evaluate drift {work}/clips.npz --real {real} --json {work}/drift.json",
    "evaluate alignment": "evaluate alignment --clips {work}/clips.npz --manifest {demo}/data/manifest.jsonl "
    "--json {work}/alignment.json",
    "evaluate fvd": "evaluate fvd {real} {work}/clips.npz --i3d {work}/network.pt --protocol custom "
    "--features {work}/features --json {work}/fvd.json",
    "evaluate kvd (features are there)": "evaluate kvd {real} {work}/clips.npz --i3d {work}/network.pt "
    "--protocol custom --features {work}/features --json {work}/kvd.json",
    "evaluate redundancy": "evaluate redundancy {work}/clips.npz --tokenizer {demo}/tokenizer/model --frames 17 "
    "--json {work}/redundancy.json",
    "evaluate copying": "evaluate copying {demo}/hf {real} --json {work}/copying.json",
    "evaluate memory": "evaluate memory --preset b l xl --json {work}/memory.json",
    "evaluate speed": "evaluate speed {demo}/hf --json {work}/speed.json",
    "evaluate all (generates, too)": "evaluate all {real} {demo}/hf {work}/metrics",
    "reproduce all --smoke": "reproduce all --smoke --out {work}/paper",
    "reproduce all (from results)": "reproduce all --out {work}/paper",
    "reproduce table1 (from results)": "reproduce table1 --out {work}/paper",
    "reproduce study (from results)": "reproduce study --tables {work}/study --figures {work}/study",
    "evaluate fd-self": "evaluate fd-self {demo}/data/manifest.jsonl:train --tokenizer {demo}/tokenizer/model "
    "--out {work}/fd-self --reversible true --json {work}/fd-self.json",
}


def measure_commands(
    work: Path, demo: Path = Path("runs/demo"), only: list[str] | None = None, out: Path | None = None
) -> None:
    """Time every command; one that fails ends the run, its output is in WORK/NAME.log.

    Args:
        work: new folder for what they write.
        demo: what `make demo` has left.
        only: commands, by a word of their names (default: all).
        out: write the result there.
    """
    manifest = demo / "data" / "manifest.jsonl"
    check_result_place(out)
    if work.exists():
        raise UserError(f"{work}: is there already; name another place")
    rows = [row for row in read_manifest(manifest) if row["split"] == "val"]
    plan = [json.dumps({"id": row["id"], "caption": row["caption"]}) for row in rows]
    write_atomic(work / "plan.jsonl", ("\n".join(plan) + "\n").encode())
    where = {"demo": demo, "work": work, "real": f"{manifest}:val"}
    places = {name: shlex.quote(str(place)) for name, place in where.items()}
    never, cases = threading.Event(), []
    network = ["-m", "megavrc.paper.toy_network", f"--out={work}/network.pt"]
    todo = {"network": network} | {
        name: ["-m", "megavrc", *shlex.split(line.format(**places))] for name, line in COMMANDS.items()
    }
    for name, words in todo.items():
        if only and name != "network" and not any(word in name for word in only):
            continue
        log = work / f"{name.replace('/', '-')}.log"
        ended = run_child([sys.executable, *words], Path.cwd(), {}, log, never, lambda session: "")
        if ended.code not in (0, 1):  # 1: a network that did not pass
            raise UserError(f"{name}: exit code {ended.code}; see {log}")
        if name != "network":
            spent = {"cpu_seconds": metric(ended.cpu_seconds, "s"), "seconds": metric(ended.seconds, "s")}
            cases.append(case(name, spent))
            print(f"{name}: {ended.cpu_seconds:.1f} s of a processor, {ended.seconds:.1f} s", flush=True)
            if out:  # after each: what is measured is kept
                write_result(out, measured_commands(cases, len(rows)))
    print(table(measured_commands(cases, len(rows))))


def measured_commands(cases: list[dict[str, Any]], clips: int) -> Result:
    """The result, with the command lines as a user would type them."""
    protocol = {
        "clips": clips,
        "cpu_seconds": "of the command and all that it starts, one thread each",
        "seconds": "by the clock; of a machine at rest only if nothing else ran",
    }
    config = {"commands": {row["name"]: COMMANDS[row["name"]] for row in cases}}
    return result("python benchmarks/evaluation.py", config, cases, {}, protocol)


if __name__ == "__main__":
    command(measure_commands)
