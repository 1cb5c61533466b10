"""Show a result file as a table, or compare two: which numbers differ, and what else."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("results")
