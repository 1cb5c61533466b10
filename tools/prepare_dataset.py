"""Make the list of videos, manifest.jsonl, that the other tools read."""

from collections import Counter
from pathlib import Path

from megavrc.config import command
from megavrc.tokenization.manifest import Entry, from_folder, from_list, write_manifest


def videofolder(folder: Path, out: Path, val_fraction: float = 0.0) -> None:
    """List every video below a folder: class from the parent folder, caption from a .txt file beside the video.

    Args:
        folder: searched with all its subfolders.
        out: the manifest to write; the paths in it are relative to it.
        val_fraction: share of the videos that become split `val`, chosen by their path.
    """
    _write(out, from_folder(folder, out, val_fraction))


def list_(table: Path, out: Path) -> None:
    """List the videos of a .csv (with header) or .jsonl file with a `path` column; caption, label, split are optional.

    Args:
        table: the file; paths in it are relative to it, other columns are kept.
        out: the manifest to write; the paths in it are relative to it.
    """
    _write(out, from_list(table, out))


def _write(out: Path, entries: list[Entry]) -> None:
    write_manifest(out, entries)
    splits = ", ".join(
        f"{count} {split}" for split, count in sorted(Counter(e["split"] for e in entries).items())
    )
    captions = sum(entry["caption"] is not None for entry in entries)
    labels = len({entry["label"] for entry in entries} - {None})
    print(f"{out}: {len(entries)} videos ({splits}), {captions} with a caption, {labels} classes")


if __name__ == "__main__":
    command({"videofolder": videofolder, "list": list_})
