"""Conversion of a run to a folder in Hugging Face format, and the check of such a folder."""

import errno
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from megavrc.checkpoint import checkpoint_folder, read_weights
from megavrc.errors import UserError
from megavrc.files import named_path, read_json, write_json
from megavrc.generation.folder import DTYPES, SAMPLING, TEXT_TOKENIZER, cast, load_folder
from megavrc.generation.folder_format import CHECKSUMS, check_sums, fill, read_config
from megavrc.generation.keymap import to_folder
from megavrc.hf.parity_check import check
from megavrc.model import VRC, ModelConfig
from megavrc.model.sampling import PLAUSIBILITY
from megavrc.processes import appearing
from megavrc.tokenizers import OmniTokenizer, TextTokenizer
from megavrc.video.manifest import read_captions

from .captions import example_prompt, example_prompts, frame_rate, training_captions
from .card import LICENSE, model_card, training_record

Weights = Literal["model", "ema"]
SAMPLING_DEFAULTS = {
    "do_sample": True,
    "first_temperature": 0.7,
    "later_temperature": 0.5,
    "top_k": 0,
    "top_p": 1.0,
    "guidance": 1.0,
    "plausibility": PLAUSIBILITY,
}
# With refinement: in the first later frame, where choices are. A frame of fewer cells has as many.
REFINED_PASSES = 8


@dataclass(frozen=True)
class Run:
    """A training run's result: weights and state of one of its checkpoints."""

    folder: Path
    model: ModelConfig
    weights: dict[str, Tensor]
    state: dict[str, Any]


def read_run(path: Path, step: int | None = None, weights: Weights = "model") -> Run:
    """Read a run folder, or one checkpoint of it.

    Args:
        path: the run, or a `step-*` folder in its checkpoints.
        step: of a run, the checkpoint of this step (default: the newest).
        weights: `model`, or their average over training, `ema` (train.ema).

    Raises:
        UserError: not a VRC run, or no whole checkpoint.
    """
    folder = path if (path / "checkpoints").is_dir() else named_path(named_path(path).parent).parent
    checkpoint = path if step is None else checkpoint_folder(path, step)
    tensors, state = read_weights(checkpoint, weights)
    identity = state.get("identity", {})
    if identity.get("stage") not in ("image", "video"):
        raise UserError(
            f"{path}: a run of stage {identity.get('stage')!r}; only image and video runs are converted"
        )
    return Run(folder, ModelConfig.from_dict(identity["model"]), tensors, state)


def to_hf(
    run: Path,
    video_tokenizer: Path,
    text_tokenizer: Path | None,
    out: Path,
    step: int | None = None,
    dtype: Literal["fp32", "bf16"] = "fp32",
    shard_size: str = "4GB",
    weights: Weights = "model",
    captions: Path | None = None,
    temperatures: Sequence[float] | None = None,
) -> None:
    """Convert a run; `out` appears only when a fresh process computes from it what the run's weights compute.

    Args:
        run: run folder, or one of its checkpoints.
        video_tokenizer: folder or published checkpoint.
        text_tokenizer: sentencepiece tokenizer.model, for a model with learned text embeddings.
        out: new folder.
        step: checkpoint to take (default: the newest).
        dtype: type of the generator's weights; batch norms and the video tokenizer stay fp32.
        shard_size: largest weight file.
        weights: as for `read_run`.
        captions: file of captions on which tokenizer.json must give sentencepiece's ids (default: all of the run's
            dataset, where it is still in its place).
        temperatures: of the first frame and of the later ones, with which the folder generates.

    Raises:
        UserError: parts that do not fit together, or a folder that does not pass; nothing is left behind.
    """
    refuse_existing(out)
    if not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", shard_size, re.IGNORECASE):
        raise UserError(f"--shard_size: {shard_size!r}; expected a size such as 500MB or 4GB")
    sampling_defaults(temperatures)  # refuses before any work
    source = read_run(run, step, weights)
    known_sampling = source.state.get("sampling")  # of what was made of a folder
    sampling = sampling_defaults(temperatures, known_sampling, source.model)
    if step is None and (run / "run.json").is_file() and not (run / "complete.json").is_file():
        print(
            f"note: {run} is not finished; its newest checkpoint, of step {source.state['step']}, is converted"
        )
    video = OmniTokenizer.from_checkpoint(video_tokenizer)
    text = None if text_tokenizer is None else TextTokenizer(text_tokenizer)
    check_parts(source, video, text)
    record = training_record(source.state, source.folder, averaged=weights == "ema")
    known = iter(read_captions(captions) if captions else training_captions(source.state) if text else ())
    if "training" not in source.state:  # what was made of a folder says this as the folder does
        if text is not None:
            first = list(islice(known, 1000))
            record["example"] = example_prompt(first, text, source.model.condition.slots)
            record["examples"] = example_prompts(first, text, source.model.condition.slots)
            known = chain(first, known)
        if fps := frame_rate(source.state):
            record["fps"] = fps
    publish(out, build(source, DTYPES[dtype]), video, text, record, shard_size, known, sampling)


def sampling_defaults(
    temperatures: Sequence[float] | None = None,
    known: Mapping[str, Any] | None = None,
    model: ModelConfig | None = None,
) -> dict[str, Any]:
    """generation_config.json of a model (`known`: that of an earlier folder, to which nothing is added), with other
    temperatures of the first and the later frames; UserError: no such pair."""
    whole = dict(SAMPLING_DEFAULTS if known is None else known)
    if known is None and model and model.refine and model.frames:
        whole["later_passes"] = [min(REFINED_PASSES, model.tokens_per_frame)]
    if temperatures is None:
        return whole
    if len(temperatures) != 2 or not all(0 < value < math.inf for value in temperatures):
        raise UserError("--temperatures: two numbers above 0, of the first frame and of the later ones")
    return whole | dict(zip(("first_temperature", "later_temperature"), temperatures, strict=True))


def refuse_existing(out: Path) -> None:
    """UserError if there is something already; NotADirectoryError below a file."""
    if out.exists() or out.is_symlink():  # also one that leads nowhere
        raise UserError(f"{out}: exists; choose another folder or remove it")
    if any(parent.exists() and not parent.is_dir() for parent in out.parents):  # said before any work
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(out))


def publish(
    out: Path,
    vrc: VRC,
    video: OmniTokenizer,
    text: TextTokenizer | None,
    training: dict[str, Any],
    shard_size: str = "4GB",
    captions: Iterable[str] = (),
    sampling: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder and pass it through the gate; `out` appears only then.

    Args:
        out: new folder.
        vrc: the generator, on the CPU.
        video, text: its tokenizers.
        training: what `training_record` gives.
        shard_size: largest weight file.
        captions: on which the converted text tokenizer is compared with the original.
        sampling: with which it generates, what is not said for a clip (default: that of a new folder).

    Raises:
        UserError: the folder does not pass; nothing is left behind.
    """
    try:
        with appearing(out) as partial:
            write_folder(partial, vrc, video, text, training, shard_size, captions, sampling)
            check(partial, vrc, video.net, text)
    except (SafetensorError, OSError) as error:  # safetensors has its own error for a full disk
        raise UserError(f"{out}: cannot be written, and nothing is left of it: {error}") from None


def check_parts(source: Run, video: OmniTokenizer, text: TextTokenizer | None) -> None:
    """Raise UserError unless the tokenizers are those that the model was trained with."""
    condition = source.model.condition
    if condition.learned_text != (text is not None):
        wanted = "takes no text tokenizer" if text else "needs the text tokenizer that it was trained with"
        raise UserError(f"{source.folder}: this run's model {wanted}")
    if video.config.codes != source.model.vocab:
        raise UserError(
            f"the video tokenizer has {video.config.codes} codes, the run's model {source.model.vocab}"
        )
    facts = source.state.get("facts", {})
    for name, part in (("video_tokenizer", video), ("text_tokenizer", text)):
        if part is not None and facts.get(name, part.sha256) != part.sha256:
            raise UserError(f"{name}: not the one that {source.folder} was trained with (another SHA-256)")


def build(source: Run, dtype: torch.dtype) -> VRC:
    """The run's model, in eval mode; batch norms stay float32."""
    with torch.device("meta"):
        vrc = VRC(source.model)
    fill(vrc, {name: tensor.clone() for name, tensor in source.weights.items()}, source.folder)
    cast(vrc, dtype)
    return vrc.eval()


def write_folder(
    folder: Path,
    vrc: VRC,
    video: OmniTokenizer,
    text: TextTokenizer | None,
    training: dict[str, Any],
    shard_size: str,
    captions: Iterable[str] = (),
    sampling: Mapping[str, Any] | None = None,
) -> None:
    """Write every file of a folder; arguments as of `publish`."""
    from transformers.utils import logging

    from megavrc.model.configuration_vrc import VRCConfig
    from megavrc.model.modeling_vrc import VRCForVideoGeneration, write_sums

    logging.disable_progress_bar()
    VRCConfig.register_for_auto_class()
    VRCForVideoGeneration.register_for_auto_class("AutoModel")
    classes = training.get("facts", {}).get("classes") or []
    names: dict[str, Any] = {}
    if classes:
        names = {
            "id2label": dict(enumerate(classes)),
            "label2id": {name: i for i, name in enumerate(classes)},
        }
    config = VRCConfig(vrc.config.to_dict(), video.config.to_dict(), training, **names)
    with torch.device("meta"):
        model = VRCForVideoGeneration(config)
    fill(model, to_folder({"vrc": vrc.state_dict(), "video_tokenizer": video.net.state_dict()}), folder)
    model.save_pretrained(folder, max_shard_size=shard_size)
    if text is not None:
        write_text_tokenizer(folder, text, vrc.config.condition.slots, captions)
    write_json(folder / SAMPLING, sampling_defaults(known=sampling, model=vrc.config))
    parameters = vrc.parameter_counts()["total"]
    rows = dict(training.get("summary", ())) | ({"frames a second": config.fps} if "fps" in training else {})
    if classes:
        rows["classes"] = ", ".join(classes)
    example = classes[0] if classes else training.get("example")
    card = model_card("VRC", vrc.config, video.config, parameters, rows, example)
    (folder / "README.md").write_text(card)
    (folder / "LICENSE").write_text(LICENSE)
    for path in folder.iterdir():
        path.chmod(0o644)
    write_sums(folder)


def write_text_tokenizer(folder: Path, text: TextTokenizer, slots: int, captions: Iterable[str]) -> None:
    """tokenizer.json and its companions; UserError unless it gives sentencepiece's ids."""
    from megavrc.hf.fast_tokenizer import check_ids, to_fast

    fast = to_fast(text.path, slots)
    check_ids(fast, text, captions)
    fast.save_pretrained(folder)
    settings = read_json(folder / "tokenizer_config.json")
    # A name that every transformers knows.
    write_json(folder / "tokenizer_config.json", settings | {"tokenizer_class": "PreTrainedTokenizerFast"})
    shutil.copyfile(text.path, folder / TEXT_TOKENIZER)


def verify(folder: Path) -> None:
    """Check an existing folder: checksums, loading, and if it carries code equal logits and clips in transformers.

    Raises:
        UserError: the first thing that is wrong.
    """
    config = read_config(folder)
    if (folder / CHECKSUMS).is_file():
        check_sums(folder)
    else:
        print(f"{folder}: no {CHECKSUMS}, so nothing says whether its files have changed")
    loaded = load_folder(folder)
    if "auto_map" not in config:  # such as examples/scenes
        print(f"{folder}: loads in megavrc; it carries no code, so transformers alone cannot load it")
        return
    check(folder, loaded.model, loaded.video_tokenizer.net, loaded.text_tokenizer)
    print(f"{folder}: whole; transformers and megavrc compute the same from it")
