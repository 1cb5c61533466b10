"""A converted folder without transformers: safetensors, JSON and sentencepiece are enough to generate video."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from megavrc.model import VRC, ModelConfig, SamplingSettings
from megavrc.model.clips import (
    SAMPLING_OPTIONS,
    decode_clips,
    generate_clips,
    label_condition,
    sampling_settings,
)
from megavrc.model.compressor import BatchNorm
from megavrc.model.condition import Condition, pad_features
from megavrc.model.decoder import store_for_generation
from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from megavrc.model.rollout import stream_clips
from megavrc.quantization.int8 import quantize_int8
from megavrc.tokenizers import OmniTokenizer, TextTokenizer
from megavrc.tokenizers.text_encoder import TextEncoder

TEXT_TOKENIZER = "tokenizer.model"
SAMPLING = "generation_config.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Folder:
    """A loaded folder.

    Attributes:
        model: the generator, in eval mode.
        video_tokenizer: pixels to ids and back.
        text_tokenizer: None for a model that is not conditioned on text tokens.
        text_encoder: of a model that is conditioned on text features, if it was given to `load_folder`.
        sampling: the folder's sampling options, see `megavrc.model.clips.sampling_settings`.
        quantize: what `load_folder` did to the matrices.
    """

    path: Path
    model: VRC
    video_tokenizer: OmniTokenizer
    text_tokenizer: TextTokenizer | None
    text_encoder: TextEncoder | None
    sampling: dict[str, Any]
    quantize: str | None = None

    def identity(self) -> str:
        """A hash that tells this model from others."""
        sums = self.path / CHECKSUMS
        files = [sums] if sums.is_file() else sorted(self.path.glob("*.safetensors"))
        return sha256_json([sha256_file(file) for file in files])[:16]

    def condition(self, prompts: Sequence[str] | None, labels: Sequence[int] | None) -> Condition:
        """Prompts or labels as the model's condition, on the CPU.

        Raises:
            UserError: the other kind of condition, a prompt that is too long, or a label outside the classes.
        """
        config = self.model.config.condition
        if labels is not None and prompts is None and config.is_class:
            return _user_error(label_condition, labels, config)
        if prompts is not None and labels is None and self.text_tokenizer is not None:
            rows = [self.text_tokenizer.encode(prompt, config.slots) for prompt in prompts]
            return Condition(torch.tensor(rows))
        if prompts is not None and labels is None and self.text_encoder is not None:
            features = [prompt_features(self.text_encoder, prompt, config.slots - 1) for prompt in prompts]
            return pad_features(features, config.slots - 1)
        wanted = "labels" if config.is_class else "prompts"
        if config.features:
            wanted += " and the text encoder that it was trained with (tools/generate.py --text_encoder)"
        raise UserError(f"{self.path}: this model is generated from {wanted}")

    def generate(
        self,
        prompts: Sequence[str] | None = None,
        labels: Sequence[int] | None = None,
        *,
        seeds: Sequence[int],
        settings: SamplingSettings | None = None,
        first_frame: Tensor | None = None,
        clip: Tensor | None = None,
        frames: int | None = None,
        batch_size: int = 8,
    ) -> tuple[Tensor, Tensor]:
        """Generate one clip per prompt or label.

        Args:
            prompts, labels: B texts or B classes.
            seeds: B integers; the same seeds give the clips of `generate_video` in transformers.
            settings: sampling (default: the folder's).
            first_frame: uint8 [B, H, W, 3], the first frame of each clip.
            clip: uint8 [B, 1 + 4k, H, W, 3], the beginning of each clip.
            frames: frames of a clip (default and most: what the model was trained for).
            batch_size: clips generated at once.

        Returns:
            ids, long [B, t, g, g], and frames, uint8 [B, T, H, W, 3].

        Raises:
            UserError: inputs that do not fit the model.
        """
        condition = self._condition_of(prompts, labels, seeds)
        given = clip if first_frame is None else first_frame[:, None]
        settings = settings or sampling_settings(self.sampling)
        batches = []
        for start in range(0, len(seeds), batch_size):
            part = slice(start, start + batch_size)
            ids = _user_error(
                generate_clips,
                self.model,
                self.video_tokenizer.net,
                condition[part],
                list(seeds[part]),
                settings,
                given if given is None else given[part],
                frames,
            )
            batches.append((ids, decode_clips(self.video_tokenizer.net, ids)))
        ids, pixels = (torch.cat(items).cpu() for items in zip(*batches, strict=True))
        return ids, pixels

    def stream(
        self,
        prompts: Sequence[str] | None = None,
        labels: Sequence[int] | None = None,
        *,
        seeds: Sequence[int],
        settings: SamplingSettings | None = None,
        clip: Tensor | None = None,
        frames: int | None = None,
        overlap: int | None = None,
        by_frame: bool = True,
    ) -> Iterator[Tensor]:
        """As `generate`, of any length: yields uint8 [B, t, H, W, 3] when frames are ready; together they are all.

        Args:
            prompts, labels, seeds, settings, clip: as for `generate`; a first frame is a clip of one.
            frames: frames of the video, 1 + 4k (default: what the model was trained for; more are made in windows).
            overlap, by_frame: see `megavrc.model.rollout.stream_clips`.

        Raises:
            UserError: inputs that do not fit the model.
        """
        condition = self._condition_of(prompts, labels, seeds)
        settings = settings or sampling_settings(self.sampling)
        chunks = _user_error(
            stream_clips,
            self.model,
            self.video_tokenizer.net,
            condition,
            list(seeds),
            settings,
            clip,
            frames,
            overlap,
            by_frame,
        )
        return _user_errors(chunks)

    def _condition_of(
        self, prompts: Sequence[str] | None, labels: Sequence[int] | None, seeds: Sequence[int]
    ) -> Condition:
        condition = self.condition(prompts, labels)
        given = labels if prompts is None else prompts
        clips = 0 if given is None else len(given)
        if len(seeds) != clips:
            raise UserError(f"seeds: {len(seeds)} for {clips} clips")
        return condition


def load_folder(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | None = None,
    quantize: str | None = None,
    text_encoder: str | Path | None = None,
) -> Folder:
    """Load a folder written by `tools/convert_checkpoint.py to-hf`.

    Its weights are compared with SHA256SUMS where there is one, which takes a second a GB or less.

    Args:
        path: the folder.
        device: where the model is put.
        dtype: of the generator, `fp32` or `bf16` (default: the folder's); its batch norms and the video tokenizer stay
            float32.
        quantize: `int8` for 8-bit matrices (needs torchao).
        text_encoder: folder of the text encoder that a model of text features was trained with (needs transformers).

    Raises:
        UserError: nothing there, not a VRC folder, another format version, damaged or missing files, no such
            device, no torchao, or another text encoder.
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
    model.eval().requires_grad_(False).to(device)
    if dtype is not None:
        cast(model, DTYPES[dtype])
    if quantize is not None:
        _user_error(quantize_int8, model)
    store_for_generation(model)
    content = read_json(path / SAMPLING) if (path / SAMPLING).is_file() else {}
    return Folder(
        path,
        model,
        OmniTokenizer(net.to(device)),
        text,
        encoder,
        {name: content[name] for name in SAMPLING_OPTIONS if name in content},
        quantize,
    )


def cast(model: VRC, dtype: torch.dtype) -> None:
    """Give the parameters another dtype; batch norms stay float32."""
    for module in model.modules():
        if not isinstance(module, BatchNorm):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


def _user_errors(chunks: Iterator[Tensor]) -> Iterator[Tensor]:
    """The chunks on the CPU; ValueErrors on the way are the user's."""
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
