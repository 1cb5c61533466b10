"""SLURM jobs: `submit_slurm.py submit --nodes=8 --gpus=8 --time=24:00:00 -- pretrain/pretrain_vrc.py --config=C`."""

import sys

from megavrc.config import command, trailing_words
from megavrc.launch.submit import render, requeue, status, submit

if __name__ == "__main__":
    sys.argv = trailing_words(sys.argv, "--command")
    command({"submit": submit, "render": render, "requeue": requeue, "status": status})
