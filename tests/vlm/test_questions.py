"""Questions of the mini-VLM: answers are in the pixels, balanced, and nowhere else."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
import torch

from megavrc.vlm import questions
from megavrc.vlm.alignment import UNKNOWN, motion_like
from megavrc.vlm.questions import (
    ANSWERS,
    CELL,
    COLOURS,
    DIRECTIONS,
    PLACES,
    SEEN,
    SIDE,
    TYPES,
    Kind,
    conversation,
    held_out,
    labelled,
)

KINDS: tuple[Kind, ...] = ("image", "video")


def cells(frame: Any) -> list[str | None]:
    """The colour at each place, by its strongest pixels; None where it is as dark as the background, or a digit."""
    found: list[str | None] = []
    for place in range(SIDE * SIDE):
        y, x = CELL * (place // SIDE), CELL * (place % SIDE)
        cell = frame[y : y + CELL - 2, x : x + CELL].reshape(-1, 3).astype(float)  # without the bar
        bright = cell[cell.max(-1) > 110]
        colour = np.median(bright, 0) if len(bright) > 30 else None
        near = None if colour is None else min(COLOURS, key=lambda name: np.abs(colour - COLOURS[name]).sum())
        found.append(near)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_is_a_function_of_seed_and_index(kind: Kind) -> None:
    one, again, other = (conversation(kind, "test", 3, index) for index in (7, 7, 8))
    assert one.questions == again.questions and np.array_equal(one.frames, again.frames)
    assert not np.array_equal(one.frames, other.frames)
    assert not np.array_equal(one.frames, conversation(kind, "test", 4, 7).frames)
    assert one.questions[0].type == TYPES[kind][7 % len(TYPES[kind])]


def test_answers_about_pictures_are_in_the_pixels() -> None:
    for index in range(40):
        item = conversation("image", "train", 0, index)
        seen = cells(item.frames[0])
        for question in item.questions:
            about = question.text.split()[1]
            if question.type == "colour":
                assert seen[PLACES.index(about)] == question.answer
            elif question.type == "count":
                assert sum(colour is not None for colour in seen) == int(question.answer)
            else:  # a digit is drawn once, in white, where no shape is
                assert seen[PLACES.index(about)] is None and question.type == "digit"


def test_answers_about_clips_are_in_the_pixels() -> None:
    for index in range(40):
        item = conversation("video", "test", 1, index)
        seen = [cells(frame) for frame in item.frames]
        moves = {}
        for time in range(1, len(seen)):
            for place, colour in enumerate(seen[time]):
                if colour != seen[time - 1][place] and colour is not None:
                    moves[colour] = (time, place, seen[time - 1].index(colour))
        assert len(moves) == 4
        for question in item.questions:
            about = question.text.split()[1]
            if question.type == "colour":
                assert {frame[PLACES.index(about)] for frame in seen} == {question.answer}
            elif question.type == "mover":
                assert moves[question.answer][0] == int(about)
            elif question.type == "when":
                assert moves[about][0] == int(question.answer)
            else:
                x, y = DIRECTIONS[question.answer]
                assert moves[about][1] - moves[about][2] == x + SIDE * y


def test_labels_of_a_clip_are_what_its_tokens_show_and_how_it_moved() -> None:
    for index in range(6):
        frames, labels = labelled("video", 0, index)
        assert [[SEEN[number] for number in row] for row in labels.reshape(8, 16)] == [
            cells(frame) for frame in frames
        ]
        ways = motion_like(torch.from_numpy(labels)[None])[0]
        assert (ways[0] == UNKNOWN).all() and ((ways[1:] == UNKNOWN).numpy() == (labels[1:] == 0)).all()
        for time, y, x in zip(*np.nonzero(labels[1:]), strict=True):
            row, column = (
                int(found[0]) for found in np.nonzero(labels[time] == labels[time + 1, y, x])
            )  # a frame earlier
            assert [*DIRECTIONS.values(), (0, 0)][ways[time + 1, y, x]] == (x - column, y - row)
        assert len(ways.unique()) == len(DIRECTIONS) + 2  # all directions, stood, unknown


@pytest.mark.parametrize("kind", KINDS)
def test_objects_of_the_test_set_are_unseen_in_training(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[Any]] = defaultdict(set)
    draw, digit = questions._sprite, questions._draw_digit
    monkeypatch.setattr(questions, "_sprite", lambda thing, rng: seen[split].add(thing) or draw(thing, rng))

    def note(picture: Any, number: int, place: int, *rest: Any) -> None:
        before = picture.copy()
        digit(picture, number, place, *rest)
        y, x = (int(found.min()) % CELL // 8 for found in np.nonzero((picture != before).any(-1)))
        seen[split].add((number, place, y, x))

    monkeypatch.setattr(questions, "_draw_digit", note)
    for split in ("train", "test"):
        for index in range(100):
            conversation(kind, split, 0, index).show()
    assert not seen["train"] & seen["test"]
    assert all(held_out(thing) for thing in seen["test"] if not isinstance(thing, tuple))


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_balanced_and_a_blind_guess_is_chance(kind: Kind) -> None:
    """The best guess from words alone: the commonest answer to the question, among those not said before."""
    known: dict[Any, Counter[str]] = defaultdict(Counter)
    for index in range(2000):
        for question in conversation(kind, "train", 0, index).questions:
            known[question.text][question.answer] += 1
    right, asked, answers = Counter[str](), Counter[str](), defaultdict(Counter)
    for index in range(600):
        said: set[str] = set()
        for question in conversation(kind, "test", 5, index).questions[:3]:
            guesses = [answer for answer, _ in known[question.text].most_common() if answer not in said]
            right[question.type] += guesses[0] == question.answer
            asked[question.type] += 1
            answers[question.type][question.answer] += 1
            said |= {question.answer, *question.text.split()}
    for name in TYPES[kind]:
        chance = 1 / len(ANSWERS[name])
        assert abs(right[name] / asked[name] - chance) < 0.05, name
        assert set(answers[name]) == set(ANSWERS[name])
        assert max(answers[name].values()) / asked[name] < chance + 0.05, name
