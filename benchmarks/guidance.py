"""What guidance does to clips of the demo: `python benchmarks/guidance.py --model NAME=FOLDER .. --manifest FILE`.

Every combination of colour, shape and direction that was trained on is asked for equally often, with the same seeds at
every setting, and the detector of `megavrc evaluate alignment` says what came.
"""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from megavrc.config import command
from megavrc.errors import UserError
from megavrc.evaluation.alignment import Score, score
from megavrc.generation.evaluate import checked_settings, shape_entries
from megavrc.generation.folder import Folder, load_folder
from megavrc.model import SamplingSettings
from megavrc.progress import progress
from megavrc.results import Metric, case, metric, publish_tables, result
from megavrc.video.shapes import Combination, caption

BATCH = 22
KEYS = (*Combination._fields, "all")
PROTOCOL = {
    "value": "share of clips in which the detector finds what the prompt says",
    "spread": "95% interval (Wilson)",
    "generated": "clip i has seed SEED + i at every setting, so settings of one model are compared on the same draws",
}


def main(
    model: list[str],
    manifest: Path,
    guidance: list[str] = ["1", "1.5", "2", "3", "5"],  # noqa: B006
    plausibility: list[float] = [0.0, 0.1],  # noqa: B006
    clips: int = 132,
    temperature: list[str] = ["0.7/0.5", "1/1"],  # noqa: B006
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Measure alignment at several strengths of guidance.

    Args:
        model: converted folders, each as NAME=FOLDER.
        manifest: of the clips that they were trained on, made by megavrc make_shapes.
        guidance: scales, or FIRST/LATER, of the first frame and of the later ones; at 1 there is none to bound.
        plausibility: bounds; 0 is none.
        clips: of each setting; rounded so that each combination comes equally often.
        temperature: each FIRST/LATER, of the first frame and of the later ones.
        seed: of the first clip.
        json: file that gets what is printed.
    """
    combinations = sorted({shown for shown, _ in shape_entries(manifest, "train")})
    asked = combinations * max(1, round(clips / len(combinations)))
    rows = []
    for words in model:
        name, _, path = words.partition("=")
        if not path:
            raise UserError(f"--model {words}: expected NAME=FOLDER")
        folder = load_folder(Path(path))
        for heat, scale, bound in product(temperature, guidance, plausibility):
            if scale == "1" and bound != plausibility[0]:
                continue
            first, later = map(float, heat.split("/"))
            scales = [float(part) for part in scale.split("/")]
            guided: dict[str, Any] = {"later_guidance": scales[-1], "plausibility": bound}
            settings = checked_settings(first, later, scales[0], **guided)
            label = f"{name}, temperatures {heat}, guidance {scale}"
            label += f", plausibility {bound:g}" if bound and scale != "1" else ""
            found = measure(folder, asked, settings, seed, label)
            facts: dict[str, Any] = {
                "temperatures": heat,
                "guidance": scales[0],
                **guided,
                "model": folder.identity(),
            }
            rows.append(case(label, {key: share(found, key) for key in KEYS}, **facts))
    config = {"seed": seed, "clips": len(asked)}
    publish_tables(result("benchmarks/guidance.py", config, rows, protocol=PROTOCOL), json)


def measure(
    folder: Folder, asked: list[Combination], settings: SamplingSettings, seed: int, label: str
) -> Score:
    """Generate one clip a combination and score them."""
    made = []
    for start in progress(range(0, len(asked), BATCH), label):
        texts = [caption(combination) for combination in asked[start : start + BATCH]]
        seeds = [seed + start + index for index in range(len(texts))]
        made.append(folder.generate(texts, seed=seeds, settings=settings, batch_size=len(texts))[1].numpy())
    return score(np.concatenate(made), asked)


def share(found: Score, key: str) -> Metric:
    """One of the shares of a score with its interval."""
    value, count = found[key], found["n"]  # type: ignore[literal-required]
    around = binomtest(round(value * count), count).proportion_ci(method="wilson")
    return metric(value, "share", count, float(around.low), float(around.high))


if __name__ == "__main__":
    command(main)
