"""The run matrix as jobs: which commands there are, what each waits for, and in what order they come."""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from megavrc.errors import UserError
from megavrc.paper.jobs import MatrixJob

SEEDS = [0, 1, 2]
LENT = ("tokenizer", "reconstructed", "gate", "text")  # steps of the set that another borrows from


@dataclass(frozen=True)
class StudyJob(MatrixJob):
    """One command of the study.

    Attributes:
        name: `set/step`; `run-seed` of a training; `run-seed/bits` and the like of what is measured of it.
        needs: a key of the configuration that must exist, or "".
        run, seed, priority: whose training or measurement it is; "" of a step of a set.
    """

    needs: str = ""
    run: str = ""
    seed: int = 0
    priority: int = 0

    @property
    def trains(self) -> bool:
        return self.name == f"{self.run}-{self.seed}"


class Matrix:
    """A matrix file, for a work folder.

    Args:
        path: matrix.yaml.
        work: folder that sets and runs are made in.
        smoke: at toy size.

    Attributes:
        environment: of every command.
        gflops: of one core, for estimates.

    Raises:
        UserError: a run or a set names one that does not exist.
    """

    def __init__(self, path: Path, work: Path, smoke: bool = False) -> None:
        self._content: dict[str, Any] = yaml.safe_load(path.read_text())
        self._path, self._work = path, work
        self._smoke: dict[str, Any] = self._content["smoke"] if smoke else {}
        self.environment: dict[str, str] = self._content.get("environment", {})
        self.gflops: float = self._content.get("gflops", 0)
        named = {"runs": {"set": "sets", "init": "runs"}}
        named |= {"sets": {"borrows": "sets", "judge": "runs", "ceiling": "runs"}}
        for kind, keys in named.items():
            for name, item in self._content[kind].items():
                for key, known in keys.items():
                    if item.get(key) is not None and item[key] not in self._content[known]:
                        raise UserError(f"{path}: {kind}.{name}.{key}: there is no {item[key]!r}")

    def jobs(
        self, most: int = 9, samples: bool = False, tune: bool = False, seeds: Sequence[int] = ()
    ) -> list[StudyJob]:
        """All jobs of the priorities 0 to `most`: runs in their order, the steps of a set before its first run.

        Args:
            samples: with those that draw clips and score them, after the runs of the same priority and seed; the judge
                of a priority's clips comes after all of its seeds.
            tune: with those that find each run's best temperatures, and draw and score clips with them.
            seeds: runs of these seeds alone (default: of all); UserError for one that no run has.
        """
        known = sorted({seed for _, seed in self._order()})
        if unknown := sorted(set(seeds) - set(known)):
            raise UserError(f"--seeds: no run has seed {unknown[0]}; choose of {', '.join(map(str, known))}")
        jobs: list[StudyJob] = []
        runs = self._content["runs"]
        for priority, ordered in groupby(self._order(), lambda item: runs[item[0]]["priority"]):
            if priority > most:
                break
            drawn: list[tuple[StudyJob, StudyJob]] = []
            for _, group in groupby(ordered, lambda item: item[1]):
                trainings = [(self._training(run, seed), runs[run]["set"]) for run, seed in group]
                for training, name in trainings:
                    jobs += [*self._steps(name), training, self._bits(training), *self._everywhere(training)]
                    jobs += self._probes(training)
                for training, _ in trainings:
                    found = list(self._samples(training, samples, tune))
                    jobs += found
                    drawn += [(training, job) for job in found]
            jobs += [judge for training, job in drawn for judge in self._judge(training, job)]
        unique: dict[str, StudyJob] = {}
        for job in jobs:  # of the steps of a set, the first
            if not (seeds and job.run) or job.seed in seeds:
                unique.setdefault(job.name, job)
        return list(unique.values())

    def _order(self) -> Iterator[tuple[str, int]]:
        """(run, seed) by priority, then seed, then as they are listed."""
        runs = self._content["runs"].items()
        seeds = {name: self._seeds(name) for name, _ in runs}
        for priority in sorted({run["priority"] for _, run in runs}):
            for seed in sorted({seed for own in seeds.values() for seed in own}):
                yield from (
                    (name, seed) for name, run in runs if run["priority"] == priority and seed in seeds[name]
                )

    def _steps(self, name: str) -> list[StudyJob]:
        """A set's steps, after those of the set that it borrows from."""
        content = self._content["sets"][name]
        lender = content.get("borrows")
        before = self._steps(lender) if lender else []
        without = [*content.get("without", []), *(LENT if lender else [])]
        places = {"set": str(self._set(name)), "lender": str(self._set(lender or name))}
        quoted = {key: shlex.quote(place) for key, place in places.items()}
        jobs: list[StudyJob] = []
        for step, how in self._content["steps"].items():
            if step in without:
                continue
            words = shlex.split(how["command"].format(**content, **quoted))
            words += shlex.split(self._smoke.get("steps", {}).get(step, ""))
            after = [job.name for job in (*before, *jobs)][-1:]
            jobs.append(StudyJob(f"{name}/{step}", words, Path(how["product"].format(**places)), after))
        return [*before, *jobs]

    def _training(self, name: str, seed: int) -> StudyJob:
        run = self._content["runs"][name]
        chosen = self._content["sets"][run["set"]]
        own, lender = self._set(run["set"]), self._set(chosen.get("borrows") or run["set"])
        folder = self._work / "runs" / f"{name}-{seed}"
        image = run["config"] == self._content["image"]
        text = "" if "text" in chosen.get("without", []) else str(lender / "text" / "tokenizer.model")
        init = f"{run['init']}-{seed}" if run.get("init") else ""
        words = [
            "pretrain/pretrain_vrc.py",
            f"--config={run['config']}",
            f"--run_dir={folder}",
            f"--seed={seed}",
            f"--data.path={own / 'tokens' / ('image' if image else 'video')}",
            f"--data.text_tokenizer={text}",
            f"--data.video_tokenizer={lender / 'tokenizer' / 'model'}",
            f"--init_from={self._work / 'runs' / init if init else ''}",
        ]
        overrides = {**run.get("overrides", {}), **self._smoke.get("overrides", {})}
        words += [f"--{key}={_text(value)}" for key, value in overrides.items()]
        after = [job.name for job in self._steps(run["set"])][-1:] + ([init] if init else [])
        return StudyJob(
            f"{name}-{seed}",
            words,
            folder / "complete.json",
            after,
            needs=run.get("needs", ""),
            run=name,
            seed=seed,
            priority=run["priority"],
        )

    def _bits(self, training: StudyJob) -> StudyJob:
        words = [f"--checkpoints={self._chosen(training, 'checkpoints')}", *self._refined(training)]
        return self._measurement(training, "bits", "measure.py bits", words)

    def _everywhere(self, training: StudyJob) -> Iterator[StudyJob]:
        """Bits with as many passes in every later frame."""
        if self._content["runs"][training.run].get("everywhere"):
            words = [f"--count={self._content['passes']}"]
            yield self._measurement(training, "passes", "measure.py passes", words)

    def _refined(self, training: StudyJob) -> list[str]:
        """How what a run with refinement draws is measured beside one pass."""
        refines = self._content["runs"][training.run].get("overrides", {}).get("model.refine")
        return shlex.split(self._content["refined"]) if refines else []

    def _probes(self, training: StudyJob) -> Iterator[StudyJob]:
        if self._is_scored(training):
            words = [f"--checkpoints={self._chosen(training, 'checkpoints')}"]
            words += shlex.split(self._smoke.get("probes", ""))
            yield self._measurement(training, "probes", "measure.py probes", words)

    def _is_scored(self, training: StudyJob) -> bool:
        """Whether there are later frames, and scenes to hold them to."""
        run = self._content["runs"][training.run]
        image = run["config"] == self._content["image"]
        return not image and self._content["sets"][run["set"]].get("scored", True)

    def _samples(self, training: StudyJob, samples: bool, tune: bool) -> Iterator[StudyJob]:
        """For every checkpoint and kind of clips: draw, then score."""
        if not self._is_scored(training):
            return
        steps, refined = self._chosen(training, "sampled"), self._refined(training)
        kinds = self._content.get("samples", {}) if samples else {}
        if samples and self._holds_ceiling(training):
            name = f"reconstructed-{steps[-1]}"
            yield from self._drawing(training, "reconstructed", steps[-1], name, self._content["ceiling"], [])
        for step in steps:
            for kind, options in kinds.items():
                yield from self._drawing(training, kind, step, f"{kind}-{step}", options, [])
                if refined:
                    yield from self._drawing(training, kind, step, f"{kind}-refined-{step}", options, refined)
        if not tune or not steps:
            return
        words = [f"--checkpoint={steps[-1]}", *refined, *shlex.split(self._smoke.get("tune", ""))]
        tuning = self._measurement(training, "tuning", "measure.py tune", words)
        yield tuning
        middle = "-refined" if refined else ""
        for step in steps:  # of a mid-run what is compared at equal FLOPs
            for kind, options in self._content["tuned"].items():
                if kind in self._content["judged"] or step == steps[-1]:
                    words = [f"--tuning={tuning.product}", *refined]
                    name = f"{kind}{middle}-tuned-{step}"
                    yield from self._drawing(training, kind, step, name, options, words, [tuning.name])

    def _holds_ceiling(self, training: StudyJob) -> bool:
        """Whether what the tokenizer leaves of the clips is scored with this run, once for its set."""
        chosen = self._content["sets"][self._content["runs"][training.run]["set"]]
        return chosen.get("ceiling") == training.run and training.seed == self._seeds(training.run)[0]

    def _drawing(
        self,
        training: StudyJob,
        kind: str,
        step: int,
        name: str,
        options: str,
        more: list[str],
        after: Sequence[str] = (),
    ) -> Iterator[StudyJob]:
        ids = self._work / "samples" / training.name / f"{name}.npz"
        words = [*shlex.split(options), *shlex.split(self._smoke.get("samples", {}).get(kind, "")), *more]
        words += [f"--checkpoint={step}", f"--out={ids}"]
        drawing = self._measurement(training, f"{name}/ids", "measure.py sample", words, ids, after)
        yield drawing
        yield self._measurement(
            training, name, "measure.py score", [f"--samples={ids}"], after=[drawing.name]
        )

    def _judge(self, training: StudyJob, drawing: StudyJob) -> Iterator[StudyJob]:
        """What the set's judge of the next seed says of clips drawn at the last step, of the kinds that are judged."""
        name = self._content["sets"][self._content["runs"][training.run]["set"]].get("judge")
        kind = drawing.name.partition("/")[2]
        last = f"-{self._chosen(training, 'sampled')[-1]}/ids"
        if not name or not kind.endswith(last) or kind.partition("-")[0] not in self._content["judged"]:
            return
        seeds = self._seeds(name)
        other = seeds[(seeds.index(training.seed) + 1) % len(seeds)] if training.seed in seeds else seeds[0]
        if other == training.seed and not self._smoke:
            return
        judge = self._training(name, other)
        step = self._chosen(judge, "sampled")[-1]
        words = [f"--samples={drawing.product}", f"--checkpoint={step}"]
        yield self._measurement(
            training,
            f"judge-{kind.removesuffix('/ids')}",
            "measure.py judge",
            words,
            after=[drawing.name, judge.name],
            run=judge,
        )

    def _measurement(
        self,
        training: StudyJob,
        name: str,
        command: str,
        words: list[str],
        product: Path | None = None,
        after: Sequence[str] = (),
        run: StudyJob | None = None,
    ) -> StudyJob:
        """A job of `training`: a command on its folder, or on that of another `run`."""
        json_file = self._work / "measured" / training.name / f"{name}.json"
        script, subcommand = command.split()
        return StudyJob(
            f"{training.name}/{name}",
            [f"benchmarks/study/{script}", subcommand, f"--run={(run or training).product.parent}", *words]
            + ([] if product else [f"--json={json_file}"]),
            product or json_file,
            list(after) or [training.name],
            run=training.run,
            seed=training.seed,
            priority=training.priority,
        )

    def _chosen(self, training: StudyJob, key: str) -> list[int]:
        """Checkpoints of a run."""
        return self._smoke.get(key) or self._content["runs"][training.run].get(key) or self._content[key]

    def _seeds(self, name: str) -> list[int]:
        """Of a run."""
        return self._smoke.get("seeds") or self._content["runs"][name].get("seeds", SEEDS)

    def _set(self, name: str) -> Path:
        return self._work / "sets" / name


def _text(value: Any) -> str:
    """As an option's value."""
    return value if isinstance(value, str) else json.dumps(value)
