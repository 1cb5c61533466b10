"""What the parts of the pipeline cost on this machine: attention, tokenize."""

from megavrc.config import command
from megavrc.recipes.benchmark import tokenize
from megavrc.recipes.benchmark_attention import attention

if __name__ == "__main__":
    command({"attention": attention, "tokenize": tokenize})
