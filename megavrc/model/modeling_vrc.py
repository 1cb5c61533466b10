"""VRC for transformers: one model that holds the generator and the video tokenizer and returns pixels."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import ModelOutput, cached_file

from .clips import SAMPLING_OPTIONS, Label, class_names, class_numbers, decode_clips
from .compressor import BatchNorm
from .condition import Condition, ConditionLike, kind_of
from .config import ModelConfig
from .configuration_vrc import VRCConfig
from .decoder import store_for_generation
from .inputs import OUTPUTS, as_output, check_numbers, prompt_list, warn_of_prompts
from .omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from .pipeline import ClipRequest, VideoPipeline
from .vrc import VRC

# What a folder holds besides weights, configuration and code.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "generation_config.json",
    "README.md",
    "LICENSE",
)

HUB = ("revision", "cache_dir", "token", "local_files_only")  # where on a hub `from_pretrained` looks


@dataclass
class VRCModelOutput(ModelOutput):
    """`VRCOutput`, see there."""

    loss: Tensor | None = None
    loss_first: Tensor | None = None
    loss_later: Tensor | None = None
    loss_frames: Tensor | None = None
    logits_first: Tensor | None = None
    logits_later: Tensor | None = None


def write_sums(folder: Path) -> None:
    """SHA256SUMS of a folder, as `sha256sum -c` reads it; the model card may be edited and is left out."""
    names = ("config.json", "model.safetensors.index.json", *COMPANIONS)
    lines = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".py") or (path.name in names and path.name != "README.md"):
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    (folder / "SHA256SUMS").write_text("".join(lines))


def _are_ids(values: Tensor, count: int) -> bool:
    """Whether they are among the ids 0..count - 1: others would end a process that computes on CUDA."""
    return values.dtype in (torch.int32, torch.int64) and bool(((values >= 0) & (values < count)).all())


class VRCForVideoGeneration(PreTrainedModel):
    """Generates video from text, a class label, a first frame or the beginning of a clip.

    Attributes:
        vrc: the generator.
        video_tokenizer: pixels to ids and back; always float32.
    """

    config_class = VRCConfig
    main_input_name = "ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Layer", "Transformer"]

    def __init__(self, config: VRCConfig) -> None:
        super().__init__(config)
        self.vrc = VRC(ModelConfig.from_dict(config.vrc))
        self.video_tokenizer = OmniTokenizerNet(OmniTokenizerConfig.from_dict(config.video_tokenizer))
        self._freeze()
        self._pipeline: VideoPipeline | None = None
        self._text_tokenizer: Any = None
        self._hub: dict[str, Any] = {}
        self._sampling: dict[str, Any] | None = None
        self._keep_in_fp32_modules_strict = set(self._wide_tensors())
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """Load as in transformers, but every tensor must be there; text tokenizer and sampling defaults are read
        now.
        """
        loaded, info = super().from_pretrained(*args, **options | {"output_loading_info": True})
        wrong = [*sorted(info["missing_keys"]), *sorted(info["unexpected_keys"])]
        if wrong:
            raise ValueError(
                f"{loaded.config.name_or_path}: the folder is incomplete, or its configuration is not that of its "
                f"weights: {len(info['missing_keys'])} tensors are missing, {len(info['unexpected_keys'])} too many, "
                f"the first is {wrong[0]}"
            )
        check_numbers(loaded.state_dict())
        loaded._freeze()  # loading makes new parameters
        loaded._hub = {name: options[name] for name in HUB if name in options}
        loaded._sampling = loaded._read_sampling()
        if loaded.vrc.config.condition.learned_text and loaded._companion("tokenizer.json"):
            _ = loaded.text_tokenizer
        return (loaded, info) if options.get("output_loading_info") else loaded

    def _freeze(self) -> None:
        """The video tokenizer has no part in the loss; plain DDP wants a gradient of everything that is trained."""
        self.video_tokenizer.requires_grad_(False)

    def _wide_tensors(self) -> dict[str, Tensor]:
        """What stays float32 in half precision. Tensor by tensor: transformers would cast integer buffers too."""
        norms = tuple(
            f"vrc.{name}." for name, module in self.vrc.named_modules() if isinstance(module, BatchNorm)
        )
        return {
            name: tensor
            for name, tensor in self.state_dict(keep_vars=True).items()
            if tensor.is_floating_point() and name.startswith(("video_tokenizer.", *norms))
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Every `to`, `half` and `bfloat16` comes through here: what stays float32 moves, but is not cast."""
        wide = list(self._wide_tensors().values())
        kept = {id(tensor) for tensor in (*wide, *(tensor.grad for tensor in wide))}

        def apply(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            narrowed = result.dtype != tensor.dtype and result.dtype in (torch.float16, torch.bfloat16)
            return tensor.to(result.device) if narrowed and id(tensor) in kept else result

        return super()._apply(apply, recurse)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the parts initialise themselves, and `from_pretrained` refuses a folder that lacks tensors."""

    def forward(
        self,
        ids: Tensor,
        condition: ConditionLike,
        drop: Tensor | None = None,
        known: Tensor | None = None,
        context: Tensor | None = None,
        logits: bool = True,
        return_loss: bool = True,
        **_: Any,
    ) -> VRCModelOutput:
        """Teacher-forced losses and logits of token ids, long [B, 1 + F, g, g]; see `VRC.forward`.

        There is always a loss: `return_loss` is how Trainer.evaluate finds out.
        """
        return VRCModelOutput(**vars(self.vrc(ids, condition, drop, known, context, logits)))

    @property
    def text_tokenizer(self) -> Any:
        """The text tokenizer of the folder that the model was loaded from."""
        if self._text_tokenizer is None:
            self._text_tokenizer = PreTrainedTokenizerFast.from_pretrained(self._folder(), **self._hub)
        return self._text_tokenizer

    def _folder(self) -> str:
        folder = self.config.name_or_path
        if not folder:
            raise ValueError(
                "the model was not loaded from a folder, so it has no text tokenizer: pass condition="
            )
        return folder

    def _companion(self, name: str) -> str | None:
        """The path of a file of the folder, None where there is none."""
        if not self.config.name_or_path:
            return None
        return cached_file(
            self._folder(),
            name,
            **self._hub,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )

    @property
    def sampling_defaults(self) -> dict[str, Any]:
        """Sampling options of the folder's generation_config.json."""
        return self._read_sampling() if self._sampling is None else dict(self._sampling)

    def _read_sampling(self) -> dict[str, Any]:
        path = self._companion("generation_config.json")
        content = json.loads(Path(path).read_text()) if path else {}
        return {name: content[name] for name in SAMPLING_OPTIONS if name in content}

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save as in transformers; tokenizer, sampling defaults and model card come along, SHA256SUMS is made anew."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        for name in COMPANIONS:
            source, target = self._companion(name), Path(save_directory) / name
            if source and not target.exists():
                shutil.copyfile(source, target)
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            write_sums(Path(save_directory))

    @property
    def pipeline(self) -> VideoPipeline:
        """Generates with this model; what it keeps on the device goes with it."""
        parts, last = (self.vrc, self.video_tokenizer), self._pipeline
        if last is None or (last.vrc, last.video_tokenizer) != parts:
            self._pipeline = last = VideoPipeline(*parts)
        return last

    def _condition(self, prompt: Any, label: Any, condition: ConditionLike | None) -> Condition:
        """The condition of exactly one of the three inputs."""
        if sum(given is not None for given in (prompt, label, condition)) != 1:
            raise ValueError("give exactly one of prompt, label and condition")
        if condition is not None:
            rows, table = Condition.of(condition), getattr(self.vrc.condition, "table", None)
            if table is not None and not _are_ids(rows.values, len(table.weight)):
                raise ValueError(f"condition: ids are whole numbers from 0 to {len(table.weight) - 1}")
            return rows
        config = self.vrc.config.condition
        kind = kind_of(config)
        wanted = {"label": "label", "features": "condition"}.get(kind.reads, "prompt")
        if wanted != ("prompt" if label is None else "label"):
            raise ValueError(f"this model is conditioned on {config.kind} ({wanted}=)")
        if label is not None:
            names = class_names(self.config.id2label, config.classes)
            return kind.make(config, class_numbers(label, config.classes, names))
        given: Any = prompt_list(prompt)
        if kind.reads == "tokens":
            prompts, tokenizer = given, self.text_tokenizer
            given = tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]
            warn_of_prompts(prompts, given)
        return kind.make(config, given)

    def generate_video(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        label: Label | Sequence[Label] | None = None,
        condition: ConditionLike | None = None,
        first_frame: Any = None,
        clip: Tensor | None = None,
        frames: int | None = None,
        overlap: int | None = None,
        seed: Any = 0,
        guidance: float | None = None,
        later_guidance: float | None = None,
        plausibility: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        first_temperature: float | None = None,
        first_top_k: int | None = None,
        first_top_p: float | None = None,
        later_temperature: float | None = None,
        later_top_k: int | None = None,
        later_top_p: float | None = None,
        speculative: int | None = None,
        draft: str | None = None,
        later_passes: Sequence[int] | int | None = None,
        row_passes: int | None = None,
        output: str = "uint8",
        on_frame: Callable[[int, Tensor], None] | None = None,
        **unknown: Any,
    ) -> Any:
        """Generate clips. What is not given of the sampling comes from generation_config.json.

        Args:
            prompt: one text or B texts; instead, `label`, one class or B classes, by number or by the name in the
                config's `id2label`, or `condition`, as `VRC.forward` takes it.
            first_frame: a picture for all clips or B of them: paths, PIL images, arrays or tensors, [H, W, 3] or
                [3, H, W], uint8 or floating point from 0 to 1; scaled to the shorter side and cut to the middle.
            clip: uint8 [B, 1 + 4k, H, W, 3], the beginning of each clip.
            frames: of a clip, 1 + 4k (default: what the model was trained for; more are made in windows, each taking
                over `overlap` frames from the one before).
            seed: one integer (clip i uses seed + i), or B; a torch.Generator; None for a random one. 64 bits.
            guidance: classifier-free guidance, 1 is none; `later_guidance` of the frames after the first (default: the
                same).
            plausibility: guidance chooses among tokens at least this times as likely as the most likely one.
            temperature, top_k, top_p: how tokens are drawn; also with `first_` or `later_` before the name for the
                first frame or the frames after it.
            speculative: draft tokens that a pass verifies where tokens are drawn one by one (0: none): the same
                distribution, other clips for a seed; `draft`, their first guess, `neighbour`, `repeat` or `random`.
            later_passes: of a model with refinement, passes of each later frame: one number, or a list such as
                [8, 1, 1, 1], where missing ones are 1; `row_passes`, of each row of a first frame drawn in rows.
            output: `uint8`, [B, T, H, W, 3]; `ids` for the video tokens, long [B, t, g, g]; `pil`, B lists of images;
                `np`, an array of floats [B, T, H, W, 3]; `pt`, a tensor of floats [B, T, 3, H, W], both from 0 to 1.
            on_frame: called with (index, ids [B, g, g]) after each latent frame.
            unknown: refused, with the name that was probably meant.

        Returns:
            What `output` says.

        Raises:
            ValueError: inputs that do not fit the model, a prompt too long for it included; tokens asked for of a
                video longer than the model was trained for, which is generated in windows.
        """
        sampling = {name: value for name, value in locals().items() if name in SAMPLING_OPTIONS}
        if output not in OUTPUTS:
            raise ValueError(f"output: {output!r} is not one of {', '.join(OUTPUTS)}")
        request = self._request(
            prompt,
            label,
            condition,
            first_frame=first_frame,
            clip=clip,
            frames=frames,
            overlap=overlap,
            seed=seed,
            **sampling,
            **unknown,
        )
        if output == "ids" or on_frame is not None:
            ids = self._ids(request, on_frame)
            return ids if output == "ids" else as_output(decode_clips(self.video_tokenizer, ids), output)
        return as_output(self.pipeline.generate(request), output)

    def _ids(self, request: ClipRequest, on_frame: Callable[[int, Tensor], None] | None) -> Tensor:
        """The tokens of the clips, each latent frame handed to `on_frame` when it is ready."""
        frames: list[Tensor] = []
        for ids_B1HW in self.pipeline.stream(request, "ids"):
            if on_frame is not None:
                on_frame(len(frames), ids_B1HW[:, 0])
            frames.append(ids_B1HW)
        return torch.cat(frames, dim=1)

    def stream_video(self, prompt: str | Sequence[str] | None = None, **options: Any) -> Iterator[Tensor]:
        """Generate as `generate_video` does, but yield uint8 [B, t, H, W, 3] as frames become ready; together they are
        the video.

        Args:
            prompt: one text or B texts.
            options: see `generate_video`; not `output` and `on_frame`.
        """
        return self.pipeline.stream(self._request(prompt, **options))

    def _request(
        self,
        prompt: str | Sequence[str] | None,
        label: Label | Sequence[Label] | None = None,
        condition: ConditionLike | None = None,
        **options: Any,
    ) -> ClipRequest:
        given = self._condition(prompt, label, condition)
        request = ClipRequest.of(given, self.sampling_defaults, self.pipeline.side, **options)
        if not self.training:
            store_for_generation(self.vrc)
        return request
