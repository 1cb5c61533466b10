"""SLURM jobs: `submit_slurm.py submit --nodes=8 --gpus=8 --time=24:00:00 -- pretrain/pretrain_vrc.py --config=C`."""

import json
import sys

from megavrc.config import command
from megavrc.recipes.submit import render, requeue, status, submit

if __name__ == "__main__":
    if "--" in sys.argv:  # what follows is the command to run, as for srun
        at = sys.argv.index("--")
        sys.argv[at:] = [f"--command={json.dumps(sys.argv[at + 1 :])}"]
    command({"submit": submit, "render": render, "requeue": requeue, "status": status})
