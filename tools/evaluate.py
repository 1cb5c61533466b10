"""Evaluate generated clips: do they show what the prompts say, and how long does one take."""

from megavrc.config import command
from megavrc.recipes.evaluate import alignment, speed
from megavrc.recipes.evaluate_scenes import scenes

if __name__ == "__main__":
    command({"alignment": alignment, "speed": speed, "scenes": scenes})
