"""What the parts of the pipeline cost on this machine: attention, generate, loader, tokenize, train."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("benchmark")
