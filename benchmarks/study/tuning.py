"""The temperatures of a run: a grid on validation prompts, of which the best is taken for all that is tested."""

from itertools import product
from pathlib import Path
from typing import Any

from sampling import Entry, OpenRun, decoded, line

from megavrc.evaluation.scene_scores import score_scenes
from megavrc.files import sha256_json, write_json
from megavrc.tokenizers import OmniTokenizer
from megavrc.video.scenes import from_attributes

FIRST, LATER, TOP_P = (1.0, 0.85, 0.7), (1.0, 0.7, 0.5), (1.0, 0.9)  # the paper's stand first


def tune(
    run: Path,
    checkpoint: int,
    json: Path,
    prompts: int = 128,
    later_passes: list[int] | None = None,
    split: str = "val",
    seed: int = 0,
) -> None:
    """Score clips at every point of the grid and name the best: most sound clips, then most whole ones, then the first.

    From the text all 18 points; from the true first frame, where the first temperature does nothing, 6.

    Args:
        run: folder of the run.
        checkpoint: step.
        json: gets all points and the best of each entry.
        prompts: the first so many samples of the split.
        later_passes: of a run with refinement, passes of the later frames.
        split: none that a test is made on.
        seed: of prompt i it is SEED + i, at every point.
    """
    opened = OpenRun(run, checkpoint, split)
    rows = list(range(len(opened.data)))[:prompts]
    scenes = [from_attributes(opened.attributes(row)) for row in rows]
    tokenizer = OmniTokenizer.from_checkpoint(opened.tokenizer)
    points: list[dict[str, Any]] = []
    entries: list[tuple[Entry, tuple[float, ...]]] = [("free", FIRST), ("given", FIRST[:1])]
    for entry, firsts in entries:
        for temperatures in product(firsts, LATER, TOP_P):
            ids = opened.draw([(row, seed + row) for row in rows], entry, temperatures, later_passes)
            found = score_scenes(decoded(tokenizer, ids, f"{entry} {temperatures}"), scenes)
            scores = {name: found[name] for name in ("all", "whole")}
            points.append(
                {
                    "entry": entry,
                    "temperatures": list(temperatures[:2]),
                    "top_p": temperatures[2],
                    "scores": {name: score.to_dict() for name, score in scores.items()},
                    "by_clip": {name: line(score.values) for name, score in scores.items()},
                }
            )
    write_json(
        json,
        {
            "checkpoint": checkpoint,
            "split": split,
            "prompts": len(rows),
            "seed": seed,
            "later_passes": later_passes or 1,
            "clips": sha256_json([opened.data.key(row) for row in rows]),
            "points": points,
            "best": {
                entry: best([point for point in points if point["entry"] == entry]) for entry, _ in entries
            },
        },
    )


def best(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the point with most sound clips, of equals with most whole ones, then the first: temperatures and top-p."""
    chosen = max(points, key=lambda point: [point["scores"][name]["value"] for name in ("all", "whole")])
    return {name: chosen[name] for name in ("temperatures", "top_p")}
