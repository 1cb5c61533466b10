"""Memory, throughput, time and cost of a run: `plan_run.py --gpu=h100 --gpus=8 --check -- --config=C.yaml ...`."""

import json
import sys

from megavrc.config import command
from megavrc.recipes.plan import plan_run

if __name__ == "__main__":
    if "--" in sys.argv:  # what follows are the options of the training command
        at = sys.argv.index("--")
        sys.argv[at:] = [f"--config={json.dumps(sys.argv[at + 1 :])}"]
    command(plan_run)
