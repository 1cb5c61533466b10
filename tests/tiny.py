"""The smallest video tokenizer: random weights, 32 codes, 4 x 4 cells of a frame of 32 x 32."""

from pathlib import Path

import torch

from megavrc.model.omnitokenizer import OmniTokenizerConfig, OmniTokenizerNet
from megavrc.tokenizers import OmniTokenizer

TINY = OmniTokenizerConfig(
    width=16,
    heads=2,
    dim_head=8,
    enc_block="t",
    dec_block="t",
    temporal_depth=1,
    window=2,
    codes=32,
    code_dim=4,
)


def save_tokenizer(folder: Path, seed: int = 0) -> Path:
    """Write it as a folder, which is returned."""
    torch.manual_seed(seed)
    OmniTokenizer(OmniTokenizerNet(TINY)).save(folder)
    return folder
