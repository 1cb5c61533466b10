"""Evaluate a converted model: do its clips show what the prompts say, and how long does one take."""

from megavrc.config import command
from megavrc.recipes.evaluate import alignment, speed

if __name__ == "__main__":
    command({"alignment": alignment, "speed": speed})
