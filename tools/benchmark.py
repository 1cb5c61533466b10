"""What the parts of the pipeline cost on this machine: loader, tokenize."""

from megavrc.config import command
from megavrc.recipes.benchmark import tokenize
from megavrc.recipes.benchmark_loader import loader

if __name__ == "__main__":
    command({"loader": loader, "tokenize": tokenize})
