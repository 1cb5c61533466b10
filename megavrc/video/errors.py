"""The error of a video that gives no clip."""

from pathlib import Path
from typing import Literal

Stage = Literal["io", "open", "decode", "short", "timeout", "crash"]


class VideoError(Exception):
    """A video that gives no clip: `stage` says where it failed, `reason` why.

    Stages: "io" (no such file, or the drive failed), "open" (not a video), "decode", "short"; of a decoding process:
    "timeout", "crash".
    """

    def __init__(self, path: str | Path, stage: Stage, reason: str) -> None:
        reason = reason.encode(errors="backslashreplace").decode()  # it may hold the name of a file
        super().__init__(path, stage, reason)  # all arguments: so that it survives pickling between processes
        self.path, self.stage, self.reason = Path(path), stage, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.stage}: {self.reason}"


def stage(error: Exception, otherwise: Stage) -> Stage:
    """A file that cannot be read may be readable later; damaged content stays damaged."""
    return "io" if isinstance(error, OSError) else otherwise


def reason(error: Exception) -> str:
    """The text of an error of the system or of FFmpeg, without numbers."""
    return getattr(error, "strerror", None) or str(error)
