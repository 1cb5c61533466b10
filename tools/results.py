"""Show a result file as a table, or compare two: which numbers differ, and what else."""

import sys

from megavrc.config import command, leading_words
from megavrc.results import compare, show

OPERANDS = {"show": ["--file"], "compare": ["--first", "--second"]}

if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.argv[1:] = leading_words(sys.argv[1:], *OPERANDS.get(sys.argv[1], []))
    command({"show": show, "compare": compare})
