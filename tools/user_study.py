"""People compare the clips of two models, blind."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("user_study")
