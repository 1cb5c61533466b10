"""The values of a table or figure: those measured, those missing with the command that measures them, and those of
papers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from math import isfinite
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from megavrc.errors import UserError
from megavrc.evaluation.distances import FLOOR
from megavrc.evaluation.seeds import check_alike
from megavrc.files import check_fields
from megavrc.paper.matrix import PaperMatrix
from megavrc.results import Metric, Result, circumstances, read_result

PUBLISHED = Path(__file__).with_name("published.yaml")
SMOKE = "SMOKE RUN: toy clips, toy models. Shows that the path works, nothing else."


@cache
def published() -> dict[str, Any]:
    """Rows of the papers, by table or figure."""
    content: dict[str, Any] = yaml.safe_load(PUBLISHED.read_text())
    return content


def _is_known(found: Metric) -> bool:
    return found["value"] is not None and isfinite(found["value"])


@dataclass
class Exhibit:
    """A table or figure: all that is written and shown of it.

    Attributes:
        name: table1 .. fig9. title: what it shows.
        table: rows of texts, the first its head.
        figure: of matplotlib, if there is anything to draw.
        notes: sentences below it.
        missing: job whose result is not there -> its command.
    """

    name: str
    title: str
    table: list[list[str]] = field(default_factory=list)
    figure: Any = None
    notes: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


class Measured:
    """The result files of a folder, by the names of the jobs that make them; remembers what was asked for in vain.

    Args:
        matrix: its jobs say where each result lies.
    """

    def __init__(self, matrix: PaperMatrix) -> None:
        self.matrix = matrix
        self.missing: dict[str, str] = {}
        self.distances: dict[str, str] = {}  # name of a distance -> a file that has it
        self.compared: dict[str, tuple[Path, Result]] = {}  # data set -> the first file with a distance there

    def there(self, job: str) -> bool:
        """Whether a job has left its result."""
        made = self.matrix.jobs[job]
        if not made.product.exists():
            self.missing[job] = made.line
        return made.product.exists()

    def read(
        self, job: str, config: Mapping[str, Any] = {}, protocol: Mapping[str, Any] = {}
    ) -> Result | None:
        """The result file of a job, if it is there.

        Args:
            config, protocol: fields that it must have, and their types.

        Raises:
            UserError: another command has made it, or a field is missing.
        """
        if not self.there(job):
            return None
        made = self.matrix.jobs[job]
        content = read_result(made.product)
        if content["command"].split()[:2] != made.words[2:4]:
            raise UserError(
                f"{made.product}: made by megavrc {content['command']}; expected what {made.line} writes"
            )
        check_fields(f"{made.product}: config", content["config"], config)
        check_fields(f"{made.product}: protocol", content["protocol"], protocol)
        return content

    def row(self, job: str, case: str) -> dict[str, Any]:
        """A case of a result file that is there; UserError if the file lacks it."""
        content = self.read(job)
        rows = [row for row in content["cases"] if row["name"] == case] if content else []
        if not rows:
            raise self._lacks(job, f"case {case!r}")
        found: dict[str, Any] = rows[0]
        return found

    def number(self, job: str, row: Mapping[str, Any], name: str) -> Metric:
        """A number of a case; UserError if the case lacks it, or says that it was not measured."""
        found: Metric | None = row["metrics"].get(name)
        if found is None or not _is_known(found):
            raise self._lacks(job, f"{name} of {row['name']!r}")
        return found

    def numbered(self, job: str, case: str, prefix: str) -> dict[int, Metric]:
        """The numbers PREFIX0, PREFIX1, .. of a case of a file that is there; UserError if there is none."""
        row = self.row(job, case)
        ends = [name.removeprefix(prefix) for name in row["metrics"] if name.startswith(prefix)]
        found = {int(end): self.number(job, row, prefix + end) for end in ends if end.isdecimal()}
        if not found:
            raise self._lacks(job, f"{prefix}0 of {case!r}")
        return found

    def first(self, job: str, name: str) -> Metric | None:
        """A number of the first case of a result file, if the file is there; UserError if the case lacks it."""
        content = self.read(job)
        if content is None:
            return None
        if not content["cases"] or name not in content["cases"][0]["metrics"]:
            raise self._lacks(job, name)
        return self._known(job, content["cases"][0]["metrics"][name])

    def seconds(self, size: str, variant: str) -> Metric | None:
        """Seconds of one clip at batch 1 without guidance, if measured."""
        content = self.read(f"speed-{size}")
        label = f"{variant}, batch 1, guidance 1"
        rows = [row for row in content["cases"] if row["name"] == label] if content else []
        found = rows[0]["metrics"].get("seconds") if rows else None
        return self._known(f"speed-{size}", found) if content else None

    def distance(self, job: str, floor: bool = False) -> Metric | None:
        """The distance of a model's clips from real ones, or that of real ones from real ones.

        Raises:
            UserError: distances of two kinds, networks or, on one data set, protocols or real sets were asked for: they
                cannot stand in one table.
        """
        content = self.read(job)
        if content is None:
            return None
        rows = [row for row in content["cases"] if (row["name"] == FLOOR) == floor and row["metrics"]]
        if not rows:
            if floor:
                return None
            raise self._lacks(job, "distance")
        name = next(iter(rows[0]["metrics"]))
        file = self.matrix.jobs[job].product
        self._check_comparable(job, file, content)
        self.distances.setdefault(name, str(file))
        if len(self.distances) > 1:
            (one, first), (two, second) = self.distances.items()
            raise UserError(f"{first} has {one}, {second} {two}: not comparable; measure one of them again")
        return self._known(job, rows[0]["metrics"][name])

    def _check_comparable(self, job: str, file: Path, content: Result) -> None:
        data = next((key for key in self.matrix.lists["dataset"] if f"-{key}-" in job), job)
        of_data = self.compared.setdefault(data, (file, content))
        first, known = next(iter(self.compared.values()))
        if any(key == "protocol.detector.sha256" for key, _, _ in circumstances(known, content)):
            raise UserError(f"{first}, {file}: of two networks: not comparable; measure one of them again")
        check_alike([of_data[0], file], [of_data[1], content])

    @property
    def distance_name(self) -> str:
        """The name of the distances that were read: FVD only if the network was the published I3D."""
        name = next(iter(self.distances), "fvd")
        return {"fvd": "FVD", "frechet_unknown": "Fréchet distance, unknown network"}.get(name, name)

    def exhibit(self, name: str, title: str) -> Exhibit:
        """An empty table or figure with what is missing of it."""
        return Exhibit(name, title, missing=self.missing)

    def _known(self, job: str, found: Metric | None) -> Metric | None:
        """A number that a file has; missing where it has none, or says that nothing was measured."""
        if found and _is_known(found):
            return found
        made = self.matrix.jobs[job]
        # A job whose file is there counts as done.
        self.missing[job] = f"rm {quote(str(made.product))} && {made.line}"
        return None

    def _lacks(self, job: str, what: str) -> UserError:
        made = self.matrix.jobs[job]
        return UserError(f"{made.product}: has no {what}; expected what {made.line} writes")
