"""Tables and figures from result files."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("reproduce")
