"""The kind of a folder and whether it is whole: a run, a dataset or its job, a converted model, a video tokenizer."""

from collections.abc import Callable
from pathlib import Path

from megavrc.checkpoint import newest_good
from megavrc.data.dataset import ShardReader
from megavrc.errors import UserError
from megavrc.generation.folder import load_folder
from megavrc.tokenization.plan import load_plan
from megavrc.tokenizers import OmniTokenizer


def describe_folder(path: Path) -> str:
    """The kind of a folder, in a line.

    Raises:
        UserError: it is not there, it is none of ours, or it is damaged.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    for mark, look in LOOKS.items():
        if (path / mark).exists():
            return look(path)
    raise UserError(f"{path}: none of megavrc's folders: holds none of {', '.join(LOOKS)}")


def is_ours(path: Path) -> bool:
    """Whether a folder holds a file that tells what of megavrc's it is."""
    return any((path / mark).exists() for mark in LOOKS)


def _converted(path: Path) -> str:
    folder = load_folder(path)
    condition = folder.model.config.condition
    wanted = f"{condition.classes} classes" if condition.is_class else "prompts"
    millions = folder.model.parameter_counts()["total"] / 1e6
    return (
        f"a converted model of {wanted}, {millions:.1f} M parameters: whole; megavrc generate --model {path}"
    )


def _tokenizer(path: Path) -> str:
    tokenizer = OmniTokenizer.from_checkpoint(path)
    return f"a video tokenizer, {tokenizer.config.codes} codes, sha256 {tokenizer.sha256[:12]}: whole"


def _model_or_tokenizer(path: Path) -> str:
    return _converted(path) if '"model_type"' in (path / "config.json").read_text() else _tokenizer(path)


def _dataset(path: Path) -> str:
    reader = ShardReader(path, None)
    return f"a token dataset, {len(reader)} samples in {len(reader.shards)} shards: all are there"


def _run(path: Path) -> str:
    found = newest_good(path / "checkpoints")
    if found is None:
        return "a run without a checkpoint yet; the same command begins it"
    if (path / "complete.json").is_file():
        return f"a finished run, step {found.step}: its newest checkpoint is whole"
    return f"a run stopped at step {found.step}, whose checkpoint is whole; the same command goes on"


def _job(path: Path) -> str:
    plan = load_plan(path)
    finished = [part for part in ("video", "image") if (path / part / "manifest.json").is_file()]
    if not finished:
        return f"a tokenization job of {len(plan.units)} shards, not finalized; megavrc tokenize_videos status {path}"
    return (
        f"a finished tokenization job: {'; '.join(f'{part}: {_dataset(path / part)}' for part in finished)}"
    )


LOOKS: dict[str, Callable[[Path], str]] = {  # the file that tells -> how it is looked at
    "dataset.json": _dataset,
    "plan.json": _job,
    "run.json": _run,
    "checkpoints": _run,
    "config.json": _model_or_tokenizer,
}
