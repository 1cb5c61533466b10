"""Memory, throughput, time and cost of a run: `plan_run.py --gpu=h100 --gpus=8 --check -- --config=C.yaml ...`."""

import sys

from megavrc.config import command, trailing_words
from megavrc.launch.plan_run import plan_run

if __name__ == "__main__":
    sys.argv = trailing_words(sys.argv, "--config")
    command(plan_run)
