"""The study's run matrix: every run is a configuration that loads, and they come in the order that is promised."""

import copy
import functools
import re
from pathlib import Path

import pytest
from matrix import Matrix, StudyJob

from megavrc.config import load_config
from megavrc.errors import UserError
from megavrc.model.flops import training_flops
from megavrc.training.tasks.vrc_config import RunConfig

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "study" / "matrix.yaml"


def configuration(job: StudyJob) -> RunConfig:
    return copy.deepcopy(loaded(tuple(job.words[1:])))


@functools.cache  # it takes a while, for forty of them
def loaded(words: tuple[str, ...]) -> RunConfig:
    return load_config(RunConfig, list(words))


def checkpoints(jobs: list[StudyJob]) -> dict[str, set[int]]:
    """What is measured of every run: bits, or samples too."""
    found: dict[str, set[int]] = {}
    for job in jobs:
        for steps in re.findall(r"--checkpoints?=\[?([\d, ]+)", " ".join(job.words)):
            found.setdefault(f"{job.run}-{job.seed}", set()).update(map(int, steps.split(",")))
    return found


@pytest.mark.parametrize("smoke", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_run_is_a_configuration(smoke: bool) -> None:
    """One that waits for an option is refused for that option alone."""
    jobs = Matrix(FILE, Path("work"), smoke).jobs(samples=True, tune=True)
    measured = checkpoints(jobs)
    first = {job.run: job for job in reversed(jobs) if job.trains}  # seeds differ in the seed
    for job in first.values():
        if job.needs:
            with pytest.raises(UserError, match=f"--{job.needs}"):
                configuration(job)
            continue
        train = configuration(job).train
        if train.keep_every:
            kept = {*range(train.keep_every, train.steps, train.keep_every), train.steps}
            assert measured[job.name] <= kept, f"{job.name} measures checkpoints that it does not keep"


def test_a_seed_that_no_run_has_is_refused() -> None:
    with pytest.raises(UserError, match="--seeds: no run has seed 7; choose of 0, 1, 2"):
        Matrix(FILE, Path("work")).jobs(seeds=[0, 7])


def test_a_work_folder_may_have_spaces() -> None:
    jobs = {job.name: job for job in Matrix(FILE, Path("my work")).jobs()}
    clips = jobs["told0/clips"].words
    assert clips[:2] == ["tools/make_scenes.py", "--told=0"] and "--out=my work/sets/told0/data" in clips
    assert jobs["told0/tokens"].product == Path("my work/sets/told0/tokens/image/manifest.json")
    assert "--tokenizer=my work/sets/scenes/tokenizer/model" in jobs["told0/tokens"].words


def test_runs_come_by_priority_then_seed_and_after_what_they_need() -> None:
    jobs = Matrix(FILE, Path("work")).jobs(samples=True, tune=True)
    places = {job.name: place for place, job in enumerate(jobs)}
    assert all(places[name] < places[job.name] for job in jobs for name in job.after)
    runs = [job for job in jobs if job.trains]
    assert [(job.priority, job.seed) for job in runs] == sorted((job.priority, job.seed) for job in runs)
    assert [job.name for job in runs[:4]] == [
        "scenes-stage1-0",
        "scenes-vrc-0",
        "scenes-token-0",
        "scenes-refine-0",
    ]


def test_clips_are_judged_by_the_token_model_of_another_seed() -> None:
    jobs = {job.name: job for job in Matrix(FILE, Path("work")).jobs(samples=True, tune=True)}
    judged = [job for job in jobs.values() if "/judge-" in job.name]
    assert {job.run for job in judged} >= {"scenes-vrc", "scenes-token", "scenes-refine", "scenes-rate16"}
    for job in judged:
        [judge] = re.findall(r"--run=work/runs/(\S+)-(\d)", " ".join(job.words))
        assert judge[0] == "scenes-token" and int(judge[1]) != job.seed and job.after[1] == "-".join(judge)
    assert "scenes-refine-2/judge-free-refined-tuned-4000" in jobs
    assert "scenes-token-0/judge-free-2250" not in jobs, "the last step's clips are judged"


def test_bits_with_passes_in_every_later_frame_are_of_runs_whose_frames_are_all_open() -> None:
    jobs = [job for job in Matrix(FILE, Path("work")).jobs() if job.name.endswith("/passes")]
    assert [job.name for job in jobs] == [f"gameplay-refine-{seed}/passes" for seed in range(3)]
    assert jobs[1].words[2:-1] == ["--run=work/runs/gameplay-refine-1", "--count=8"]
    assert jobs[1].after == ["gameplay-refine-1"]


def test_what_the_tokenizer_leaves_of_the_clips_is_scored_once_for_a_set() -> None:
    jobs = {job.name: job for job in Matrix(FILE, Path("work")).jobs(samples=True, tune=True)}
    found = [name for name in jobs if "reconstructed-" in name and not name.endswith("/ids")]
    runs = ("scenes-vrc-0", "again-rate4-1", "told0-vrc-0", "told1-vrc-0", "corner-vrc-0")
    assert found == [f"{run}/reconstructed-4000" for run in runs]
    drawing, drawn = (jobs[f"scenes-vrc-0/{kind}-4000/ids"].words for kind in ("reconstructed", "given"))
    assert "--entry=real" in drawing and drawing[4] == drawn[4] == "--prompts=512", "the same prompts"
    assert not any("reconstructed-" in job.name for job in Matrix(FILE, Path("work")).jobs(tune=True))


def test_temperatures_are_found_before_they_are_used_and_apart_from_samples() -> None:
    matrix = Matrix(FILE, Path("work"))
    jobs = {job.name: job for job in matrix.jobs(tune=True)}
    drawing = jobs["scenes-vrc-1/each-tuned-4000/ids"]
    assert drawing.after == ["scenes-vrc-1/tuning"] and jobs[drawing.after[0]].product.name == "tuning.json"
    assert f"--tuning={jobs[drawing.after[0]].product}" in drawing.words
    assert "scenes-vrc-1/given-4000" not in jobs and "gameplay-vrc-0/tuning" not in jobs
    assert "scenes-token-0/free-tuned-2250" in jobs and "scenes-token-0/modes-tuned-2250" not in jobs
    assert jobs["scenes-refine-0/given-refined-tuned-4000/ids"].words[-6:-2] == ["8", "1", "1", "1"]
    assert not any("tun" in job.name for job in matrix.jobs(samples=True))


def test_models_of_a_comparison_differ_in_their_overrides_alone() -> None:
    jobs = {job.name: job for job in Matrix(FILE, Path("work")).jobs()}
    vrc, token = (configuration(jobs[name]) for name in ("scenes-vrc-1", "scenes-token-1"))
    token.model.prediction, token.run_dir = vrc.model.prediction, vrc.run_dir
    assert token == vrc


def test_the_budgets_are_equal_where_the_page_says_so() -> None:
    """Equal FLOPs: the first kept checkpoint of the other run that has had at least as many."""
    jobs = {job.name: job for job in Matrix(FILE, Path("work")).jobs(samples=True)}
    measured = checkpoints(list(jobs.values()))

    def clip(name: str) -> int:
        return training_flops(configuration(jobs[name]).model)

    for vrc, token, step in (
        ("scenes-vrc-0", "scenes-token-0", 2250),
        ("scenes-vrc-0", "scenes-token-160-0", 1500),
        ("gameplay-vrc-0", "gameplay-token-0", 500),
    ):
        exact = configuration(jobs[vrc]).train.steps * clip(vrc) / clip(token)
        assert step - 250 < exact <= step and step in measured[token]
    for name in ("scenes", "gameplay"):
        image, video = (configuration(jobs[f"{name}-{run}-0"]).train.steps for run in ("stage1", "vrc"))
        with_both = video + image * clip(f"{name}-stage1-0") / clip(f"{name}-vrc-0")
        steps = configuration(jobs[f"{name}-without-stage1-0"]).train.steps
        assert steps - 250 < with_both <= steps


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("set: told1", "set: told2", r"runs\.told1-stage1\.set: there is no 'told2'"),
        ("ceiling: told1-vrc", "ceiling: told1", r"sets\.told1\.ceiling: there is no 'told1'"),
    ],
)
def test_a_matrix_that_names_what_is_not_there_is_refused(
    tmp_path: Path, right: str, wrong: str, said: str
) -> None:
    (tmp_path / "matrix.yaml").write_text(FILE.read_text().replace(right, wrong))
    with pytest.raises(UserError, match=said):
        Matrix(tmp_path / "matrix.yaml", tmp_path)
