"""Clips made while they are measured: by a converted folder that generates, by a tokenizer that reconstructs."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megavrc.errors import UserError
from megavrc.evaluation.clip_files import open_clips, planned_clips
from megavrc.evaluation.clip_source import ClipSource, Frames, Part, PlannedClip
from megavrc.evaluation.protocols import FVDProtocol, WindowClips, real_windows
from megavrc.files import read_json, sha256_json
from megavrc.generation.folder import Folder, load_folder
from megavrc.generation.folder_format import MODEL_TYPE
from megavrc.tokenizers import OmniTokenizer
from megavrc.video.read import Crop, resize_frames


@dataclass(frozen=True)
class GeneratedClips:
    """A clip for each prompt or label of a list, with the folder's own sampling and a seed of its own."""

    name: str
    clips: Sequence[PlannedClip]
    folder: Folder
    seeds: Sequence[int]
    batch: int = 8
    storage: str = "none"
    split: str | None = None
    _made: dict[int, Frames] = field(default_factory=dict, repr=False)  # the last batch

    def identity(self, index: int) -> str:
        what = [self.folder.identity(), self.folder.sampling, self.folder.quantize, str(self._dtype)]
        # A sample's numbers depend on its own seed only; near ties the size of its batch decides.
        return sha256_json([*what, *self.clips[index][1:], self.seeds[index], self.batch])

    @property
    def made_with(self) -> dict[str, Any]:
        """The model and its sampling, for a result."""
        how = {"model": self.folder.identity(), "dtype": str(self._dtype).removeprefix("torch.")}
        return how | {
            "sampling": self.folder.sampling,
            "seed": min(self.seeds, default=0),
            "batch": self.batch,
        }

    @property
    def _dtype(self) -> torch.dtype:
        return self.folder.model.tokens.weight.dtype

    def length(self, index: int) -> int:
        return 1 + self.folder.model.config.frames * self.folder.video_tokenizer.config.temporal_patch

    def read(
        self, index: int, wanted: Sequence[int], size: int | None = None, crop: Crop = "center"
    ) -> Frames:
        if index not in self._made:
            start = index - index % self.batch
            part = range(start, min(start + self.batch, len(self.clips)))
            rows = [self.clips[i] for i in part]
            prompts = [row.prompt for row in rows if row.prompt is not None]
            labels = [row.label for row in rows if row.label is not None]
            by_class = self.folder.model.config.condition.is_class
            _, frames = self.folder.generate(
                None if by_class else prompts,
                labels if by_class else None,
                seed=[self.seeds[i] for i in part],
                batch_size=self.batch,
            )
            self._made.clear()
            self._made.update(zip(part, frames.numpy(), strict=True))
        return resize_frames(self._made[index][list(wanted)], size, crop)


def generated(
    name: str, folder: Folder, planned: Sequence[PlannedClip], seed: int, batch: int
) -> GeneratedClips:
    """Clips for a list; UserError where it does not say what the model is asked for."""
    what = "label" if folder.model.config.condition.is_class else "prompt"
    missing = [clip.key for clip in planned if getattr(clip, what) is None]
    if missing:
        raise UserError(
            f"{name}: generates from a {what} a clip, and {missing[0]} has none: give --planned, a list with them"
        )
    return GeneratedClips(name, planned, folder, range(seed, seed + len(planned)), batch)


@dataclass(frozen=True)
class ReconstructedClips:
    """Other clips after a video tokenizer's encoding and decoding: the ceiling of every model on it."""

    name: str
    tokenizer: OmniTokenizer
    of: ClipSource
    storage: str = "none"

    @property
    def split(self) -> str | None:
        return self.of.split

    @property
    def clips(self) -> Sequence[PlannedClip]:
        return self.of.clips

    @property
    def made_with(self) -> dict[str, Any]:
        """The tokenizer, for a result."""
        return {"tokenizer": self.tokenizer.sha256, "precision": self.tokenizer.precision}

    def identity(self, index: int) -> str:
        return sha256_json([self.tokenizer.sha256, self.tokenizer.precision, self.of.identity(index)])

    def length(self, index: int) -> int:
        return self.of.length(index)

    def read(
        self, index: int, wanted: Sequence[int], size: int | None = None, crop: Crop = "center"
    ) -> Frames:
        real = self.of.read(index, wanted, size, crop)
        patch = self.tokenizer.config.temporal_patch
        missing = -(len(real) - 1) % patch  # it takes 1 + 4k frames: the last one stays
        whole = np.concatenate([real, np.repeat(real[-1:], missing, axis=0)])
        try:
            made = self.tokenizer.decode(self.tokenizer.encode(torch.from_numpy(whole[None])))
        except ValueError as error:
            key = self.clips[index].key
            raise UserError(f"{self.of.name}: {key}: the video tokenizer does not take it: {error}") from None
        frames: Frames = made[0, : len(real)].cpu().numpy()
        return frames


def open_source(
    given: Path,
    planned: Path | None = None,
    like: ClipSource | None = None,
    seed: int = 0,
    batch: int = 8,
    device: str = "cpu",
) -> ClipSource:
    """Clips in files, see `open_clips`, or a model that makes them.

    Args:
        given: what `open_clips` takes; a converted folder, which generates for the list `planned`, or else for the
            prompts or labels of `like`; the folder or .ckpt of a video tokenizer, which reconstructs `like`.
        planned: what must be there, or be generated: JSON lines with `id`, `caption` or `label`.
        like: the real clips.
        seed: generated clip i has the seed `seed` + i.
        batch: clips generated at once.
        device: `cpu` or `cuda`.
    """
    model = is_model(given)
    if model == "generator":
        plan = planned_clips(planned) if planned else like.clips if like else ()
        if not plan:
            raise UserError(f"{given}: a model; say with --planned for which prompts or labels it generates")
        return generated(str(given), load_folder(given, device), plan, seed, batch)
    if model == "tokenizer":
        if like is None:
            raise UserError(f"{given}: a video tokenizer; there are no real clips that it could reconstruct")
        return ReconstructedClips(str(given), OmniTokenizer.from_checkpoint(given, device), like)
    return open_clips(given, planned)


def some_clips(source: ClipSource, chosen: Sequence[int]) -> ClipSource:
    """Some clips of a source, by their indices there; a model generates no others, and each with the seed it had."""
    if not isinstance(source, GeneratedClips):
        return Part(source, chosen)
    clips, seeds = [source.clips[index] for index in chosen], [source.seeds[index] for index in chosen]
    return replace(source, clips=clips, seeds=seeds, _made={})


def asked_for(real: ClipSource, protocol: FVDProtocol, kinds: set[str | None], seed: int) -> WindowClips:
    """The windows of real clips that a protocol chooses: what is reconstructed, or whose prompts are answered.

    Where all clips are generated and the protocol is a named one there are as many as it has, as the projects do it:
    where there are fewer real ones, they are asked for again.

    Args:
        kinds: of what makes the clips, see `is_model`.
        seed: of the choice.
    """
    chosen = real_windows(real, protocol, seed=seed).windows
    all_new = kinds == {"generator"} and not protocol.name.startswith("custom")
    count = protocol.n if all_new else len(chosen)
    return WindowClips(real, [chosen[i % len(chosen)] for i in range(count)], protocol.stride)


def is_model(given: Path) -> str | None:
    """Whether it makes clips: "generator" or "tokenizer"."""
    if given.suffix == ".ckpt":
        return "tokenizer"
    if not (given / "config.json").is_file():
        return None
    config = read_json(given / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    return "generator" if kind == MODEL_TYPE else "tokenizer"
