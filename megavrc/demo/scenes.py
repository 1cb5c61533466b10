"""The demo on clips whose future is open: one model with refinement, in the paper's one pass and in several."""

import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megavrc.config import CONFIGS as SHIPPED
from megavrc.demo.report import curves, facts
from megavrc.demo.steps import ROOT, Step, model_steps, read_timing
from megavrc.errors import UserError
from megavrc.files import write_atomic
from megavrc.generation.folder import load_folder
from megavrc.model import Sampling, SamplingSettings
from megavrc.report.page import picture, render
from megavrc.results import markdown, read_result, shown
from megavrc.video import clip_grid, read_clip, write_gif
from megavrc.video.manifest import read_manifest

CLIPS = 6144
PROMPTS = 96  # and validation clips
DRAWS = 48  # clips from each of 8 first frames
PASSES = (8, 1, 1, 1)  # of the later frames
TEMPERATURES = (0.85, 0.7)  # of the first frame and the later ones
ROWS = 6  # prompts of the moving picture
SAMPLERS = {"one_pass": [1], "refined": list(PASSES)}
CONFIGS = {
    name: SHIPPED / f"demo_scenes_{file}.yaml"
    for name, file in {"tokenizer": "tokenizer", "stage1": "image", "stage2": "video"}.items()
}
SCORES = ("whole", "modes", "all", "count", "colour", "shape", "direction", "speed")
SETS = {  # of a result file -> what it is; the first two do not depend on the sampler
    "real": "validation clips as rendered",
    "reconstructed": "the same clips through the video tokenizer: the ceiling",
    "from_first_frame": "generated from the caption and the true first frame",
    "generated": "generated from the caption alone",
}
MOVING = "real clips, the paper's sampler and refinement side by side, moving, under their prompts"


def scene_steps(run: Path, part: float, seed: int, processes: int) -> list[Step]:
    """The commands of the demo in their order."""
    prompts = max(8, round(part * PROMPTS))
    stages = {"IMAGE_CONFIG": str(CONFIGS["stage1"]), "VIDEO_CONFIG": str(CONFIGS["stage2"])}
    return [
        Step(
            "make clips",
            [
                sys.executable,
                "tools/make_scenes.py",
                f"--out={run / 'data'}",
                f"--clips={round(part * CLIPS)}",
            ]
            + ["--kind=single", "--told=0.5", f"--val={prompts}", "--test=0", "--heldout=0"]
            + [f"--processes={processes}"],
            run / "data" / "manifest.jsonl",
        ),
        *model_steps(run, "VRC with refinement", CONFIGS, part, seed, processes, stages),
        *(score_step(run, name, passes, prompts, seed) for name, passes in SAMPLERS.items()),
    ]


def score_step(run: Path, name: str, passes: list[int], prompts: int, seed: int) -> Step:
    """Scores of the model with one sampler."""
    return Step(
        f"generate and score clips: passes {' '.join(map(str, passes))} of the later frames",
        [sys.executable, "tools/evaluate.py", "scenes", f"--model={run / 'hf'}"]
        + [f"--manifest={run / 'data' / 'manifest.jsonl'}", f"--n={prompts}", f"--draws={DRAWS}"]
        + [f"--first_temperature={TEMPERATURES[0]}", f"--later_temperature={TEMPERATURES[1]}"]
        + ["--later_passes", *map(str, passes), f"--seed={1000 * seed}"]
        + [f"--json={run / name}.json", f"--sheet={run / name}.png"],
        run / f"{name}.json",
    )


def finish_scenes(run: Path, seed: int) -> tuple[Path, list[tuple[str, str]]]:
    """Write the moving picture and `report.html`, print the scores; the page, and what to do next: (what, command)."""
    write_moving(run, seed)
    sets = scored_sets(run)
    head = ["clips", "sampler", *SCORES]
    print("\n" + markdown(head, [[name, how, *values.values()] for name, how, values in sets]))
    timing = read_timing(run / "timing.json")
    page = render(
        Path(__file__).with_name("scenes.html"),
        sets=[(name, SETS[name], how, values) for name, how, values in sets],
        passes=" ".join(map(str, PASSES)),
        temperatures=" / ".join(f"{value:g}" for value in TEMPERATURES),
        draws=DRAWS,
        moving=picture(run / "moving.gif", MOVING),
        stills=picture(run / "refined.png", "frames of real, reconstructed and generated clips"),
        curves=[curves(run / name, name) for name in CONFIGS],
        steps=timing,
        what_now=(next_steps := what_next(run)),
        facts=facts(run, run / "refined.json"),
        root=shlex.quote(str(ROOT)),
    )
    write_atomic(run / "report.html", page.encode())
    return run / "report.html", next_steps


def scored_sets(run: Path) -> list[tuple[str, str, dict[str, str]]]:
    """Name, sampler and scores with their intervals of every set, as text."""
    rows = []
    for sampler in SAMPLERS:
        for row in read_result(run / f"{sampler}.json")["cases"]:
            if row["name"] not in SETS:
                raise UserError(
                    f"{run}/{sampler}.json: {row['name']!r:.40} is no set of these clips; score them again"
                )
            of_data = row["name"] in ("real", "reconstructed")
            if of_data and sampler != "one_pass":
                continue
            metrics: dict[str, Any] = row["metrics"]
            found = {name: shown(metrics[name]) if name in metrics else "-" for name in SCORES}
            rows.append((row["name"], "" if of_data else sampler.replace("_", " "), found))
    return sorted(rows, key=lambda row: list(SETS).index(row[0]))


def write_moving(run: Path, seed: int) -> None:
    """RUN/moving.gif: for some prompts the real clip and both samplers from its first frame, with the same seed."""
    loaded = load_folder(run / "hf")
    manifest = run / "data" / "manifest.jsonl"
    entries = [row for row in read_manifest(manifest) if row["split"] == "val"][:ROWS]
    prompts = [entry["caption"] for entry in entries]
    real = np.stack([read_clip(manifest.parent / entry["path"], 0, 17, size=None) for entry in entries])
    sets = {"real": real}
    for name, passes in SAMPLERS.items():
        first, later = (Sampling(value) for value in TEMPERATURES)
        made = loaded.generate(
            prompts,
            seed=seed,
            settings=SamplingSettings(first, later, later_passes=passes),
            first_frame=torch.from_numpy(real[:, 0]),
        )
        sets[name.replace("_", " ")] = np.asarray(made[1])
    cells = [(name, clips[index]) for index in range(len(entries)) for name, clips in sets.items()]
    moving = clip_grid(cells, columns=len(sets), scale=3, headings=prompts, text=18)
    write_gif(run / "moving.gif", moving, fps=8)


def what_next(run: Path) -> list[tuple[str, str]]:
    """Commands that use the trained model."""
    megavrc, model = [sys.executable, "-m", "megavrc"], f"--model={run / 'hf'}"
    more = ["--prompt", "a red ring", "--clips_per_prompt=8", f"--out={run / 'samples'}"]
    return [
        ("eight futures of a prompt of yours", shlex.join([*megavrc, "generate", model, *more])),
        (
            "the same in the paper's one pass",
            shlex.join([*megavrc, "generate", model, *more, "--later_passes=1"]),
        ),
        ("a web page that generates clips", shlex.join([*megavrc, "serve", model])),
    ]
