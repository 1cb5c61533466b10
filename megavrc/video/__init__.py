"""Video files in and out: decoding, writing, contact sheets (PyAV)."""

from megavrc.video.errors import VideoError
from megavrc.video.read import VideoInfo, count_frames, probe, read_clip, read_frames, read_picture
from megavrc.video.sheet import clip_grid, contact_sheet
from megavrc.video.write import MAX_FPS, MIN_FPS, write_gif, write_mp4, write_png

__all__ = [
    "MAX_FPS",
    "MIN_FPS",
    "VideoError",
    "VideoInfo",
    "clip_grid",
    "contact_sheet",
    "count_frames",
    "probe",
    "read_clip",
    "read_frames",
    "read_picture",
    "write_gif",
    "write_mp4",
    "write_png",
]
