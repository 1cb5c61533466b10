"""Write frames as H.264 mp4, GIF or PNG. Files appear whole: they are written beside their name, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray
from PIL import Image

PIXELS = "yuv420p"  # the only pixel format of H.264 that plays everywhere

MIN_FPS, MAX_FPS = 0.01, 1000.0  # frames a second of the files: the limits of their clocks

Frames = NDArray[np.uint8]  # [T, H, W, 3], RGB


def write_mp4(
    path: str | Path,
    frames_THWC: Frames,
    fps: float = 8,
    scale: int = 1,
    crf: int = 12,
) -> None:
    """Write an H.264 mp4 that browsers play and that starts before it is loaded whole.

    Args:
        path: the file; its folder must exist.
        frames_THWC: uint8 [T, H, W, 3]. An odd side is extended by its last row or column (4:2:0 needs even ones).
        fps: frames a second.
        scale: enlarge each pixel this many times (nearest), for tiny clips.
        crf: x264 quality, 1 (best) to 51.
    """
    frames = enlarge(_checked(frames_THWC), scale)
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    # chromaloc: a sample of colour stands for the middle of its 2x2 pixels, which is how swscale makes them here.
    # Unsaid, a reader takes H.264's default, the left, and shows all colour half a pixel too far left.
    # mbtree: with x264's macroblock tree the same small frames give other bytes now and then (7 of 100 of 64x64).
    options = {"crf": str(crf), "preset": "veryfast", "x264-params": "chromaloc=1:mbtree=0"}
    with (
        _whole(path) as temporary,
        av.open(f"file:{temporary}", "w", "mp4", {"movflags": "+faststart"}) as container,
    ):
        stream = container.add_stream("libx264", rate=_rate(fps), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = PIXELS
        stream.codec_context.thread_count = 1
        # Untagged files are guessed by their size: say what the conversion below uses.
        stream.codec_context.colorspace = Colorspace.ITU601
        stream.codec_context.color_range = ColorRange.MPEG
        reformatter = VideoReformatter()  # keeps its tables from frame to frame
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            converted = reformatter.reformat(
                frame, format=PIXELS, dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(converted))
        container.mux(stream.encode())


def write_gif(path: str | Path, frames_THWC: Frames, fps: float = 8, scale: int = 1) -> None:
    """Write an endless GIF with a palette of its own (256 colours chosen from all frames)."""
    frames = enlarge(_checked(frames_THWC), scale)
    with _whole(path) as temporary, av.open(f"file:{temporary}", "w", "gif", {"loop": "0"}) as container:
        stream = container.add_stream("gif", rate=_rate(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "pal8"
        for frame in _with_palette(frames, _rate(fps)):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_png(path: str | Path, image_HWC: NDArray[np.uint8]) -> None:
    """Write one picture, uint8 [H, W, 3]."""
    with _whole(path) as temporary:
        Image.fromarray(np.ascontiguousarray(image_HWC)).save(temporary, format="png")


def enlarge(frames: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Repeat every pixel of [.., H, W, 3] `scale` times in both directions."""
    if scale < 1:
        raise ValueError(f"scale {scale}: at least 1")
    return frames if scale == 1 else frames.repeat(scale, axis=-3).repeat(scale, axis=-2)


def _with_palette(frames: Frames, rate: Fraction) -> Iterator[Any]:
    """Run FFmpeg's palettegen and paletteuse over a clip; yields paletted frames."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frames.shape[2], height=frames.shape[1], format="rgb24", time_base=1 / rate
    )
    split, generate = graph.add("split"), graph.add("palettegen", "reserve_transparent=0")
    use, sink = graph.add("paletteuse", "dither=sierra2_4a:diff_mode=rectangle"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(generate, 1, 0)
    generate.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    for time, picture in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = time, 1 / rate
        source.push(frame)
    source.push(None)
    for _ in frames:
        yield sink.pull()


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def _checked(frames_THWC: Frames) -> Frames:
    if (
        frames_THWC.dtype != np.uint8
        or frames_THWC.ndim != 4
        or frames_THWC.shape[-1] != 3
        or not len(frames_THWC)
    ):
        raise ValueError(
            f"frames {frames_THWC.dtype} {list(frames_THWC.shape)}: uint8 [T, H, W, 3] is needed, T >= 1"
        )
    return frames_THWC


@contextmanager
def _whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name; the file gets its own name only when it is complete."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        # FFmpeg's has the temporary name or, as that of a full disk, none.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
