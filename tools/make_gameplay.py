"""Make captioned clips of six scenarios of ViZDoom: H.264 files and a manifest."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("make_gameplay")
