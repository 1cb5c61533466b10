"""What the parts of the pipeline cost on this machine: attention, generate, loader, tokenize, train."""

from megavrc.config import command
from megavrc.recipes.benchmark import tokenize
from megavrc.recipes.benchmark_attention import attention
from megavrc.recipes.benchmark_generate import generate
from megavrc.recipes.benchmark_loader import loader
from megavrc.recipes.benchmark_train import train

if __name__ == "__main__":
    command(
        {"attention": attention, "generate": generate, "loader": loader, "tokenize": tokenize, "train": train}
    )
