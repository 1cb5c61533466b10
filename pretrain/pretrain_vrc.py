"""Train VRC, stage 1 (images) or stage 2 (clips): `pretrain_vrc.py --config C.yaml [--dotted.key value ...]`.

Runs under torchrun, srun, mpirun or plain python; the same command resumes. See `--help` for every key.
"""

from megavrc.training.entry import pretrain
from megavrc.training.tasks.vrc import VRCTask
from megavrc.training.tasks.vrc_config import RunConfig

if __name__ == "__main__":
    pretrain(RunConfig, lambda config, rank: VRCTask(config))
