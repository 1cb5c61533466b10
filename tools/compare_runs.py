"""Do two runs agree? `compare_runs.py RUN_A RUN_B [--tolerance ...]`; a reference file can stand for a run."""

import sys

from megavrc.config import command, leading_words
from megavrc.training.compare import compare_runs

if __name__ == "__main__":
    sys.argv = leading_words(sys.argv, "--run_a", "--run_b")
    command(compare_runs)
