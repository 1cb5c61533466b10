"""What the parts of the pipeline cost on this machine: tokenize."""

from megavrc.config import command
from megavrc.recipes.benchmark import tokenize

if __name__ == "__main__":
    command({"tokenize": tokenize})
