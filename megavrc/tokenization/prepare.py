"""`megavrc prepare_dataset`: readers of public data sets as commands that write the list of videos, manifest.jsonl."""

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from megavrc.errors import UserError
from megavrc.tokenization import datasets
from megavrc.tokenization.v3c import v3c
from megavrc.video.listing import Listing
from megavrc.video.manifest import write_manifest

KINDS: dict[str, Callable[..., Listing]] = {
    "ucf101": datasets.ucf101,
    "skytimelapse": datasets.skytimelapse,
    "taichi": datasets.taichi,
    "faceforensics": datasets.faceforensics,
    "msrvtt": datasets.msrvtt,
    "v3c": v3c,
    "videofolder": datasets.videofolder,
    "framefolder": datasets.framefolder,
    "list": datasets.list_,
}


def writing_manifest(prepare: Callable[..., Listing]) -> Callable[..., None]:
    """A reader as a command with the same options, which writes the list and prints its counts."""

    @functools.wraps(prepare)
    def run(out: Path, **options: object) -> None:
        if out.suffix.lower() != ".jsonl":  # a slip must not replace a table or a video
            raise UserError(f"--out: {out} is written as .jsonl: give it such a name, as in manifest.jsonl")
        if out.resolve() in {given.resolve() for given in options.values() if isinstance(given, Path)}:
            raise UserError(f"--out: {out} is what is read: give the manifest another name")
        entries, notes = prepare(out=out, **options)
        if not entries:
            raise UserError(f"--out: {out} is not written: no video is left to list ({'; '.join(notes)})")
        write_manifest(out, entries)
        for note in notes:
            print(note)
        splits = ", ".join(
            f"{count} {split}" for split, count in sorted(Counter(e["split"] for e in entries).items())
        )
        captions = sum(bool((entry["caption"] or "").strip()) for entry in entries)
        labels = len({entry["label"] for entry in entries} - {None})
        print(f"{out}: {len(entries)} videos ({splits}), {captions} with a caption, {labels} classes")

    return run


COMMANDS = {kind: writing_manifest(prepare) for kind, prepare in KINDS.items()}
