"""The answers of a blind study, in SQLite: what each rater is shown, and what came back.

Notable: an answer is on disk before it is acknowledged, and counts once, however often it is sent.
"""

import random
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from megavrc.errors import UserError
from megavrc.files import check_format, sha256_json
from megavrc.web.user_study import UserStudy

ANSWERS_FORMAT = 1
TABLES = """
create table item (rater text, position integer, pair integer, swapped integer, sent real,
                   primary key (rater, position));
create table answer (rater text, position integer, id text, consistency text, text_match text,
                     milliseconds integer, arrived real, primary key (rater, position));
"""
EARLY = 0.9  # of a clip's length: a browser may end a clip within its last frame


class Item(NamedTuple):
    """A pair as a rater sees it: `swapped` shows the second clip as video 1."""

    position: int
    pair: int
    swapped: bool


class GivenAnswer(NamedTuple):
    """An answer to an item: a choice of "1", "2" and "tie" by question, None where it is not asked."""

    rater: str
    item: Item
    choices: tuple[str, str | None]
    milliseconds: int
    arrived: float


class TooEarly(Exception):
    """An answer that came before its pair can have been seen to its end."""


class Answers:
    """The database of a study; made where there is none.

    Raises:
        UserError: the file is no such database, or another study's, or cannot be written.
    """

    def __init__(self, study: UserStudy) -> None:
        self.study = study
        with self._open("begin") as base:
            found, mark = (
                base.execute(f"pragma {name}").fetchone()[0] for name in ("user_version", "application_id")
            )
            check_format(study.answers, found or None, ANSWERS_FORMAT)
            own = int(sha256_json([pair[-2:] for pair in study.pairs])[:7], 16)
            if found and mark != own:
                raise UserError(f"{study.answers}: answers to another study; put the study's own there")
            if not found:
                marks = f"pragma user_version = {ANSWERS_FORMAT}; pragma application_id = {own};"
                base.executescript(f"begin; {TABLES} {marks} commit;")

    @contextmanager
    def _open(self, begin: str = "begin immediate") -> Iterator[sqlite3.Connection]:
        """A transaction; what it wrote is on disk when the block ends."""
        path = self.study.answers
        try:
            base = sqlite3.connect(path, timeout=30, isolation_level=None)
            try:
                base.execute("pragma synchronous = full")
                base.execute(begin)
                yield base
                if base.in_transaction:
                    base.execute("commit")
            finally:
                base.close()  # rolls back what is not committed
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: {error}") from None

    def items(self, rater: str) -> tuple[list[Item], list[int]]:
        """The items that a rater sees, in order, drawn when first asked; and the positions that are answered."""
        with self._open() as base:
            rows = base.execute(
                "select position, pair, swapped from item where rater = ? order by position", (rater,)
            ).fetchall()
            if not rows:
                rows = plan_of_rater(self.study, random.SystemRandom())
                base.executemany(
                    "insert into item values (?, ?, ?, ?, null)", [(rater, *row) for row in rows]
                )
            answered = base.execute(
                "select position from answer where rater = ? order by position", (rater,)
            ).fetchall()
        return [Item(position, pair, bool(swapped)) for position, pair, swapped in rows], [
            row[0] for row in answered
        ]

    def sent(self, rater: str, item: Item) -> None:
        """Note that the clips of an item are on their way; the first time counts."""
        with self._open() as base:
            base.execute(
                "update item set sent = coalesce(sent, ?) where rater = ? and position = ?",
                (time.time(), rater, item.position),
            )

    def add(
        self, rater: str, position: int, id: str, choices: Sequence[str | None], milliseconds: int
    ) -> bool:
        """Keep an answer, unless this position has one already; whether the one that is kept has this id.

        Raises:
            TooEarly: its clips were not sent, or so late that they cannot have been seen to their end; or the rater's
                first clips were sent so late that not all that the rater has answered can have been seen.
        """
        now = time.time()
        with self._open() as base:
            kept = base.execute(
                "select id from answer where rater = ? and position = ?", (rater, position)
            ).fetchone()
            if kept:
                return bool(kept[0] == id)
            (sent,) = base.execute(
                "select sent from item where rater = ? and position = ?", (rater, position)
            ).fetchone()
            (first,) = base.execute("select min(sent) from item where rater = ?", (rater,)).fetchone()
            (count,) = base.execute("select count(*) from answer where rater = ?", (rater,)).fetchone()
            view = EARLY * self.study.seconds
            if sent is None or now - sent < view or now - first < view * (count + 1):
                raise TooEarly
            base.execute(
                "insert into answer values (?, ?, ?, ?, ?, ?, ?)",
                (rater, position, id, *choices, milliseconds, now),
            )
        return True

    def all(self) -> list[GivenAnswer]:
        """All answers, of each rater in the order of the items, raters in the order of their first answer.

        Raises:
            UserError: a row that the server did not write.
        """
        with self._open("begin") as base:
            rows = base.execute(
                "select rater, position, pair, swapped, consistency, text_match, milliseconds, arrived "
                "from answer left join item using (rater, position) order by "
                "(select min(arrived) from answer other where other.rater = answer.rater), rater, position"
            ).fetchall()
        if wrong := [row for row in rows if not self._written(*row[2:])]:
            raise UserError(
                f"{self.study.answers}: the answer of rater {wrong[0][0]!r} at position {wrong[0][1]!r} is none that "
                "the server wrote: delete its row of the table answer"
            )
        return [
            GivenAnswer(rater, Item(position, pair, bool(swapped)), (first, second), took, arrived)
            for rater, position, pair, swapped, first, second, took, arrived in rows
        ]

    def _written(self, pair: Any, swapped: Any, first: Any, second: Any, took: Any, arrived: Any) -> bool:
        """Whether a row is as `items` and `add` write it; without an item it has no pair."""
        return (
            pair in range(len(self.study.pairs))
            and swapped in (0, 1)
            and {*(first, second)[: len(self.study.questions)]} <= {"1", "2", "tie"}
            and all(isinstance(number, int | float) and 0 <= number < 1e11 for number in (took, arrived))
        )


def plan_of_rater(study: UserStudy, draw: random.Random) -> list[Item]:
    """All pairs in a drawn order, each model as video 1 in half of them; and, once half of the pairs are over, some of
    those again with their sides changed. Pairs for attention stand anywhere after the first.
    """
    pairs = [index for index, pair in enumerate(study.pairs) if not pair.attention]
    checks = [index for index, pair in enumerate(study.pairs) if pair.attention]
    rows = list(zip(draw.sample(pairs, len(pairs)), _sides(len(pairs), draw), strict=True))
    half = (len(rows) + 1) // 2
    early = rows[: max(half - 1, study.repeats)]  # without the last, which could come again at once
    again = [(pair, not swapped) for pair, swapped in draw.sample(early, study.repeats)]
    later = rows[half:] + again
    rows = rows[:half] + draw.sample(later, len(later))
    for check in zip(checks, _sides(len(checks), draw), strict=True):
        rows.insert(draw.randint(1, len(rows)), check)
    return [Item(position, *row) for position, row in enumerate(rows)]


def _sides(count: int, draw: random.Random) -> list[bool]:
    """As many True as False, in a drawn order."""
    start = draw.random() < 0.5
    return draw.sample([(index % 2 == 0) == start for index in range(count)], count)
