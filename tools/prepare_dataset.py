"""Make the list of videos, manifest.jsonl, that the other tools read, from a public data set or your own videos."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("prepare_dataset")
