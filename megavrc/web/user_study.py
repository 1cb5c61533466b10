"""A blind study as a folder: `study.json`, which tells what is shown beside what and is never served, and `clips/`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from megavrc.errors import UserError
from megavrc.files import check_fields, check_format, read_json, write_json

FORMAT = 1
FIELDS: dict[str, Any] = {
    "format": int,
    "names": list[str],
    "questions": list[str],
    "pairs": list[Any],
    "repeats": int,
    "links": list[str],
    "open_link": str | None,
    "width": int,
    "height": int,
    "second_at": int,
    "seconds": float,
    "protocol": dict,
}
PAIR_FIELDS: dict[str, Any] = {
    "key": str,
    "prompt": str | None,
    "attention": bool,
    "plain": str,
    "swapped": str,
}
QUESTIONS = ("consistency", "text_match")  # their order on the page and in answers


class ClipPair(NamedTuple):
    """Two clips of one prompt.

    Attributes:
        key, prompt: of the planned clip.
        attention: the second is a clip of the first with its picture in pieces: who looks prefers the first.
        plain, swapped: names of the file that shows the first clip as video 1, and of that which shows it as video 2.
    """

    key: str
    prompt: str | None
    attention: bool
    plain: str
    swapped: str


@dataclass(frozen=True)
class UserStudy:
    """The decisions of `build_study`.

    Attributes:
        names: of the two models.
        questions: of QUESTIONS, those that are asked.
        repeats: pairs that a rater sees a second time, with their sides changed.
        links: tokens of the raters' own links.
        open_link: token of the one link for all, if there are no own ones.
        width, height: of a clip in pixels; a file shows one at x = 0 and one at x = `second_at`.
        seconds: length of a clip.
        protocol: how the clips were chosen and made alike, for results.
    """

    folder: Path
    names: Sequence[str]
    questions: Sequence[str]
    pairs: Sequence[ClipPair]
    repeats: int
    links: Sequence[str]
    open_link: str | None
    width: int
    height: int
    second_at: int
    seconds: float
    protocol: dict[str, Any]

    @property
    def answers(self) -> Path:
        return self.folder / "answers.sqlite"

    def clip(self, name: str) -> Path:
        return self.folder / "clips" / f"{name}.mp4"


def write_user_study(study: UserStudy) -> None:
    """Write study.json into the study's folder."""
    content = asdict(study) | {"format": FORMAT, "pairs": [pair._asdict() for pair in study.pairs]}
    del content["folder"]
    write_json(study.folder / "study.json", content)


def read_user_study(folder: Path) -> UserStudy:
    """Read the folder of a study; UserError when it is none, or lacks clips."""
    path = folder / "study.json"
    content = read_json(path)
    check_format(path, content.get("format") if isinstance(content, dict) else None, FORMAT)
    check_fields(path, content, FIELDS)
    rows = [
        check_fields(f"{path}: pair {number}", row, PAIR_FIELDS)
        for number, row in enumerate(content["pairs"], 1)
    ]
    pairs = [ClipPair._make(row.get(name) for name in PAIR_FIELDS) for row in rows]
    known = {name: content.get(name) for name in FIELDS if name not in ("format", "pairs")}
    study = UserStudy(folder, pairs=pairs, **known)
    asked = tuple(study.questions) in (QUESTIONS, QUESTIONS[:1])
    if not len(study.names) == len({*study.names}) == 2 or not pairs or not asked:
        raise UserError(
            f"{path}: not two names, or no pairs or questions that are known; build the study anew"
        )
    missing = [name for pair in pairs for name in pair[-2:] if not study.clip(name).is_file()]
    if missing:
        raise UserError(
            f"{study.clip(missing[0])}: no such file; copy the study's folder whole, or build it anew"
        )
    return study
