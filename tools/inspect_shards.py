"""What is in a token dataset: counts, one sample, and with a tokenizer decoded samples beside their videos."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("inspect_shards")
