"""Evaluate generated clips: do they show what the prompts say, and how long does one take."""

from megavrc.benchmarks.speed import speed
from megavrc.config import command
from megavrc.generation.evaluate import alignment
from megavrc.generation.evaluate_scenes import scenes

if __name__ == "__main__":
    command({"alignment": alignment, "speed": speed, "scenes": scenes})
