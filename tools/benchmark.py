"""What the parts of the pipeline cost on this machine: attention, generate, loader, tokenize, train."""

from megavrc.benchmarks.attention import attention
from megavrc.benchmarks.generate import generate
from megavrc.benchmarks.loader import loader
from megavrc.benchmarks.tokenize import tokenize
from megavrc.benchmarks.train import train
from megavrc.config import command

if __name__ == "__main__":
    command(
        {"attention": attention, "generate": generate, "loader": loader, "tokenize": tokenize, "train": train}
    )
