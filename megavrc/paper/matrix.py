"""The measurements of the paper: the jobs of matrix.yaml, in the folders of this machine."""

import itertools
import shlex
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megavrc.paper.jobs import MatrixJob
from megavrc.user_files import USER_FILES, place

FILE = Path(__file__).with_name("matrix.yaml")
Items = dict[str, dict[str, Any]]  # of a list: item -> its fields


@dataclass(frozen=True)
class Places:
    """Folders that the jobs read and write.

    Attributes:
        out: gets work/, and results/ unless `results_folder` is another one.
        data: holds DATASET/manifest.jsonl.
        processes: of each training.
    """

    out: Path
    data: Path
    processes: int = 1
    results_folder: Path | None = None

    @property
    def results(self) -> Path:
        return self.results_folder or self.out / "results"

    @property
    def work(self) -> Path:
        return self.out / "work"

    def values(self) -> dict[str, str]:
        """Values of the names in braces in a command; paths quoted for the shell."""
        tokenizer = place("omnitokenizer") or USER_FILES["omnitokenizer"][0]
        paths = {
            "results": self.results,
            "work": self.out / "work",
            "data": self.data,
            "tokenizer": tokenizer,
        }
        launcher = (
            f"python -m megavrc.distributed.torchrun --standalone --nproc-per-node={self.processes} -m "
        )
        train = ("" if self.processes == 1 else launcher) + "megavrc pretrain_vrc"
        return {name: shlex.quote(str(path)) for name, path in paths.items()} | {"train": train}


class PaperMatrix:
    """The jobs, and which of them a table or figure needs.

    Args:
        places: of this machine.
        smoke: at toy size.

    Attributes:
        lists: `dataset`, `size`, `model` and `rate`, each with its items and what is said of them.
        main: the size of Tables 1, 3 and 4.
        first: the data set of Figure 1.
        exhibits: table or figure -> names of the jobs whose results it reads.
        jobs: by name.
        environment: of every command.
    """

    def __init__(self, places: Places, smoke: bool = False) -> None:
        content: dict[str, Any] = yaml.safe_load(FILE.read_text())
        if smoke:
            toy = content["smoke"]
            content |= {key: toy[key] for key in ("main", "first", "lists", "environment")}
            content["jobs"] |= toy["jobs"]
            content["exhibits"] |= toy["exhibits"]
        self.smoke = smoke
        self.lists: dict[str, Items] = content["lists"]
        self.main: str = content["main"]
        self.first: str = content["first"]
        self.environment: dict[str, str] = content.get("environment", {})
        self._values = {"main": self.main, "first": self.first}
        self.exhibits = {
            exhibit: [name for template in templates for name, _ in self._expanded(template, {})]
            for exhibit, templates in content["exhibits"].items()
        }
        self.jobs: dict[str, MatrixJob] = {}
        for template, how in content["jobs"].items():
            for name, values in self._expanded(template, places.values()):
                words = shlex.split(how["command"].format(**values))
                words = words[1:] if words[0] == "python" else ["-m", *words]
                plain = values | {"results": str(places.results), "work": str(places.work)}
                product = Path(how["product"].format(**plain))
                after = [other.format(**values) for other in how.get("after", [])]
                self.jobs[name] = MatrixJob(name, words, product, after)

    def _expanded(self, template: str, values: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
        """The names that a template stands for, each with what stands in braces in its command."""
        named = [field for _, field, _, _ in string.Formatter().parse(template) if field in self.lists]
        for items in itertools.product(*(self.lists[field or ""] for field in named)):
            chosen = {**self._values, **values, **dict(zip(named, items, strict=True))}
            fields = {
                f"{key}_{field}": str(value)
                for key, item in zip(named, items, strict=True)
                for field, value in self.lists[key or ""][item].items()
            }
            yield template.format(**chosen), {str(key): value for key, value in (chosen | fields).items()}

    def needed(self, exhibits: list[str]) -> list[MatrixJob]:
        """The jobs that these tables and figures rest on, each after those that it waits for."""
        found: dict[str, MatrixJob] = {}

        def add(name: str) -> None:
            if name not in found:
                for other in self.jobs[name].after:
                    add(other)
                found[name] = self.jobs[name]

        for exhibit in exhibits:
            for name in self.exhibits[exhibit]:
                add(name)
        return list(found.values())
