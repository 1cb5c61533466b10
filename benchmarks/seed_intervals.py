"""How often the study's intervals over three seeds hold the truth: `python benchmarks/seed_intervals.py`.

Clips of three trainings between which nothing differs: a seed moves all of its clips, and each clip has its own noise.
"""

import numpy as np
from scipy import stats

from megavrc.paper.study_claims import SEEDS, crossed

TRIALS = 400
CASES = {"clips vary more than seeds": (0.02, 0.5, 512), "seeds vary more than clips": (20.0, 30.0, 64)}


def main() -> None:
    rng, quantile = np.random.default_rng(0), float(stats.t.ppf(0.975, SEEDS - 1))
    for name, (seed_sd, clip_sd, clips) in CASES.items():
        bootstrap = student = 0
        for _ in range(TRIALS):
            by_seed = [rng.normal(0, seed_sd) + rng.normal(0, clip_sd, clips) for _ in range(SEEDS)]
            found = crossed(by_seed)
            means = np.mean(by_seed, axis=1)
            reach = quantile * means.std(ddof=1) / np.sqrt(SEEDS)
            bootstrap += found.low <= 0 <= found.high
            student += abs(means.mean()) <= reach
        print(f"{name}: bootstrap {bootstrap / TRIALS:.0%}, Student's t over seeds {student / TRIALS:.0%}")


if __name__ == "__main__":
    main()
