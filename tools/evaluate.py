"""Evaluate generated clips: do they show what the prompts say, and how long does one take."""

from megavrc.__main__ import main

if __name__ == "__main__":
    main("evaluate")
