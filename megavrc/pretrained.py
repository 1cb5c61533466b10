"""Models of transformers from folders that users bring, whole: weights that a folder lacks would be random."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from megavrc.errors import UserError

# Of what transformers raises for a damaged or a foreign folder; it has no error of its own.
FAULTS = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    ImportError,
    AttributeError,
    TypeError,
    SafetensorError,
)


def whole_model(path: Path, what: str, dtype: Any, kind: Any, unused: str | None = None) -> Any:
    """The model of a folder; nothing is downloaded.

    Args:
        path: as save_pretrained writes it.
        what: the folder holds, for errors.
        dtype: of the weights; "auto" for that of the file.
        kind: class of transformers.
        unused: weights whose names hold this may be missing.

    Raises:
        UserError: transformers does not load it, or weights are missing or of other sizes.
    """
    with loading(path, what):
        model, report = kind.from_pretrained(
            path, local_files_only=True, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    if missing := [name for name in report["missing_keys"] if unused is None or unused not in name]:
        raise UserError(f"{path}: {len(missing)} weights of the {what} are missing ({min(missing)})")
    if other := report["mismatched_keys"]:
        raise UserError(
            f"{path}: {len(other)} weights of the {what} have other sizes than config.json says ({min(other)[0]}): "
            "give the config.json that was saved with them"
        )
    return model


@contextmanager
def loading(path: Path, what: str) -> Iterator[None]:
    """No bars, and no report of weights that nobody uses; UserError for what transformers does not load."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except FAULTS as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: not a {what} that transformers loads: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
