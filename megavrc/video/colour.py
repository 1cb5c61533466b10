"""RGB of decoded frames: the matrix and the range of every frame are told to swscale, nothing is left to a default.

Primaries and transfer functions are not converted: the RGB of BT.2020 stays that of BT.2020. The two transfer functions
of HDR, whose codes would come out grey, are refused.
"""

from typing import Any

import numpy as np
from av import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from numpy.typing import NDArray

# Without the two flags swscale takes a shortcut that darkens every picture by one level and blurs chroma.
ACCURATE_RND, FULL_CHR_H_INT = 0x40000, 0x2000
RESAMPLING = Interpolation.BICUBIC | ACCURATE_RND | FULL_CHR_H_INT

# From the codes of ITU-T H.273 (FFmpeg's AVColorSpace, in which a file says its matrix) to those of swscale.
MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: 9,  # BT.2020; PyAV 17.0 has no name for it
}
UNTAGGED = {0, 2, 3}  # 0 is RGB, which says nothing of a YCbCr picture
HDR = {16: "PQ", 18: "HLG"}  # transfer functions
UNSPECIFIED = 2  # transfer function and primaries
FULL, LIMITED = ColorRange.JPEG, ColorRange.MPEG
EXPANDED = np.clip(np.round((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)


def to_rgb(reformatter: Any, frame: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Convert a decoded frame to RGB and resize it (bicubic, antialiased): uint8 [height, width, 3].

    Raises:
        ValueError: HDR, or a matrix that swscale does not know (YCgCo, ICtCp, constant luminance).
    """
    if frame.color_trc in HDR:
        raise ValueError(f"HDR ({HDR[frame.color_trc]}) is not read; convert the video to SDR")
    frame.color_trc = frame.color_primaries = UNSPECIFIED  # PyAV 17.0 refuses frames with reserved codes
    kind, tags = frame.format, {}
    grey = len(kind.components) < 3 and not kind.has_palette
    if len(kind.components) >= 3 and not kind.is_rgb:
        full = kind.name.startswith("yuvj") or frame.color_range == FULL
        tags = {"src_colorspace": _matrix(frame), "src_color_range": FULL if full else LIMITED}
    limited = grey and frame.color_range == LIMITED  # swscale ignores that tag
    if any(part.is_alpha for part in kind.components):
        frame, tags = _on_white(reformatter, frame, tags), {}
    # Planes, not rgb24: the same values in less than half the time.
    converted = reformatter.reformat(
        frame, width, height, "gbrp", interpolation=RESAMPLING, threads=1, **tags
    )
    picture: NDArray[np.uint8] = converted.to_ndarray()
    return EXPANDED[picture] if limited else picture


def _on_white(reformatter: Any, frame: Any, tags: dict[str, Any]) -> Any:
    """A frame whose transparent parts are white. Transparent everywhere, it is one whose alpha channel is not used."""
    picture = reformatter.reformat(
        frame, format="gbrap", interpolation=RESAMPLING, threads=1, **tags
    ).to_ndarray()
    colours, alpha = picture[..., :3], picture[..., 3:].astype(np.uint16)
    mixed = (colours * alpha + 255 * (255 - alpha) + 127) // 255 if alpha.any() else colours
    return VideoFrame.from_ndarray(mixed.astype(np.uint8), format="rgb24")


def _matrix(frame: Any) -> int:
    """The matrix that a frame is tagged with; of untagged ones BT.709 for HD, BT.601 below, as players have it."""
    if frame.colorspace in UNTAGGED:
        return Colorspace.ITU709 if frame.width >= 1280 or frame.height > 576 else Colorspace.ITU601
    if frame.colorspace not in MATRICES:
        raise ValueError(
            f"colour matrix {frame.colorspace} (ITU-T H.273) is not supported; convert the video"
        )
    return MATRICES[frame.colorspace]
