"""Pictures of the clips that the study's runs have drawn: the same prompts side by side, and each model's worst."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sampling import OpenRun, decoded

from megavrc.errors import UserError
from megavrc.files import read_json
from megavrc.tokenizers import OmniTokenizer
from megavrc.video import contact_sheet, write_png
from megavrc.video.scenes import from_attributes, render_scene

CLIPS, COLUMNS = 8, 3
Clips = list[NDArray[np.uint8]]


def sheet(
    work: Path, out: Path, worst: Path, kind: str = "given", seed: int = 0, set_name: str = "scenes"
) -> None:
    """Draw the first 8 prompts of the test split, none chosen, and each model's 8 clips with the fewest whole frames.

    Args:
        work: folder of the study's runner.
        out: PNG file: for each prompt the real clip, the reconstructed one and that of every run that has drawn any.
        worst: PNG file of the worst.
        kind: of the clips: `given`, `free`, `given-tuned`, ..; of a run with refinement, in several passes where these
            were drawn.
        seed: of the runs.
        set_name: whose runs.
    """
    found = {}
    for folder in sorted((work / "samples").glob(f"{set_name}-*-{seed}")):
        name = folder.name.removesuffix(f"-{seed}")
        refined = kind.replace(kind.partition("-")[0], f"{kind.partition('-')[0]}-refined", 1)
        for one in (kind, refined):
            steps = [int(file.stem.rpartition("-")[2]) for file in folder.glob(f"{one}-[0-9]*.npz")]
            if steps:
                found[f"{name}{', several passes' if one == refined else ''}"] = folder, f"{one}-{max(steps)}"
    if not found:
        raise UserError(
            f"{work}: no clips {kind!r} of {set_name} with seed {seed}; run.py run --samples draws them"
        )
    folder, stem = next(iter(found.values()))
    opened = OpenRun(work / "runs" / folder.name, int(stem.rpartition("-")[2]), "test")
    tokenizer = OmniTokenizer.from_checkpoint(opened.tokenizer)
    samples = [opened.data.read(place) for place in range(CLIPS)]
    ids = np.stack([ids for ids, _ in samples])
    sides = {
        "real": [render_scene(from_attributes(fields["attributes"])) for _, fields in samples],
        "reconstructed": [*decoded(tokenizer, ids, "reconstructed")],
    }
    bad: dict[str, Clips] = {}
    for label, (folder, stem) in found.items():
        drawn = np.load(folder / f"{stem}.npz")["ids"]
        sides[label] = [*decoded(tokenizer, drawn[:CLIPS], label)]
        places = worst_clips(work / "measured" / folder.name / f"{stem}.json")
        bad[label] = [*decoded(tokenizer, drawn[places], label)]
    write_png(out, side_by_side(sides))
    write_png(worst, side_by_side(bad))
    for row, (_, fields) in enumerate(samples, 1):
        print(f"{row}. {fields['caption']}")
    print(f"{out}, {worst}: {', '.join(f'{label} ({stem})' for label, (_, stem) in found.items())}")


def side_by_side(sides: dict[str, Clips]) -> NDArray[np.uint8]:
    """A column a source, a row a clip, uint8 [height, width, 3]: first, middle and last frame."""
    return np.concatenate(
        [contact_sheet([(label, clip) for clip in clips], COLUMNS, 1) for label, clips in sides.items()],
        axis=1,
    )


def worst_clips(scores: Path, count: int = CLIPS) -> list[int]:
    """Places of the clips with the fewest whole latent frames; of equals the first."""
    lines = read_json(scores)["by_clip"]
    curves = [line.split() for name, line in lines.items() if name.startswith("whole_by_latent_")]
    if not curves:
        raise UserError(f"{scores}: no whole_by_latent_0, .. of its clips; score them again")
    wholes = np.array(curves, float).sum(axis=0)
    return [int(place) for place in np.argsort(wholes, kind="stable")[:count]]
