"""The files of a converted folder: its configuration and its tensors, checked; older formats are migrated."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from megavrc.errors import UserError
from megavrc.files import check_fields, check_format, read_json, read_lines, sha256_file

MODEL_TYPE = "vrc"
FORMAT_VERSION = 2
WEIGHTS = "model.safetensors"
PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")  # what others put in the place of WEIGHTS
TRAINING: dict[str, Any] = {  # as far as they are there
    "facts": dict,
    "step": int,
    "fps": float,
    "summary": list,
    "example": str,
    "examples": list[str],
}
CHECKSUMS = "SHA256SUMS"  # readable by `sha256sum -c`


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a converted folder; UserError when it is none or of a format version that is not known."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; expected one written by megavrc convert_checkpoint to-hf")
    config = read_json(path / "config.json")
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != MODEL_TYPE or not all(
        isinstance(config.get(key), dict) for key in (MODEL_TYPE, "video_tokenizer")
    ):
        raise UserError(
            f"{path}/config.json: model_type is {found!r}, not {MODEL_TYPE!r}: not a converted VRC model"
        )
    where, version = f"{path}/config.json", config.get("format_version")
    check_fields(where, config, {"id2label": dict | None})
    if version == 1:  # said nothing about the training
        return config | {"format_version": FORMAT_VERSION, "training": {}}
    if version is None:  # which only edited folders lack
        raise UserError(f"{where}: format_version is missing: convert the run again")
    check_format(where, version, FORMAT_VERSION)
    config.setdefault("training", {})
    check_fields(where, config, {"training": dict})
    known = {name: kind for name, kind in TRAINING.items() if name in config["training"]}
    training = check_fields(f"{where}: training", config["training"], known)
    check_fields(f"{where}: training.facts", training.get("facts", {}), {"classes": list[str] | None})
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in training.get("summary", ())):
        raise UserError(f"{where}: training.summary holds what is no pair of a name and a value")
    return config


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a folder, from one file or several; pickled ones are never opened."""
    tensors: dict[str, Tensor] = {}
    for name in _weight_files(path):
        try:
            # Copies: aligned as transformers' are, for the same bits, and independent of the file.
            tensors |= {key: tensor.clone() for key, tensor in load_file(path / name).items()}
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path / name}: missing or damaged ({error})") from None
    return tensors


def _weight_files(path: Path) -> list[str]:
    index = path / f"{WEIGHTS}.index.json"
    if index.is_file():
        content = read_json(index)
        places = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(places, dict) or not all(map(_is_name, places.values())):
            raise UserError(f"{index}: damaged: no weight_map that names files of this folder")
        return sorted(set(places.values()))
    pickled = [file.name for pattern in PICKLED for file in path.glob(pattern)]
    if pickled and not (path / WEIGHTS).is_file():
        raise UserError(
            f"{path / pickled[0]}: pickled weights can run any code and are not read; save them as {WEIGHTS}"
        )
    return [WEIGHTS]


def _is_name(given: Any) -> bool:
    return isinstance(given, str) and Path(given).name == given and given.isprintable()  # no half characters


def fill(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Give a module (which may be on the meta device) exactly these tensors; UserError names what does not fit."""
    expected = module.state_dict()
    wrong = [
        name for name, tensor in expected.items() if name not in state or not _alike(state[name], tensor)
    ]
    wrong += [name for name in state if name not in expected]
    if wrong:
        raise UserError(f"{path}: {len(wrong)} tensors do not fit the configuration, the first is {wrong[0]}")
    module.load_state_dict(state, assign=True)


def _alike(stored: Tensor, tensor: Tensor) -> bool:
    tiny = stored.is_floating_point() and stored.itemsize < 2  # which nothing here computes with
    return (
        stored.shape == tensor.shape and stored.is_floating_point() == tensor.is_floating_point() and not tiny
    )


def check_sums(folder: Path, endings: tuple[str, ...] = ("",)) -> None:
    """Compare the files with these endings with SHA256SUMS; UserError naming the first that is missing or changed."""
    sums = folder / CHECKSUMS
    if not sums.is_file():
        raise UserError(f"{sums}: missing")
    lines = [line.partition("  ") for _, line in read_lines(sums)]
    for expected, _, name in lines:
        path = folder / name
        if not name.endswith(endings):
            continue
        if not path.is_file():
            raise UserError(f"{path}: missing")
        if sha256_file(path) != expected:
            raise UserError(
                f"{path}: has changed since the conversion (SHA-256 differs): restore it, or remove {CHECKSUMS} if you "
                "changed it"
            )


def check_weights(folder: Path) -> None:
    """`check_sums` for weights and text tokenizer; a folder that transformers saved again has no sums and passes."""
    if (folder / CHECKSUMS).is_file():
        check_sums(folder, (".safetensors", ".model"))
