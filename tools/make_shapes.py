"""Make synthetic captioned clips: H.264 files and a manifest."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("make_shapes")
