"""`megavrc user_study export` and `report`: answers with the models' names again, and what they say."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from megavrc.errors import UserError
from megavrc.evaluation.statistics import crossed_mean, sign_test
from megavrc.files import check_picture_place, read_lines, write_atomic
from megavrc.report.figures import save, stacked_shares
from megavrc.results import Metric, case, check_result_place, metric, publish_tables, result
from megavrc.web.user_study import UserStudy, read_user_study
from megavrc.web.user_study_answers import Answers, GivenAnswer

Kind = Literal["pair", "repeat", "attention"]
Shares = dict[str, Metric]
CHOICES = ("first", "tie", "second")
LEVEL = 0.05  # of the sign test
TITLES = {"consistency": "Video consistency", "text_match": "Video-text matching"}
COLUMNS = (
    "rater",
    "position",
    "key",
    "prompt",
    "kind",
    "video_1",
    "consistency",
    "text_match",
    "seconds",
    "arrived",
)


class OpenAnswer(NamedTuple):
    """An answer that names models.

    Attributes:
        rater: number, by first answers.
        kind: a pair; one that this rater sees again; one for attention.
        key, prompt: of the pair.
        video_1: the model that was shown as video 1, "first" or "second".
        choices: by question "first", "tie" or "second".
    """

    rater: int
    position: int
    key: str
    prompt: str | None
    kind: Kind
    video_1: str
    choices: dict[str, str]
    seconds: float
    arrived: float


def open_answers(study: UserStudy) -> list[OpenAnswer]:
    """All answers, unblinded; UserError when there are none."""
    given = Answers(study).all() if study.answers.is_file() else []
    if not given:
        raise UserError(f"{study.folder}: no answers yet; megavrc user_study serve {study.folder}")
    raters = {rater: number for number, rater in enumerate(dict.fromkeys(row.rater for row in given), 1)}
    return [
        _opened(study, row, raters[row.rater], kind)
        for row, kind in zip(given, _kinds(study, given), strict=True)
    ]


def _kinds(study: UserStudy, given: Sequence[GivenAnswer]) -> Iterator[Kind]:
    seen: set[tuple[str, int]] = set()
    for row in given:
        pair = row.rater, row.item.pair
        again = pair in seen
        seen.add(pair)
        yield "attention" if study.pairs[row.item.pair].attention else "repeat" if again else "pair"


def _opened(study: UserStudy, row: GivenAnswer, rater: int, kind: Kind) -> OpenAnswer:
    pair, shown = study.pairs[row.item.pair], ("first", "second")
    one, two = reversed(shown) if row.item.swapped else shown
    said = {"1": one, "2": two, "tie": "tie"}
    answers = dict(zip(("consistency", "text_match"), row.choices, strict=True))
    choices = {question: said[str(answers[question])] for question in study.questions}
    seconds = row.milliseconds / 1000
    return OpenAnswer(
        rater, row.item.position, pair.key, pair.prompt, kind, one, choices, seconds, row.arrived
    )


def export_answers(study: Path, csv: Path) -> None:
    """Write all answers of a blind study as a table, a row a pair that was answered, with the models' names.

    Args:
        study: folder written by megavrc user_study build.
        csv: FILE.csv to write; of an attention pair, the second model is the first's clip in pieces.
    """
    if csv.suffix != ".csv":
        raise UserError(f"{csv}: name a file that ends in .csv")
    if csv.exists() and next(read_lines(csv), (1, ""))[1] != ",".join(COLUMNS):
        raise UserError(f"{csv}: is there and is no table of answers; choose another name, or delete it")
    found = read_user_study(study)
    rows = open_answers(found)
    write_atomic(csv, table_of(found, rows).encode(errors="backslashreplace"))
    print(f"{csv}: {len(rows)} answers")


def table_of(study: UserStudy, rows: Sequence[OpenAnswer]) -> str:
    """Answers as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        names = _names(study, row)
        arrived = datetime.fromtimestamp(row.arrived, UTC).isoformat(timespec="seconds")
        choices = [names[row.choices[name]] if name in row.choices else "" for name in TITLES]
        place = (row.rater, row.position, row.key, row.prompt, row.kind, names[row.video_1])
        writer.writerow([*place, *choices, row.seconds, arrived])
    return text.getvalue()


def _names(study: UserStudy, row: OpenAnswer) -> dict[str, str]:
    shown = ("whole", "in pieces") if row.kind == "attention" else study.names
    return dict(zip(CHOICES, (shown[0], "tie", shown[1]), strict=True))


def report_study(
    study: Path,
    json: Path | None = None,
    figure: Path | None = None,
    keep_inattentive: bool = False,
) -> None:
    """Report the answers to a blind study: which model is preferred, and how sure that is.

    Raters who miss an attention pair are left out. Each question has the shares of answers that prefer a model or see
    none better, with intervals over prompts and raters, and the sign test over prompts.

    Args:
        study: folder written by megavrc user_study build.
        json: file to write the result to.
        figure: figure to write, FILE.svg or FILE.png.
        keep_inattentive: count raters who miss an attention pair too.
    """
    check_result_place(json)
    if figure:
        check_picture_place(figure)
    found = read_user_study(study)
    rows = open_answers(found)
    missed = {row.rater for row in rows if row.kind == "attention" and row.choices["consistency"] != "first"}
    counted = rows if keep_inattentive else [row for row in rows if row.rater not in missed]
    pairs = [row for row in counted if row.kind == "pair"]
    if not pairs:
        raise UserError(f"{study}: {_none_count(rows, missed)}")
    cases = [_case(question, pairs, counted) for question in found.questions]
    whole = {
        "answers": metric(len(pairs)),
        "prompts": metric(len({_prompt(row) for row in pairs})),
        "raters": metric(len({row.rater for row in pairs})),
        "raters_inattentive": metric(len(missed)),
    }
    config = {
        "study": str(study),
        "first": found.names[0],
        "second": found.names[1],
        "keep_inattentive": keep_inattentive,
    }
    protocol = found.protocol | {
        "low, high": "95% interval over prompts and raters: the sum of the variances clustered by either, Student's t "
        "of the fewer; where all answers are equal the exact one of the fewer",
        "sign_test": "two-sided, of prompts: each is that model's which most of its answers prefer",
    }
    for name, row in zip(found.questions, cases, strict=True):
        print(f"note: {TITLES[name]}: {_verdict(row['metrics'], found.names)}")
    publish_tables(result("user_study report", config, cases, whole, protocol), json)
    if figure:
        shares = {TITLES[row["name"]]: [row["metrics"][choice] for choice in CHOICES] for row in cases}
        save(stacked_shares(shares, (found.names[0], "no difference", found.names[1])), figure)


def _none_count(rows: Sequence[OpenAnswer], missed: set[int]) -> str:
    """What there is where no answer to a pair of the two models counts."""
    raters = f"{len(missed)} of {len({row.rater for row in rows})} raters"
    if given := sum(row.kind != "attention" for row in rows):
        return (
            f"no answers that count: all {given} to pairs of the two models are of raters who missed an attention "
            f"pair ({raters}); --keep_inattentive counts them"
        )
    return (
        f"no answers to pairs of the two models yet, only {len(rows)} to attention pairs (missed by {raters})"
    )


def _case(question: str, pairs: Sequence[OpenAnswer], counted: Sequence[OpenAnswer]) -> dict[str, Any]:
    """A row of the result: what the answers to a question say."""

    def mean(rows: Sequence[OpenAnswer], values: Sequence[float], least: float = 0.0) -> Metric:
        return crossed_mean(values, ([_prompt(row) for row in rows], [str(row.rater) for row in rows]), least)

    said = [row.choices[question] for row in pairs]
    metrics = {choice: mean(pairs, [one == choice for one in said]) for choice in CHOICES}
    score = [(one == "first") - (one == "second") for one in said]
    metrics["first_minus_second"] = mean(pairs, score, least=-1.0)
    sums: Counter[str] = Counter()
    for row, value in zip(pairs, score, strict=True):
        sums[_prompt(row)] += value
    won = [sum(total > 0 for total in sums.values()), sum(total < 0 for total in sums.values())]
    metrics["sign_test"] = metric(sign_test(*won), "", sum(won))
    decided = [row for row in pairs if row.choices[question] != "tie"]
    if decided:
        metrics["video_1"] = mean(decided, [row.choices[question] == row.video_1 for row in decided])
    before = {(row.rater, row.key): row for row in pairs}
    again = [row for row in counted if row.kind == "repeat" and (row.rater, row.key) in before]
    if again:
        same = [row.choices[question] == before[row.rater, row.key].choices[question] for row in again]
        metrics["repeat_agreement"] = mean(again, same)
    return case(question, metrics, {"prompts_won": won})


def _prompt(row: OpenAnswer) -> str:
    """What an interval takes for one: several clips of one prompt are one."""
    return row.key if row.prompt is None else row.prompt


def _verdict(metrics: Shares, names: Sequence[str]) -> str:
    gap, sign = metrics["first_minus_second"], metrics["sign_test"]["value"]
    if "low" not in gap:
        said = "no preference is shown: one rater, or one prompt, says nothing of others, so there is no interval"
    elif gap["low"] <= 0 <= gap["high"]:
        said = "no preference is shown: 0 lies in the interval of first_minus_second"
    elif sign >= LEVEL:
        said = f"no preference is shown: prompts may split so by chance, sign_test {sign:.2g}"
    else:
        preferred = names[gap["value"] < 0]
        said = f"{preferred} is preferred: 0 lies outside the interval of first_minus_second, sign_test {sign:.2g}"
    side = metrics.get("video_1")
    if side and not side.get("low", 0) <= 0.5 <= side.get("high", 1):
        said += (
            f"; of the two places, raters prefer video {1 if side['value'] > 0.5 else 2} (sides are balanced)"
        )
    return said
