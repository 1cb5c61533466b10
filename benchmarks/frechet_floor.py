"""Frechet distance of two sets drawn from one distribution, by their size: `python benchmarks/frechet_floor.py`.

With any number of clips it would be 0. Features are normal and independent; their 400 dimensions are those of the I3D
network, and the variance of dimension i falls as i to the minus 1.1.
"""

from pathlib import Path

import numpy as np

from megavrc.config import command
from megavrc.evaluation.frechet import frechet
from megavrc.progress import progress
from megavrc.results import case, median_of, publish_tables, result

DIMENSIONS, POWER, TRACE = 400, 1.1, 122.5
SIZES = (16, 64, 256, 1024, 2048)


def main(draws: int = 10, json: Path | None = None) -> None:
    """Measure the distances.

    Args:
        draws: pairs of sets of each size.
        json: write the result there.
    """
    random = np.random.default_rng(0)
    variance_D = np.arange(1, DIMENSIONS + 1) ** -POWER
    deviation_D = np.sqrt(variance_D * TRACE / variance_D.sum())
    rows = []
    for size in progress(SIZES, "sizes"):
        sets = random.standard_normal((draws, 2, size, DIMENSIONS)) * deviation_D
        rows.append(case(f"{size} clips", {"distance": median_of([frechet(*pair) for pair in sets])}))
    config = {"dimensions": DIMENSIONS, "power": POWER, "trace": TRACE, "draws": draws, "seed": 0}
    found = result("benchmarks/frechet_floor.py", config, rows, protocol={"spread": "range of the draws"})
    publish_tables(found, json)


if __name__ == "__main__":
    command(main)
