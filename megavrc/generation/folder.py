"""A converted folder without transformers: safetensors, JSON and sentencepiece are enough to generate video."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megavrc.errors import UserError
from megavrc.files import read_json, sha256_file, sha256_json
from megavrc.generation.folder_format import CHECKSUMS, check_weights, fill, read_config, read_tensors
from megavrc.generation.keymap import from_folder
from megavrc.generation.prompts import open_encoder, prompt_features
from megavrc.hardware import check_device
from megavrc.model import VRC, ClipRequest, ConditionConfig, ModelConfig, VideoPipeline
from megavrc.model.clips import (
    SAMPLING_OPTIONS,
    Label,
    class_names,
    class_numbers,
    decode_clips,
    sampling_settings,
)
from megavrc.model.compressor import BatchNorm
from megavrc.model.condition import Condition, kind_of
from megavrc.model.decoder import store_for_generation
from megavrc.model.inputs import check_numbers, prompt_list, warn_of_prompts
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from megavrc.model.refinement import frame_passes
from megavrc.quantization.quantize import Format, quantize_generator
from megavrc.tokenizers import OmniTokenizer, TextTokenizer
from megavrc.tokenizers.text_encoder import TextEncoder

TEXT_TOKENIZER = "tokenizer.model"
SAMPLING = "generation_config.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FORMER_NAMES = {"prompts": "prompt", "labels": "label", "seeds": "seed"}  # of arguments, which still work
log = logging.getLogger("megavrc")


@dataclass(frozen=True)
class Folder:
    """A loaded folder.

    Attributes:
        model: the generator, in eval mode.
        video_tokenizer: pixels to ids and back.
        text_tokenizer: None for a model that is not conditioned on text tokens.
        text_encoder: of a model that is conditioned on text features, if it was given to `load_folder`.
        sampling: the folder's sampling options, see `megavrc.model.clips.sampling_settings`.
        quantize: the format of the matrices, see `load_folder`.
        class_names: by number, of a model of classes.
    """

    path: Path
    model: VRC
    video_tokenizer: OmniTokenizer
    text_tokenizer: TextTokenizer | None
    text_encoder: TextEncoder | None
    sampling: dict[str, Any]
    quantize: Format | None = None
    class_names: Sequence[str] = ()

    def identity(self) -> str:
        """A hash that tells this model from others."""
        sums = self.path / CHECKSUMS
        files = [sums] if sums.is_file() else sorted(self.path.glob("*.safetensors"))
        return sha256_json([sha256_file(file) for file in files])[:16]

    @cached_property
    def pipeline(self) -> VideoPipeline:
        """Generates with this model; what it keeps on the device goes with the folder."""
        return VideoPipeline(self.model, self.video_tokenizer.net)

    def condition(
        self, prompt: str | Sequence[str] | None = None, label: Label | Sequence[Label] | None = None
    ) -> Condition:
        """Prompts or labels as the model's condition, on the CPU.

        Raises:
            UserError: the other kind of condition, a prompt that is too long, or a label outside the classes.
        """
        config = self.model.config.condition
        kind = kind_of(config)
        prompts = [] if prompt is None else _user_error(prompt_list, prompt)
        given: list[Any] = []
        if kind.reads == "label" and prompt is None and label is not None:
            given = _user_error(class_numbers, label, config.classes, self.class_names)
        elif label is None and self.text_tokenizer is not None:
            for text in prompts:
                self.text_tokenizer.encode(text, config.slots)  # raises for one that is too long, by name
            given = [self.text_tokenizer.ids(text) for text in prompts]
            warn_of_prompts(prompts, given)
        elif label is None and self.text_encoder is not None:
            given = [prompt_features(self.text_encoder, text, config.slots - 1) for text in prompts]
        elif label is None and kind.reads == "caption":
            given = prompts
        if given:
            return _user_error(kind.make, config, given)
        wanted = "labels" if kind.reads == "label" else "prompts"
        if kind.reads == "features":
            wanted += " and the text encoder that it was trained with (megavrc generate --text_encoder)"
        raise UserError(f"{self.path}: this model is generated from {wanted}")

    def request(
        self,
        prompt: str | Sequence[str] | None = None,
        label: Label | Sequence[Label] | None = None,
        **options: Any,
    ) -> ClipRequest:
        """The request that `generate` and `stream` hand to the pipeline.

        Args:
            prompt: one text or B texts.
            label: one class or B classes, of a model of classes.
            options: `seed`, `first_frame`, `clip`, `frames`, `overlap` and the sampling, all as for `generate_video` in
                transformers; or `settings`, the whole sampling.

        Raises:
            UserError: inputs that do not fit the model.
        """
        for name, now in FORMER_NAMES.items():
            if name in options:
                options[now] = options.pop(name)
        condition = self.condition(options.pop("prompt", prompt), options.pop("label", label))
        return _user_error(partial(ClipRequest.of, condition, self.sampling, self.pipeline.side, **options))

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        label: Label | Sequence[Label] | None = None,
        *,
        batch_size: int = 8,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        """Generate one clip per prompt or label, of at most as many frames as the model was trained for.

        Args:
            prompt, label, options: see `request`; the same ones give the clips of `generate_video` in transformers.
            batch_size: clips generated at once.

        Returns:
            ids, long [B, t, g, g], and frames, uint8 [B, T, H, W, 3].

        Raises:
            UserError: inputs that do not fit the model.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size: {batch_size!r} is not a positive number")
        request, batches = self.request(prompt, label, **options), []
        for start in range(0, len(request), batch_size):
            ids = _user_error(self.pipeline.generate, request[start : start + batch_size], "ids")
            batches.append((ids, decode_clips(self.video_tokenizer.net, ids)))
        ids, pixels = (torch.cat(items).cpu() for items in zip(*batches, strict=True))
        return ids, pixels

    def stream(
        self,
        prompt: str | Sequence[str] | None = None,
        label: Label | Sequence[Label] | None = None,
        *,
        output: str = "uint8",
        by_frame: bool = True,
        **options: Any,
    ) -> Iterator[Tensor]:
        """`generate` for any length, which yields uint8 [B, t, H, W, 3] when frames are ready; together they are all.

        Args:
            prompt, label, options: see `request`.
            output, by_frame: see `VideoPipeline.stream`.

        Raises:
            UserError: inputs that do not fit the model.
        """
        return self.stream_request(self.request(prompt, label, **options), output, by_frame)

    def stream_request(
        self, request: ClipRequest, output: str = "uint8", by_frame: bool = True
    ) -> Iterator[Tensor]:
        """`stream` for a request or a part of one; what cannot be is refused before the first clip is read."""
        return _on_cpu(_user_error(self.pipeline.stream, request, output, by_frame))


def load_folder(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | None = None,
    quantize: Format | None = None,
    text_encoder: str | Path | None = None,
) -> Folder:
    """Load a folder written by `megavrc convert_checkpoint to-hf`.

    Its weights are compared with SHA256SUMS where there is one, which takes a second a GB or less.

    Args:
        path: the folder.
        device: where the model is put; "auto" is a GPU where there is one.
        dtype: of the generator, `fp32` or `bf16` (default: what config.json says); its batch norms and the video
            tokenizer stay float32.
        quantize: keep the matrices of the trunk and the head in fewer bits, see `megavrc.quantization.quantize`.
        text_encoder: folder of the text encoder that a model of text features was trained with (needs transformers).

    Raises:
        UserError: nothing there, not a VRC folder, another format version, damaged or missing files, no such
            device, a format that it or this installation cannot compute with, or another text encoder.
    """
    path, device = Path(path), check_device(device)
    config = read_config(path)
    parts = _user_error(from_folder, read_tensors(path), prefix=f"{path}: ")
    with torch.device("meta"):
        model = VRC(_user_error(ModelConfig.from_dict, config["vrc"], prefix=f"{path}/config.json: "))
        net = OmniTokenizerNet(
            _user_error(
                OmniTokenizerConfig.from_dict, config["video_tokenizer"], prefix=f"{path}/config.json: "
            )
        )
    fill(model, parts["vrc"], path)
    fill(net, parts["video_tokenizer"], path)
    check_weights(path)
    for part in (model, net):
        _user_error(check_numbers, part.state_dict(), prefix=f"{path}: ")
    sampling = _sampling_of(path, model.config)
    condition = model.config.condition
    text = None
    if condition.learned_text:
        if not (path / TEXT_TOKENIZER).is_file():
            raise UserError(f"{path / TEXT_TOKENIZER}: missing; the folder is incomplete")
        text = TextTokenizer(path / TEXT_TOKENIZER)
        if text.vocab > condition.vocab:
            raise UserError(
                f"{path / TEXT_TOKENIZER}: {text.vocab} pieces, the model takes {condition.vocab}"
            )
    encoder = None
    if text_encoder is not None:
        trained_with = config["training"].get("facts", {}).get("text_encoder")
        encoder = open_encoder(Path(text_encoder), condition, trained_with, device)
    net.float()  # ids are computed in float32, however they are stored
    model.eval().requires_grad_(False).to(device)
    said = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(str(config.get("dtype")))
    # A small folder may store less than it computes with.
    cast(model, DTYPES[dtype] if dtype else said or _widest(model))
    if quantize is not None:
        done = _user_error(quantize_generator, model, quantize)
        share = done.bytes_after / done.bytes_before
        log.info(
            "%s by %s: %d matrices, %.0f%% of their bytes", quantize, done.by, len(done.layers), 100 * share
        )
    store_for_generation(model)
    return Folder(
        path,
        model,
        OmniTokenizer(net.to(device), size=model.config.grid * net.config.patch),
        text,
        encoder,
        sampling,
        quantize,
        _class_names(path, config, condition),
    )


def _class_names(path: Path, config: dict[str, Any], condition: ConditionConfig) -> Sequence[str]:
    """By number; none of a model without classes."""
    if not condition.is_class:
        return ()
    where = f"{path}/config.json: id2label: "
    names: list[str] = _user_error(class_names, config.get("id2label"), condition.classes, prefix=where)
    return names


def read_sampling(path: Path) -> dict[str, Any]:
    """The sampling options that a folder says (see `sampling_settings`); UserError for those that cannot be."""
    file = path / SAMPLING
    content = read_json(file) if file.is_file() else {}
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected an object of sampling options, got {type(content).__name__}")
    options = {name: content[name] for name in SAMPLING_OPTIONS if name in content}
    _user_error(sampling_settings, options, prefix=f"{file}: ")
    return options


def _sampling_of(path: Path, config: ModelConfig) -> dict[str, Any]:
    """`read_sampling`; UserError too for passes that the model cannot have."""
    sampling = read_sampling(path)
    _user_error(frame_passes, config, sampling_settings(sampling), prefix=f"{path / SAMPLING}: ")
    return sampling


def _widest(model: VRC) -> torch.dtype:
    """A dtype that holds all parameters as they are stored, batch norms aside."""
    plain = (module for module in model.modules() if not isinstance(module, BatchNorm))
    return reduce(
        torch.promote_types, (one.dtype for part in plain for one in part.parameters(recurse=False))
    )


def cast(model: VRC, dtype: torch.dtype) -> None:
    """Give the parameters another dtype; batch norms stay float32."""
    for module in model.modules():
        if not isinstance(module, BatchNorm):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


def _on_cpu(chunks: Iterator[Tensor]) -> Iterator[Tensor]:
    """The chunks; ValueErrors on the way are the user's."""
    try:
        for chunk in chunks:
            yield chunk.cpu()
    except ValueError as error:
        raise UserError(str(error)) from None


def _user_error(function: Callable[..., Any], *arguments: Any, prefix: str = "") -> Any:
    """Call a part of the model, whose ValueErrors about its arguments are here the user's."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise UserError(f"{prefix}{error}") from None
