"""SLURM jobs: `submit_slurm.py submit --nodes=8 --gpus=8 --time=24:00:00 -- pretrain/pretrain_vrc.py --config=C`."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("submit_slurm")
