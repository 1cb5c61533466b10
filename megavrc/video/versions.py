"""The versions that decide which pixels a video gives."""

import av

# Of docs/tokenization.md, "Formats"; count it up when some videos give other pixels than before.
CONTRACT = "7"
LIBRARIES = ("libavcodec", "libavformat", "libswscale")


def decoder_versions() -> dict[str, str]:
    """Versions of our own rules ("contract"), of PyAV ("av") and of FFmpeg's libraries, by name."""
    numbers = {name: ".".join(map(str, av.library_versions[name])) for name in LIBRARIES}
    return {"contract": CONTRACT, "av": av.__version__, **numbers}
