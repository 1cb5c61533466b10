"""Train a video tokenizer: `pretrain_tokenizer.py --config C.yaml [--dotted.key value ...]`.

Runs under torchrun, srun, mpirun or plain python; the same command resumes. The finished tokenizer is in
`<run_dir>/model`. See `--help` for every key.
"""

from megavrc.training.entry import pretrain
from megavrc.training.tasks.tokenizer import TokenizerTask
from megavrc.training.tasks.tokenizer_config import TokenizerRunConfig

if __name__ == "__main__":
    pretrain(TokenizerRunConfig, TokenizerTask)
