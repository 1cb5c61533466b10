"""Clips from a converted folder: conditions from prompts, generation, files."""
