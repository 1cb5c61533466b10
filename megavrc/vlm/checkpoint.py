"""A checkpoint that a user brings, and a file of questions: asked exactly as the mini-VLM is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from numpy.typing import NDArray
from torch import Tensor

from megavrc.errors import UserError
from megavrc.files import named_path, read_jsonl
from megavrc.pretrained import loading, whole_model
from megavrc.video.errors import VideoError
from megavrc.video.read import count_frames, probe, read_frames, read_picture
from megavrc.vlm.accuracy import OWN
from megavrc.vlm.asking import plain
from megavrc.vlm.questions import Conversation, Kind, Question

LINE = ("image", "video", "turns")
TURN = ("question", "answer", "type")


class CheckpointSubject:
    """A folder of transformers with its processor, whose chat template writes the prompts."""

    def __init__(self, folder: str | Path, device: str, longest: int = 16) -> None:
        path = Path(folder)
        if not (path / "config.json").is_file():
            raise UserError(f"{path}: no config.json there; expected a checkpoint folder of transformers")
        with loading(path, "processor"):
            self.processor = transformers.AutoProcessor.from_pretrained(path, local_files_only=True)
        if getattr(self.processor, "chat_template", None) is None:
            raise UserError(
                f"{path}: its processor has no chat template, so questions cannot be put into prompts"
            )
        model = whole_model(path, "checkpoint", "auto", transformers.AutoModelForImageTextToText)
        self.model = model.eval().to(device)
        self.processor.tokenizer.padding_side = "left"
        self.name, self.longest, self.device = named_path(path).name, longest, device

    def inputs(self, conversations: Sequence[Conversation], turn: int) -> dict[str, Tensor]:
        clips = [item.source for item in conversations if isinstance(item.source, ClipFrames)]
        return self.prompts([messages(item, turn) for item in conversations], clips)

    def prompts(self, chats: list[list[dict[str, Any]]], clips: Sequence["ClipFrames"]) -> dict[str, Tensor]:
        """The inputs of `generate` for chats with pictures and frames in them, and the clips that frames are from."""
        how: dict[str, Any] = {"padding": True}
        if any(part["type"] == "video" for chat in chats for turn in chat for part in turn["content"]):
            how["do_sample_frames"] = False  # they are chosen: some processors would take a few of them
        if clips:
            how["video_metadata"] = [clip.times for clip in clips]
        found = self.processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=how,
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
    UserError: a line that is another, a file that is not there; on reading, one that holds no picture or no clip.
    """
    found = []
    for number, line in read_jsonl(path, "turns"):
        where = f"{path} line {number}"
        _known(line, LINE, where)
        kinds: list[Kind] = [kind for kind in ("image", "video") if line.get(kind) is not None]
        if len(kinds) != 1 or not isinstance(line[kinds[0]], str):
            raise UserError(f'{where}: expected a file name as either "image" or "video"')
        file, turns = path.parent / line[kinds[0]], line["turns"]
        if not file.is_file():
            raise UserError(f"{where}: {file} is not there")
        if not isinstance(turns, list) or not turns:
            raise UserError(f'{where}: no turns; "turns" is a list of questions')
        questions = tuple(_question(turn, where) for turn in turns)
        if kinds[0] == "image":
            found.append(Conversation("image", questions, partial(_picture, file, where), file))
        else:
            clip = ClipFrames(file, frames, where)
            found.append(Conversation("video", questions, clip, clip))
    if not found:
        raise UserError(f"{path}: no questions in it")
    return found


def _known(given: dict[str, Any], keys: Sequence[str], where: str) -> None:
    if unknown := [key for key in given if key not in keys]:
        raise UserError(f'{where}: unknown key "{unknown[0]}"; there are {", ".join(keys)}')


def _question(turn: Any, where: str) -> Question:
    if not isinstance(turn, dict) or not all(
        isinstance(turn.get(key), str) for key in ("question", "answer")
    ):
        raise UserError(
            f'{where}: a turn is an object with texts "question" and "answer", not {str(turn)[:60]}'
        )
    _known(turn, TURN, f"{where}, a turn")
    if not plain(turn["answer"]):
        raise UserError(f'{where}: the answer to "{turn["question"][:60]}" is empty')
    name = str(turn.get("type") or "any")
    if OWN.fullmatch(name):
        raise UserError(f'{where}: type "{name[:60]}" is a name of the benchmark\'s own; choose another')
    return Question(name, turn["question"], turn["answer"])


def _picture(file: Path, where: str) -> NDArray[np.uint8]:
    try:
        return read_picture(file.read_bytes())[None]
    except VideoError as error:
        raise UserError(f"{where}: {file}: {error.reason}") from None


@dataclass(frozen=True)
class ClipFrames:
    """Frames of a file, evenly spaced over it, read when called."""

    file: Path
    count: int
    where: str = field(compare=False)
    "the line of the file of questions"

    def __call__(self) -> NDArray[np.uint8]:
        try:
            return read_frames(self.file, self.times["frames_indices"])
        except VideoError as error:
            raise UserError(f"{self.where}: {self.file}: {error.reason}") from None

    @cached_property
    def times(self) -> dict[str, Any]:
        """What transformers calls the metadata of a video: which of its frames these are, and their rate."""
        try:
            length, rate = count_frames(self.file), probe(self.file).fps
        except VideoError as error:
            raise UserError(f"{self.where}: {self.file}: {error.reason}") from None
        wanted = np.linspace(0, length - 1, self.count).round().astype(int).tolist()
        return {"total_num_frames": length, "fps": rate or None, "frames_indices": wanted}
