"""A checkpoint that a user brings, and a file of questions: asked exactly as the mini-VLM is."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from numpy.typing import NDArray
from torch import Tensor

from megavrc.errors import UserError
from megavrc.files import read_jsonl
from megavrc.video.read import count_frames, read_frames, read_picture
from megavrc.vlm.questions import Conversation, Kind, Question


class CheckpointSubject:
    """A folder of transformers with its processor, whose chat template writes the prompts."""

    def __init__(self, folder: str | Path, device: str, longest: int = 16) -> None:
        path = Path(folder)
        if not (path / "config.json").is_file():
            raise UserError(f"{path}: no config.json there; expected a checkpoint folder of transformers")
        try:
            self.processor = transformers.AutoProcessor.from_pretrained(path)
            self.model = transformers.AutoModelForImageTextToText.from_pretrained(path, dtype="auto")
        except (ImportError, OSError, ValueError) as error:
            raise UserError(f"{path}: {' '.join(str(error).split())[:300]}") from error
        if getattr(self.processor, "chat_template", None) is None:
            raise UserError(
                f"{path}: its processor has no chat template, so questions cannot be put into prompts"
            )
        self.model.eval().to(device)
        self.processor.tokenizer.padding_side = "left"
        self.name, self.longest, self.device = path.name, longest, device

    def inputs(self, conversations: Sequence[Conversation], turn: int) -> dict[str, Tensor]:
        found = self.processor.apply_chat_template(
            [messages(item, turn) for item in conversations],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        return dict(found.to(self.device, dtype=self.model.dtype))

    def words(self, ids: Tensor) -> list[str]:
        return self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)


def messages(conversation: Conversation, turn: int) -> list[dict[str, Any]]:
    """A chat up to the question of `turn`: the picture or clip before the first question."""
    frames = conversation.frames
    shown: Any = frames[0] if conversation.kind == "image" else frames
    chat: list[dict[str, Any]] = []
    for question in conversation.questions[: turn + 1]:
        content = [{"type": "text", "text": question.text}]
        chat.append({"role": "user", "content": content})
        chat.append({"role": "assistant", "content": [{"type": "text", "text": question.answer}]})
    chat[0]["content"].insert(0, {"type": conversation.kind, conversation.kind: shown})
    return chat[:-1]


def read_questions(path: Path, frames: int = 8) -> list[Conversation]:
    """Conversations from a JSON lines file; pictures and clips are read when they are asked about.

    A line is {"image": FILE, "turns": [{"question": .., "answer": .., "type": ..}, ..]}, or with "video"; files are
    relative to the JSON lines file, `type` may be missing. Of a clip, `frames` frames are shown, evenly spaced.
    """
    found = []
    for number, line in read_jsonl(path, "turns"):
        where = f"{path} line {number}"
        kinds: list[Kind] = [kind for kind in ("image", "video") if isinstance(line.get(kind), str)]
        if len(kinds) != 1:
            raise UserError(f'{where}: expected a file name as either "image" or "video"')
        file = path.parent / line[kinds[0]]
        if not file.is_file():
            raise UserError(f"{where}: {file} is not there")
        questions = tuple(_question(turn, where) for turn in line["turns"]) if line["turns"] else ()
        if not questions:
            raise UserError(f"{where}: no turns")
        show = partial(_picture, file) if kinds[0] == "image" else partial(_clip, file, frames)
        found.append(Conversation(kinds[0], questions, show))
    if not found:
        raise UserError(f"{path}: no questions in it")
    return found


def _question(turn: Any, where: str) -> Question:
    if not isinstance(turn, dict) or not all(
        isinstance(turn.get(key), str) for key in ("question", "answer")
    ):
        raise UserError(
            f'{where}: a turn is an object with texts "question" and "answer", not {str(turn)[:60]}'
        )
    return Question(str(turn.get("type", "any")), turn["question"], turn["answer"])


def _picture(file: Path) -> NDArray[np.uint8]:
    return read_picture(file.read_bytes())[None]


def _clip(file: Path, frames: int) -> NDArray[np.uint8]:
    wanted = np.linspace(0, count_frames(file) - 1, frames).round().astype(int)
    return read_frames(file, wanted.tolist())
