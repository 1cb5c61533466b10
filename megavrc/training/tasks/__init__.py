"""The tasks that the one loop runs."""

from megavrc.training.tasks.base import Task

__all__ = ["Task"]
