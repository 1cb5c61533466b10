"""A checkpoint that a user brings, and the files of questions that come with it."""

import json
import shutil
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BatchFeature

from megavrc.errors import UserError
from megavrc.results import read_result
from megavrc.video.write import write_mp4
from megavrc.vlm.asking import (
    Reduced,
    ask,
    at_least_one,
    checked_reduction,
    plain,
    refuse_without_place,
    turns_of,
)
from megavrc.vlm.bench import bench, darkened, of_checkpoint
from megavrc.vlm.checkpoint import CheckpointSubject, read_questions
from megavrc.vlm.commands import run_method
from megavrc.vlm.joint import joint_cases
from megavrc.vlm.tiny import IMAGE


def question_file(folder: Path, *lines: Any) -> Path:
    for name in {"a.png", *(line["image"] for line in lines if str(line.get("image")).startswith("p"))}:
        Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(folder / name)
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


TURNS = [{"question": "what is", "answer": "red", "type": "colour"}, {"question": "what", "answer": "red"}]


def line_of(**turn: Any) -> dict[str, Any]:
    return {"image": "a.png", "turns": [{"question": "what", "answer": "red", **turn}]}


def test_a_file_of_questions(tmp_path: Path) -> None:
    [found] = read_questions(question_file(tmp_path, {"image": "a.png", "turns": TURNS}))
    assert found.kind == "image" and found.frames.shape == (1, 32, 32, 3)
    assert [question.type for question in found.questions] == ["colour", "any"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"turns": TURNS}, "line 1: expected a file name"),
        ({"image": "a.png", "video": "a.png", "turns": TURNS}, "line 1: expected a file name"),
        ({"image": "b.png", "turns": TURNS}, "b.png is not there"),
        ({"image": "a.png", "turns": []}, "no turns"),
        ({"image": "a.png", "turns": 5}, "no turns"),
        (
            {"image": "a.png", "turns": TURNS, "split": "test"},
            'unknown key "split"; there are image, video, turns',
        ),
        (line_of(answer=3), 'a turn is an object with texts "question" and "answer"'),
        (line_of(typ="digit"), 'a turn: unknown key "typ"; there are question, answer, type'),
        (line_of(image="b.png"), 'a turn: unknown key "image"'),
        (line_of(answer=" "), 'the answer to "what" is empty'),
        *(
            (line_of(type=name), f'line 1: type "{name}" is a name of the benchmark\'s own; choose another')
            for name in ("all", "bits", "budget", "compression", "detail", "gist", "turn_12", "lost_all")
        ),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_questions(question_file(tmp_path, line))


def test_a_file_from_another_system_is_read(tmp_path: Path) -> None:
    """With a byte order mark, ends of lines of two characters, empty lines, and a very long question."""
    path = question_file(tmp_path, line_of(question="what is " * 1250), line_of())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    first, second = read_questions(path)
    assert len(first.questions[0].text) == 10_000 and second.questions[0].type == "any"
    path.write_text("\n")
    with pytest.raises(UserError, match="no questions in it"):
        read_questions(path)


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [("image", b"no picture", "not a picture"), ("image", b"", "not a picture"), ("video", b"no clip", "")],
)
def test_a_file_that_shows_nothing_is_named_with_its_line(
    tmp_path: Path, kind: str, content: bytes, words: str
) -> None:
    (tmp_path / "b.file").write_bytes(content)
    [found] = read_questions(question_file(tmp_path, {kind: "b.file", "turns": TURNS}))
    with pytest.raises(UserError, match=rf"questions\.jsonl line 1: .*b\.file: .*{words}"):
        assert found.frames.any()


@pytest.mark.parametrize(
    ("answer", "said"), [("A", "a."), ("A", " A"), ("+", "+"), ("3.5", "3.5"), ("Le chat", "le chat!")]
)
def test_an_answer_of_an_article_or_a_mark_counts(answer: str, said: str) -> None:
    assert plain(answer) == plain(said) != plain("")
    assert plain("A") != plain("the") and plain("a cat") == plain("cat")


def test_a_checkpoint_of_the_user_is_asked_in_the_same_way(checkpoint: Path, tmp_path: Path) -> None:
    turns = [*TURNS, {"question": "is", "answer": "red"}]
    asks = question_file(tmp_path, {"image": "a.png", "turns": turns}, {"image": "p.png", "turns": turns})
    subject = CheckpointSubject(checkpoint, "cpu", longest=2)
    inputs = subject.inputs(read_questions(asks), 1)
    assert (inputs["input_ids"][0] == IMAGE).sum() == 64
    assert inputs["input_ids"][0, 64:].tolist() == [5, 6, 7, 5]  # what is red what
    run_method("divprune", 0.25, checkpoint=checkpoint, questions=asks, turns=3, json=tmp_path / "run.json")
    whole, reduced = read_result(tmp_path / "run.json")["cases"]
    assert whole["metrics"]["budget"]["value"] == 1 and reduced["metrics"]["budget"]["value"] == 0.25
    assert whole["metrics"]["any"]["n"] == 2 and whole["metrics"]["colour"]["n"] == 1


def test_a_checkpoint_that_is_named_from_inside_has_its_name(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint)
    assert CheckpointSubject(".", "cpu").name == checkpoint.name


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json there"):
        CheckpointSubject(tmp_path, "cpu")


def test_a_checkpoint_whose_weights_are_not_whole_is_named(checkpoint: Path, tmp_path: Path) -> None:
    """Missing ones would be random; the head that is tied to the embedding is in no file, and not missed."""
    folder = shutil.copytree(checkpoint, tmp_path / "own")
    model = CheckpointSubject(folder, "cpu").model
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    assert "lm_head.weight" not in weights
    CheckpointSubject(folder, "cpu")
    left = {name: value for name, value in weights.items() if not name.endswith(("_1.bias", "_2.bias"))}
    save_file(left, file, {"format": "pt"})
    message = r"own: 2 weights of the checkpoint are missing \(model\.multi_modal_projector\.linear_1\.bias\)"
    with pytest.raises(UserError, match=message):
        CheckpointSubject(folder, "cpu")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"own: .*header"):
        CheckpointSubject(folder, "cpu")


@pytest.mark.parametrize(
    ("method", "keep", "options", "words"),
    [
        (None, 0.25, {}, "keep is of a method, and none is given: add method, or leave it out"),
        (None, 1.0, {"selection": "frozen"}, "selection is of a method, and none is given"),
        ("pool", 25, {}, "keep is a share above 0 and at most 1, not 25"),
        ("pool", "half", {}, "keep is a share above 0 and at most 1, not 'half'"),
        ("random", 0.5, {"sed": 1}, "random has no option sed: seed"),
        ("random", 0.5, {"selection": "new"}, "selection is fresh or frozen, not 'new'"),
    ],
)
def test_a_reduction_that_cannot_be_is_refused_before_a_model_is_loaded(
    method: str | None, keep: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        checked_reduction(method, keep, options)
    assert checked_reduction(None, 1, {}) == Reduced()
    assert checked_reduction("random", 0.5, {"seed": 3, "selection": "frozen"}).options["seed"] == 3


@pytest.mark.parametrize("value", ["auto", "auto:4", 0, -1, 2.5])
def test_a_number_of_frames_or_of_a_batch_is_whole(value: Any) -> None:
    with pytest.raises(UserError, match=f"batch_size: {value}, give a whole number of at least 1"):
        at_least_one("batch_size", value)
    assert at_least_one("batch_size", "8") == at_least_one("batch_size", 8) == 8


class Recorder:
    """What a processor of transformers is asked for."""

    chat_template = "given"

    def apply_chat_template(self, chats: Any, processor_kwargs: dict[str, Any], **_: Any) -> BatchFeature:
        self.chats, self.kwargs = chats, processor_kwargs
        return BatchFeature({"input_ids": torch.zeros(len(chats), 3, dtype=torch.int64)})


def test_frames_of_a_clip_are_those_that_were_chosen_with_their_times(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Processors of some families take frames of a clip themselves, and write seconds into the prompt."""
    grey = np.arange(20, dtype=np.uint8)[:, None, None, None] * 12
    write_mp4(tmp_path / "a.mp4", np.broadcast_to(grey, (20, 32, 32, 3)), fps=10)
    asks = question_file(tmp_path, {"video": "a.mp4", "turns": TURNS}, {"video": "a.mp4", "turns": TURNS})
    subject = CheckpointSubject(checkpoint, "cpu")
    subject.processor = recorder = Recorder()
    known = read_questions(asks, frames=5)
    subject.inputs(known, 0)
    shown = recorder.chats[1][0]["content"][0]["video"]
    assert len(shown) == 5 and shown[-1].mean() > shown[0].mean() + 100
    assert recorder.kwargs["do_sample_frames"] is False
    times = {"total_num_frames": 20, "fps": 10.0, "frames_indices": [0, 5, 10, 14, 19]}
    assert recorder.kwargs["video_metadata"] == [times, times]
    subject.inputs([replace(item, show=partial(darkened, item)) for item in known], 0)
    assert recorder.kwargs["video_metadata"] == [
        times,
        times,
    ]  # a black clip is asked about in the same prompt
    subject.inputs(read_questions(question_file(tmp_path, line_of())), 0)
    assert recorder.kwargs == {"padding": True}


def test_turns_that_not_all_conversations_have_are_told(tmp_path: Path) -> None:
    long, short = {"image": "a.png", "turns": TURNS}, line_of()
    both = read_questions(question_file(tmp_path, long, short))
    with pytest.warns(UserWarning, match="a conversation has 1 of 2 turns: of each the first 1 are asked"):
        assert turns_of(both, 3) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert turns_of(both, 1) == 1 and turns_of(both[:1], 3) == 2


def test_too_few_conversations_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    subject = CheckpointSubject(checkpoint, "cpu")
    one = read_questions(question_file(tmp_path, line_of()))
    with pytest.raises(UserError, match="2 conversations about 1 images: two images are the least"):
        of_checkpoint(subject, one + one, None)  # of the picture whose threshold was set on it
    with pytest.raises(UserError, match="0 conversations about 0 videos"):
        of_checkpoint(subject, one + one, ["video"])
    lines = [line_of(answer=f"w{number}") | {"image": f"p{number // 2}.png"} for number in range(24)]
    twelve = read_questions(question_file(tmp_path, *lines))
    [(_, sets, others)] = of_checkpoint(subject, twelve, None, 3)
    assert [item.questions[0].answer for item in sets[0]] == ["w2", "w3", "w4"]
    assert [item.questions[0].answer for item in others] == ["w0", "w20"]


@pytest.mark.parametrize("option", ["seeds", "mini"])
def test_what_only_the_mini_vlm_has_is_refused_for_a_checkpoint(option: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"seeds": [1], "mini": tmp_path}
    with pytest.raises(UserError, match="--mini and --seeds are of the mini-VLM"):
        bench(tmp_path, checkpoint=tmp_path, questions=tmp_path / "none", **{option: given[option]})


def test_what_the_model_has_no_place_for_is_refused_before_anything_is_asked(
    checkpoint: Path, tmp_path: Path
) -> None:
    asks = question_file(tmp_path, line_of(), line_of() | {"image": "p.png"})
    message = "has no place for evs: it compares frames, and this family has none"
    with pytest.raises(UserError, match=message):
        bench(tmp_path / "out", checkpoint=checkpoint, questions=asks, methods=["divprune", "evs"])
    with pytest.raises(UserError, match=message):
        run_method("evs", checkpoint=checkpoint, questions=asks)
    assert not (tmp_path / "out").exists()
    subject = CheckpointSubject(checkpoint, "cpu")
    refuse_without_place(subject)
    subject.model.config.model_type = "idefics3"
    with pytest.raises(UserError, match=r"\(idefics3\) has no place for .*: no such family here: llava"):
        refuse_without_place(subject)


def test_a_batch_that_does_not_fit_is_one_line_and_the_grid_says_so(checkpoint: Path, tmp_path: Path) -> None:
    subject = CheckpointSubject(checkpoint, "cpu")
    asked = read_questions(question_file(tmp_path, line_of(), line_of()))

    whole, full = subject.model, [False]

    def call(model: Any, *_: Any) -> None:
        if model is not whole or full[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def lost(model: Any, *_: Any) -> None:
        if model is not whole:
            raise UserError("a.png is gone")

    hook = whole.register_forward_pre_hook(call)
    first, second = joint_cases(subject, {0: asked}, [], [], ["int4"], turns=1, batch=2)
    assert "any" in first["metrics"] and second["facts"] == {
        "refused": "a second model does not fit into memory"
    }
    hook.remove()
    hook = whole.register_forward_pre_hook(lost)
    assert joint_cases(subject, {0: asked}, [], [], ["int4"], turns=1, batch=2)[1]["facts"] == {
        "refused": "a.png is gone"
    }
    hook.remove()
    whole.register_forward_pre_hook(call)
    full[0] = True
    with pytest.raises(UserError, match="2 conversations at a time need too much memory: lower --batch"):
        ask(subject, asked, Reduced(), 1, 2)
