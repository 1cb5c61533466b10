"""What is in a token dataset: counts, one sample, and with a tokenizer decoded samples beside their videos."""

from megavrc.config import command
from megavrc.tokenization.inspect import inspect

if __name__ == "__main__":
    command(inspect)
