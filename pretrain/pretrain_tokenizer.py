"""Train a video tokenizer: `pretrain_tokenizer.py --config C.yaml [--dotted.key value ...]`.

Runs under torchrun, srun, mpirun or plain python; the same command resumes. The finished tokenizer is in
`<run_dir>/model`. See `--help` for every key.
"""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("pretrain_tokenizer")
