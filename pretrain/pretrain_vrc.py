"""Train VRC, stage 1 (images) or stage 2 (clips): `pretrain_vrc.py --config C.yaml [--dotted.key value ...]`.

Runs under torchrun, srun, mpirun or plain python; the same command resumes. See `--help` for every key.
"""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("pretrain_vrc")
