"""Tasks of lmms-eval, asked of a checkpoint with fewer visual tokens: its model `megavrc`, which it finds by itself.

    python -m lmms_eval --model megavrc --model_args checkpoint=FOLDER,method=divprune,keep=0.25 --tasks gqa_lite

The only module that imports lmms-eval.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

import torch
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from megavrc.errors import UserError
from megavrc.hardware import check_device
from megavrc.progress import progress
from megavrc.vlm.asking import at_least_one, checked_reduction, in_batches, refuse_without_place
from megavrc.vlm.checkpoint import CheckpointSubject, ClipFrames

MANIFEST = ModelManifest("megavrc", simple_class_path="megavrc.vlm.lmms.ReducedCheckpoint")
SETTINGS = ("max_new_tokens", "num_beams", "temperature", "top_p")
"""What is taken of a task's settings, the last two where answers are drawn; besides `do_sample` and `until`."""


class ReducedCheckpoint(lmms):
    """A checkpoint folder with a method and its budget; without a method, as it is."""

    is_simple = True

    def __init__(
        self,
        checkpoint: str,
        method: str | None = None,
        keep: float = 1.0,
        frames: int = 8,
        device: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        """As `CheckpointSubject` and `reduce`, whose `options` are taken too; `frames` of each clip, evenly spaced."""
        super().__init__()
        self.reduced = checked_reduction(method, keep, options)
        self.frames, self.batch = at_least_one("frames", frames), at_least_one("batch_size", batch_size)
        self.subject = CheckpointSubject(checkpoint, str(check_device(device)))
        if method is not None:
            refuse_without_place(self.subject, [method])
        self.tokens = ""
        "the visual tokens that the last call of `generate_until` saw"

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers [requests], each a prompt with its pictures or clips before it."""
        asked = [request.args for request in requests]
        batches = [
            (settings, part)
            for settings, same in groupby(asked, key=lambda args: args[1])
            for part in in_batches(list(same), self.batch)
        ]
        found: list[str] = []
        with self.reduced.applied(self.subject.model) as seen:
            for settings, part in progress(batches, "lmms-eval"):
                found += self.answers([self.chat(args) for args in part], settings)
        self.tokens = str(seen or "unreduced")
        print(self.tokens)
        return found

    def chat(self, args: tuple[Any, ...]) -> list[dict[str, Any]]:
        """One user's message: what the task shows of the document, then its text."""
        text, _, visuals_of, number, task, split = args
        content: list[dict[str, Any]] = []
        for shown in visuals_of(self.task_dict[task][split][number]) or ():
            if isinstance(shown, str):
                content.append(
                    {"type": "video", "video": ClipFrames(Path(shown), self.frames, f"{task} {number}")}
                )
            elif hasattr(shown, "convert"):
                content.append({"type": "image", "image": shown.convert("RGB")})
            else:
                what = type(shown).__name__
                raise UserError(f"{task} {number}: {what} is neither a picture nor a clip's file")
        return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]

    @torch.no_grad()
    def answers(self, chats: list[list[dict[str, Any]]], settings: dict[str, Any]) -> list[str]:
        """The answers to one batch, each up to the first of the task's `until`."""
        parts = [part for chat in chats for part in chat[0]["content"] if part["type"] == "video"]
        clips = [part["video"] for part in parts]
        for part, clip in zip(parts, clips, strict=True):
            part["video"] = clip()
        inputs = self.subject.prompts(chats, clips)
        draws = bool(settings.get("do_sample") and settings.get("temperature", 1))
        names = SETTINGS if draws else SETTINGS[:2]
        how = {name: settings[name] for name in names if settings.get(name) is not None}
        ids = self.subject.model.generate(**inputs, **{"max_new_tokens": 1024, "do_sample": draws} | how)
        ends = settings.get("until") or []
        return [
            up_to(text, [ends] if isinstance(ends, str) else ends)
            for text in self.subject.words(ids[:, inputs["input_ids"].shape[1] :])
        ]

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        """Refused: reduction is measured on answers."""
        raise NotImplementedError("megavrc answers tasks of generate_until; this one wants likelihoods")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        """Refused: `compress_vlm bench` measures later turns."""
        raise NotImplementedError("megavrc answers tasks of generate_until; this one has several rounds")


def up_to(text: str, ends: Sequence[str]) -> str:
    """The text before the first of `ends`, without blanks around it."""
    for end in ends:
        if end:
            text = text.split(end)[0]
    return text.strip()
