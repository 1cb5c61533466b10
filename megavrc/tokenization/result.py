"""The state of a tokenization job: status, finalize, verify."""

import logging
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megavrc.data.dataset import TokenDataset
from megavrc.data.shards import (
    PROOF,
    WITHOUT,
    DataError,
    ShardIndex,
    listed,
    read_done,
    remove_half_written,
    write_shard_manifest,
)
from megavrc.data.text_features import TextFeatures, features_folder
from megavrc.errors import UserError
from megavrc.files import check_fields, read_json, read_jsonl, write_json
from megavrc.progress import progress
from megavrc.tokenization.plan import Plan, PlannedShard, failures_path, load_plan
from megavrc.tokenization.proof import SAMPLES, Proof, load_tokenizer, prove
from megavrc.tokenization.sources import changed, words
from megavrc.tokenizers import OmniTokenizer

log = logging.getLogger("megavrc")

RETRYABLE = {"io", "timeout", "crash"}  # stages whose failures may go away; damaged files stay damaged
FAILURE = {"source": str, "start": float | None, "stage": str, "reason": str}


def status(out: Path, of: int | None = None) -> None:
    """Say which shards are done, which videos failed and why, and which array tasks are still to run.

    Args:
        out: folder of the job.
        of: number of tasks of the job array (default: one for each shard).
    """
    work = load_plan(out)
    units = work.units
    state = [is_done(work, shard) for shard in units]
    missing = [number for number, is_whole in enumerate(state) if not is_whole]
    print(f"{out}: {len(units) - len(missing)} of {len(units)} shards done")
    done = [shard for shard, is_whole in zip(units, state, strict=True) if is_whole]
    reasons = Counter(failure["stage"] for shard in done for failure in read_failures(work, shard))
    if reasons:
        counts = ", ".join(f"{stage} {count}" for stage, count in sorted(reasons.items()))
        print(f"{sum(reasons.values())} videos failed ({counts}); reasons in {out}/failures/")
    if again := sum(count for stage, count in reasons.items() if stage in RETRYABLE):
        print(f"{again} of them may work another time: run --retry-failed, then finalize")
    if missing:
        print(f"still to run: {array_expression(missing, of or len(units))}")


def finalize(out: Path, tokenizer: Path | None = None, samples: int = SAMPLES) -> None:
    """Write dataset.json and manifest.json of the finished datasets, whose ids must be those of their videos.

    Args:
        out: folder of the job.
        tokenizer: folder or file of the tokenizer, if not where it was planned.
        samples: number of samples that are cut from their videos again, encoded, decoded and compared; 0 for none.
    """
    work = load_plan(out)
    missing = [shard for shard in work.units if not is_done(work, shard)]
    if missing:
        raise UserError(
            f"{out}: {len(missing)} of {len(work.units)} shards are not done (first: {missing[0].name}); "
            "run the job again, `status` lists the tasks"
        )
    for folder in (
        out,
        out / "failures",
        *(out / kind / sub for kind in work.kinds for sub in (".", "shards")),
    ):
        remove_half_written(folder)
    without = _without(work)
    loaded = _tokenizer(work, tokenizer, samples)
    for kind in work.kinds:
        shards = [_entry(work, kind, shard) for shard in work.units]
        if not any(shard["count"] for shard in shards):
            raise UserError(f"{out}: no video gave a sample; the reasons are in {out}/failures/")
        with writing(out):
            manifest = write_shard_manifest(out / kind, work.dataset(kind) | {WITHOUT: without}, shards)
            _prove(work, kind, loaded, samples)
        size, name = manifest["bytes"] / 1e6, manifest["manifest_id"][:12]
        print(
            f"{out}/{kind}: {manifest['count']} samples, {len(shards)} shards, {size:.1f} MB, manifest {name}"
        )


def verify(out: Path, tokenizer: Path | None = None, samples: int = SAMPLES) -> None:
    """Read every byte of the finished datasets again and check it, and that the ids are those of the videos.

    Args:
        out: folder of the job.
        tokenizer: folder or file of the tokenizer, if not where it was planned.
        samples: number of samples that are cut from their videos again, encoded, decoded and compared; 0 for none.
    """
    work = load_plan(out)
    loaded = _tokenizer(work, tokenizer, samples)
    problems: list[str] = []
    if others := changed(work, work.units):
        problems.append(f"{words(others)}; run --redo_changed takes them as they are")
    for kind in work.kinds:
        before = len(problems)
        whole = TokenDataset(out / kind, work.tokenizer["sha256"], None)
        filled = {shard["split"] for shard in whole.shards if shard["count"]}
        for split in work.settings.splits:
            if split not in filled:  # all of its videos have failed
                lost = sorted(_planned(work, split))
                found = [_neither(whole.folder, lost)] if lost else []
                problems += found
                print(f"{out}/{kind} {split}: 0 samples, {len(found)} problems")
                continue
            dataset = TokenDataset(out / kind, work.tokenizer["sha256"], split)
            old = len(problems)
            problems += _problems(dataset, set(_planned(work, split)), f"verify {kind} {split}")
            print(f"{out}/{kind} {split}: {len(dataset)} samples, {len(problems) - old} problems")
            if (features_folder(dataset.folder) / "manifest.json").is_file():
                old = len(problems)
                problems += TextFeatures(dataset).problems(dataset)
                print(f"{out}/{kind} {split}: text features, {len(problems) - old} problems")
        if len(problems) == before:  # damaged samples are named above
            proof = prove(work, kind, loaded, samples)
            problems += proof.problems
            print(f"{out}/{kind}: {_proof_words(proof)}")
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise DataError(
            f"{out}: {len(problems)} problems; delete the damaged shards, then run the job and finalize again"
        )


def _tokenizer(work: Plan, path: Path | None, samples: int) -> OmniTokenizer | str:
    """The tokenizer that samples are compared with, or why none are."""
    if samples < 0:
        raise UserError(f"--samples {samples}: at least 0, which compares none")
    return load_tokenizer(work, path) if samples else "not asked for"


def _prove(work: Plan, kind: str, tokenizer: OmniTokenizer | str, samples: int) -> None:
    """Compare samples with their videos; a dataset whose ids are others is not finished."""
    folder = work.out / kind
    proof = prove(work, kind, tokenizer, samples)
    if proof.problems:
        (folder / "manifest.json").unlink()
        for problem in proof.problems:
            print(problem, file=sys.stderr)
        raise DataError(
            f"{folder}: {len(proof.problems)} problems: the ids are not those of the videos, so it is not finished; "
            "find out why, then delete its shards and run the job again"
        )
    write_json(folder / "dataset.json", {**read_json(folder / "dataset.json"), PROOF: proof.record})
    print(f"{folder}: {_proof_words(proof)}")


def _proof_words(proof: Proof) -> str:
    if proof.not_done:
        return f"not compared with its videos: {proof.not_done}"
    return f"{proof.samples} samples compared with their videos, {len(proof.problems)} problems"


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Say in one line that a disk is full or gone; what is done stays, what was half written is removed."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: {error.strerror or error}; nothing is half written: "
            "when that is corrected, run the same command again"
        ) from None


def array_expression(missing: list[int], of: int) -> str:
    """The tasks whose shards (numbers in the plan's order) are missing: "--array=1-3,7 with --of 8"."""
    parts: list[list[int]] = []
    for number in sorted({shard % of for shard in missing}):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    ranges = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
    return f"--array={ranges} with --of {of}"


def is_done(work: Plan, shard: PlannedShard) -> bool:
    """Whether a shard is whole, with its images and the list of its failures; what is damaged is named."""
    done = [read_done(work.tar(kind, shard), work.sha256) for kind in work.kinds]
    if not all(done):
        return False
    try:
        found = len(read_failures(work, shard))
    except UserError as error:
        log.warning("%s; the shard counts as not done", error)
        return False
    if wrong := [entry for entry in done if entry and entry.get("failed", found) != found]:
        path = failures_path(work, shard)
        log.warning(
            "%s: %d failures, there were %s; the shard counts as not done", path, found, wrong[0]["failed"]
        )
    return not wrong


def read_failures(work: Plan, shard: PlannedShard) -> list[dict[str, Any]]:
    """The videos of a shard that gave no sample: {source, start, stage, reason}."""
    path = failures_path(work, shard)
    lines = read_jsonl(path) if path.is_file() else ()
    return [check_fields(f"{path} line {number}", fields, FAILURE) for number, fields in lines]


def can_be_retried(work: Plan, shard: PlannedShard) -> bool:
    """Whether videos of a shard failed for a reason that may be gone."""
    return any(failure["stage"] in RETRYABLE for failure in read_failures(work, shard))


def _planned(work: Plan, split: str) -> dict[str, dict[str, Any]]:
    """The videos of a split that must have given samples, by id."""
    shards = [shard for shard in work.units if shard.split == split]
    failed = {failure["source"] for shard in shards for failure in read_failures(work, shard)}
    entries = (entry for entries in work.sources(shards).values() for entry in entries)
    return {entry["id"]: entry for entry in entries if entry["id"] not in failed}


def _without(work: Plan) -> dict[str, dict[str, int]]:
    """How many videos of each split gave samples without a caption, and without a label; prints what is mixed."""
    counts: dict[str, dict[str, int]] = {}
    for split in work.settings.splits:
        videos = _planned(work, split)
        bare = {
            "caption": [key for key, entry in videos.items() if not (entry["caption"] or "").strip()],
            "label": [key for key, entry in videos.items() if entry["label"] is None],
        }
        counts[split] = {name: len(keys) for name, keys in bare.items()}
        for name, keys in bare.items():
            if 0 < len(keys) < len(videos):
                print(
                    f"{work.out} {split}: {len(keys)} of {len(videos)} videos have no {name}, the first is {min(keys)}"
                )
    return counts


def _entry(work: Plan, kind: str, shard: PlannedShard) -> dict[str, Any]:
    tar = work.tar(kind, shard)
    entry = listed(shard.split, read_done(tar, work.sha256) or {})
    if (count := len(ShardIndex.load(tar, entry["index_sha256"]).keys)) != entry["count"]:
        raise DataError(
            f"{tar}: its index has {count} samples, its done file says {entry['count']}; delete it and run"
        )
    return entry


def _neither(folder: Path, lost: list[str]) -> str:
    return f"{folder}: {len(lost)} videos have neither a sample nor a failure (first: {lost[0]})"


def _problems(dataset: TokenDataset, planned: set[str], label: str) -> Iterator[str]:
    yield from dataset.changed_shards()
    keys: set[str] = set()
    sources: set[str] = set()
    for index in progress(range(len(dataset)), label):
        try:
            sources.add(dataset.read(index)[1].get("source", ""))
            keys.add(dataset.key(index))
        except DataError as error:
            yield str(error)
    if len(keys) < len(dataset):
        yield f"{dataset.folder}: {len(dataset) - len(keys)} keys are damaged or stand there twice"
    if lost := sorted(planned - sources):
        yield _neither(dataset.folder, lost)
    if strange := sorted(sources - planned):
        yield f"{dataset.folder}: {len(strange)} videos should have no sample (first: {strange[0]})"
