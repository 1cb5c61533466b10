"""Do two runs agree? `compare_runs.py RUN_A RUN_B [--tolerance ...]`; a reference file can stand for a run."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("compare_runs")
