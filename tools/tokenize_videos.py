"""Videos to token shards: plan, run (any number of tasks), status, finalize, verify; captions to text-features."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("tokenize_videos")
