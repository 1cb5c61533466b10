"""What faults cost a run: `python benchmarks/faults.py` breaks small runs on real ranks and resumes them.

Each case trains a tiny VRC on gloo ranks of this machine until a fault ends it, starts it again until it is complete,
and compares the last checkpoint with that of a run that nothing disturbed.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fault_runs import SAVE_EVERY, STEPS, WATCHDOG, Attempt, metrics, start, write_configuration

from megavrc.benchmarks.loader import write_dataset
from megavrc.checkpoint import checkpoint_folder, read
from megavrc.config import command
from megavrc.data.shards import shard_name
from megavrc.files import read_json
from megavrc.results import case, metric, read_result, result, table, write_result

ATTEMPTS = 8  # more than any case needs
COLUMNS = ["number", "codes", "detect", "recover", "lost", "end"]  # printed, and of docs/reliability.md
PROTOCOL = {
    "codes": "exit codes of the ranks, start by start, until the last one, which is complete; negative: by that signal",
    "detect": "from the last whole step until all ranks have ended",
    "recover": "from the next start until the run is one step further than before",
    "lost": "steps done twice",
    "end": "the last checkpoint, compared with that of a run that nothing disturbed",
}
Act = Callable[[Attempt], None]

# --- what is done to a run ------------------------------------------------------------------------------------------


def send(number: signal.Signals, *, to_all: bool = False, after: int = 14) -> Act:
    def act(attempt: Attempt) -> None:
        attempt.wait_for_steps(after)
        for process in list(attempt.ranks) if to_all else list(attempt.ranks)[1:2]:
            os.kill(process, number)

    return act


def kill_data_worker(attempt: Attempt) -> None:
    attempt.wait_for_steps(14)
    process = next(iter(attempt.ranks))
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)


def start_a_rival(attempt: Attempt) -> None:
    attempt.wait_for_steps(8)
    rival = attempt.run.with_name("rival")
    rival.mkdir()
    (attempt.run.parent / "rival.txt").write_text("")
    other = start(rival, 1, "", f"--run_dir={attempt.run}", "--train.micro_batch=4").wait()
    (attempt.run / "rival.txt").write_text(
        f"exit code {other.codes[0]} after {other.ended - other.started:.1f} s\n" + other.output
    )


def newest(run: Path, name: str) -> Path:
    return run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip() / name


def truncate(run: Path) -> None:
    os.truncate(newest(run, "exp_avg-00001.safetensors"), 1000)


def remove(run: Path) -> None:
    newest(run, "model-00001.safetensors").unlink()


def empty_latest(run: Path) -> None:
    os.truncate(run / "checkpoints" / "latest", 0)


def flip(name: str) -> Callable[[Path], None]:
    def act(run: Path) -> None:
        content = bytearray(newest(run, name).read_bytes())
        content[len(content) // 2] ^= 1
        newest(run, name).write_bytes(content)

    return act


def block_tensorboard(run: Path) -> None:
    (run / "tensorboard").write_text("in the way")


def leave_a_build_lock(run: Path) -> None:
    """As a killed build of DeepSpeed's CPU collectives does, in the cache of all ranks."""
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"]) / "deepspeed_shm_comm"
    folder.mkdir(parents=True)
    (folder / "lock").touch()


def damage_a_sample(run: Path) -> None:
    """In a copy of the dataset, where the configuration looks for it."""
    tar = run.parent / "tokens" / "shards" / shard_name("train", 0, 1)
    content = bytearray(tar.read_bytes())
    content[content.index(b"\x93NUMPY") + 150] ^= 1
    tar.write_bytes(content)


@dataclass(frozen=True)
class Case:
    """A fault, and what to do about it.

    Attributes:
        number: of the plan in docs/reliability.md. what: happens, in words.
        fault: MEGAVRC_FAULT of the first attempt. address: MASTER_ADDR of the first attempt.
        during: done while an attempt runs, in the first `times` of them.
        before: done to the run's folder before the first start. between: before the second.
        options: of all attempts. then: of the second and later ones. ranks: of the first attempt and the later ones.
    """

    number: str
    what: str
    fault: str = ""
    address: str = "127.0.0.1"
    during: Act | None = None
    times: int = 1
    before: Callable[[Path], None] | None = None
    between: Callable[[Path], None] | None = None
    options: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    ranks: tuple[int, int] = (2, 2)


KILL = "backward:1:15:kill"
CASES = (
    Case("F1", "kill -9 of a rank in a step", KILL),
    *(
        Case("F2", f"kill -9 in a save: {point}", f"{point}:{rank}:12:kill")
        for point, rank in {"before_shard": 1, "mid_shard": 1, "after_shard": 1, "before_manifest": 0}.items()
    ),
    *(
        Case("F2", f"kill -9 in a save: {point}", f"{point}:0:12:kill")
        for point in ("before_rename", "after_rename", "before_latest")
    ),
    Case("F3", "SIGTERM to one rank", during=send(signal.SIGTERM)),
    Case("F3", "SIGUSR1 to all ranks", during=send(signal.SIGUSR1, to_all=True)),
    Case(
        "F4",
        "the time limit (`train.exit_duration`)",
        "forward:*:14:sleep:4",
        options=("--train.exit_duration=0.05",),
        then=("--train.exit_duration=0",),
    ),
    Case("F5", "a rank sleeps for ever", "backward:1:15:sleep:1000"),
    Case("F5", "a rank is stopped (SIGSTOP)", "backward:1:15:stop"),
    Case("F6", "a rank is slow by 1 s a step", "data:1:*:sleep:1"),
    Case("F7", "disk full in a save", "mid_shard:1:12:full"),
    Case("F8", "newest checkpoint: a file is cut short", KILL, between=truncate),
    Case("F8", "newest checkpoint: a file is missing", KILL, between=remove),
    Case("F8", "`latest` is empty", KILL, between=empty_latest),
    Case("F9", "a bit flips in the weights", KILL, between=flip("model-00001.safetensors")),
    Case("F9", "a bit flips in the moments", KILL, between=flip("exp_avg_sq-00001.safetensors")),
    Case("F9", "a bit flips in the manifest", KILL, between=flip("manifest.json")),
    Case(
        "F10",
        "a damaged sample, `data.on_damage: replace`",
        before=damage_a_sample,
        options=("--data.on_damage=replace",),
    ),
    Case("F11", "NaN in the loss of one rank", "loss:1:15:scale:nan"),
    Case("F11", "NaN in a gradient of one rank", "gradient:1:15:nan"),
    Case(
        "F11",
        "the loss spikes at the same step after every rollback",
        "loss:*:15:scale:100",
        options=("--train.spike_threshold=10", "--train.spike_window=8"),
    ),
    Case("F12", "kill -9, then 4 ranks instead of 2", KILL, then=("--train.micro_batch=1",), ranks=(2, 4)),
    Case("F12", "kill -9, then 1 rank instead of 2", KILL, then=("--train.micro_batch=4",), ranks=(2, 1)),
    Case("F13", "kill -9, then ZeRO stage 3 instead of 1", KILL, then=("--train.zero=3",)),
    Case("F14", "a second job in the same run folder", "forward:*:10:sleep:8", during=start_a_rival),
    Case("F15", "the first rank's address does not resolve", address="no.such.host.invalid"),
    Case("F16", "a build lock left behind", before=leave_a_build_lock),
    Case("F18", "kill -9 of a data worker", during=kill_data_worker, options=("--train.workers=1",)),
    Case("F19", "TensorBoard's folder cannot be written", before=block_tensorboard),
    Case("F21", "stopped five times in one run", during=send(signal.SIGUSR1, after=3), times=5),
    Case("F22", "the writing thread dies", "mid_shard:1:12:raise"),
    Case("F22", "the disk takes 1 s more for a file", "mid_shard:1:12:sleep:1"),
)


# --- what it cost ---------------------------------------------------------------------------------------------------


@dataclass
class Cost:
    """Of one case.

    Attributes:
        codes: exit codes of the ranks, attempt by attempt.
        said: the line that tells what has happened.
        detect_s: seconds from the last whole step until all ranks have ended; None if they went on.
        lost: steps that were done again. recover_s: seconds from a start until the run is one step further than before.
        exact: the last checkpoint is bit-equal to that of a run that nothing disturbed.
        loss_difference: the largest, relative, of any step.
        skipped: steps without an update. stall_s: seconds that training waited for checkpoints, the last one left out.
    """

    number: str
    what: str
    codes: list[list[int]]
    said: str
    detect_s: float | None
    lost: int
    recover_s: float | None
    exact: bool
    loss_difference: float
    skipped: int
    stall_s: float


def measure(case: Case, folder: Path, reference: Path) -> Cost:
    """Run a case until it is complete."""
    run = folder / "run"
    run.mkdir(parents=True)
    shutil.copytree(reference.parent / "tokens", folder / "tokens")
    write_configuration(folder)
    if case.before:
        case.before(run)
    codes, said, detect, recover, lost = [], "", None, None, 0
    for number in range(ATTEMPTS):
        before = int(metrics(run)[-1]["step"]) if metrics(run) else 0
        options = case.options + (case.then if number else ())
        fault, address = ("", "127.0.0.1") if number else (case.fault, case.address)
        attempt = start(run, case.ranks[bool(number)], fault, *options, address=address)
        if case.during and number < case.times:
            case.during(attempt)
        attempt.wait()
        codes.append([attempt.codes[rank] for rank in sorted(attempt.codes)])
        if not said or (case.between and number == 1):
            said = telling(attempt.output)
        lines = metrics(run)
        if number:
            lost += before - read_json(run / "run.json")["starts"][-1]["step"]
            further = [line["time"] for line in lines if line["step"] == before + 1]
            recover = recover or (further[0] if further else attempt.ended) - attempt.started
        if (run / "complete.json").is_file():
            break
        detect = detect or (attempt.ended - lines[-1]["time"] if lines else None)
        if case.between and not number:
            case.between(run)
    else:
        raise SystemExit(f"{case.what}: not complete after {ATTEMPTS} starts\n{attempt.output}")
    if (run / "rival.txt").is_file():
        said = telling((run / "rival.txt").read_text())
    pairs = zip(metrics(run), metrics(reference), strict=True)
    return Cost(
        case.number,
        case.what,
        codes,
        said.replace(str(run), "RUN"),
        detect,
        lost,
        recover,
        same(run, reference),
        max(abs(ours["loss"] / theirs["loss"] - 1) for ours, theirs in pairs if "loss" in ours),
        int(lines[-1]["skipped"]),
        sum(line.get("checkpoint_stall_s", 0.0) for line in lines[:-1]),
    )


def telling(output: str) -> str:
    """The first line that says something unusual."""
    words = (
        "error:",
        "slow",
        "skipped:",
        "NOT WRITTEN",
        "stopped by",
        "damaged",
        "died",
        "went back",
        "no TensorBoard",
        "latest",
        "exit code",
    )
    return next((line for line in output.splitlines() if any(word in line for word in words)), "")


def same(run: Path, reference: Path) -> bool:
    ours, theirs = (read(checkpoint_folder(path, STEPS)).groups for path in (run, reference))
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[group][name], theirs[group][name]) for group in ours for name in ours[group]
    )


def row(cost: Cost) -> dict[str, Any]:
    """A case of the result."""
    end = (
        f"{cost.skipped} step left out"
        if cost.skipped
        else "bit-equal"
        if cost.exact
        else f"losses within {cost.loss_difference:.0e}"
        if cost.loss_difference
        else "losses equal"
    )
    metrics = {
        "detect": metric(cost.detect_s, "s"),
        "recover": metric(cost.recover_s, "s"),
        "lost": metric(cost.lost, "steps"),
        "loss_difference": metric(cost.loss_difference),
        "skipped": metric(cost.skipped, "steps"),
        "stall": metric(cost.stall_s, "s"),
    }
    facts = {
        "codes": cost.codes[:-1] or "went on",
        "end": end,
        "exact": cost.exact,
        "said": cost.said,
        "load": os.getloadavg()[0],
    }
    return case(cost.what, metrics, facts, number=cost.number)


def main(only: list[str] | None = None, json: Path | None = None, keep: Path | None = None) -> None:
    """Break runs, and say what it cost.

    Args:
        only: numbers of cases, such as [F5,F6] (default: all).
        json: file that gets what is measured; other cases in it attempt.
        keep: folder that gets the runs (default: a temporary one).
    """
    config = {"steps": STEPS, "save_every": SAVE_EVERY, "watchdog_s": WATCHDOG}
    content = result("benchmarks/faults.py", config, protocol=PROTOCOL, threads=1)
    content["cases"] = read_result(json)["cases"] if json and json.exists() else []
    with tempfile.TemporaryDirectory() as temporary:
        root = keep or Path(temporary)
        os.environ["TORCH_EXTENSIONS_DIR"] = f"{temporary}/extensions"
        folder = root / "undisturbed"
        write_dataset(folder / "tokens", samples=37, shards=1, shape=(2, 4, 4), vocab=32)
        write_configuration(folder)
        undisturbed = start(folder / "run", 2, "").wait()
        assert undisturbed.codes == {0: 0, 1: 0}, undisturbed.output
        print(f"undisturbed: {undisturbed.ended - undisturbed.started:.1f} s")
        for number, fault in enumerate(CASES):
            if only is None or fault.number in only:
                measured = row(measure(fault, root / f"{number:02d}", folder / "run"))
                content["cases"] = _with(content["cases"], measured)
                print(table(content | {"cases": [measured]}, COLUMNS).splitlines()[-1], flush=True)
                if json:
                    write_result(json, content)


def _with(cases: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """The cases with a new one, or one measured again, in the order of CASES."""
    order = [fault.what for fault in CASES]
    found = {row["name"]: row for row in [*cases, new]}
    return sorted(found.values(), key=lambda row: order.index(row["name"]))


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command(main)
