"""What the parts of the pipeline cost on this machine: generate, tokenize."""

from megavrc.config import command
from megavrc.recipes.benchmark import tokenize
from megavrc.recipes.benchmark_generate import generate

if __name__ == "__main__":
    command({"generate": generate, "tokenize": tokenize})
