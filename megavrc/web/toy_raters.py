"""Drawn answers to a blind study: in the place of people where a smoke run shows that the path works.

They go through what the server keeps answers with: its order of pairs, its clock, its rules.

    python -m megavrc.web.toy_raters --study FOLDER
"""

import random
import secrets
import time
from pathlib import Path

from megavrc.config import command
from megavrc.web.user_study import UserStudy, read_user_study
from megavrc.web.user_study_answers import Answers, Item
from megavrc.web.user_study_report import export_answers

ODDS = {"first": 0.5, "tie": 0.2, "second": 0.3}


def answer_study(study: Path, raters: int = 8, seed: int = 0) -> None:
    """Answer every pair as so many raters would, each after the length of its clip, and write STUDY/answers.csv.

    Args:
        study: folder written by megavrc user_study build.
        raters: number of raters; the last one does not look, and misses the pairs for attention.
        seed: seed of what they answer.
    """
    found = read_user_study(study)
    answers, draw = Answers(found), random.Random(seed)
    names = [f"toy-rater-number-{number}" for number in range(raters)]
    plans = {name: answers.items(name) for name in names}
    for position in range(len(plans[names[0]][0])):
        waiting = [name for name in names if position not in plans[name][1]]
        for name in waiting:
            answers.sent(name, plans[name][0][position])
        time.sleep(found.seconds)
        for name in names:
            item = plans[name][0][position]
            said = [_choice(found, item, draw, name != names[-1]) for _ in found.questions]
            if name in waiting:
                choices = said + [None] * (2 - len(said))
                answers.add(name, position, secrets.token_hex(16), choices, round(1000 * found.seconds))
    export_answers(study, study / "answers.csv")


def _choice(study: UserStudy, item: Item, draw: random.Random, looks: bool) -> str:
    """What a rater says of an item: "1", "2" or "tie"."""
    (said,) = draw.choices(list(ODDS), list(ODDS.values()))
    if study.pairs[item.pair].attention:
        said = "first" if looks else "tie"
    return "tie" if said == "tie" else "2" if (said == "first") == item.swapped else "1"


if __name__ == "__main__":
    command(answer_study)
