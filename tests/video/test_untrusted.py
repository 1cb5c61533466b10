"""Files and names that would make FFmpeg open other files or hosts: a secret to take, a socket that listens."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from golden import remux

from megavrc.video import VideoError, count_frames, probe, read_clip, write_mp4, write_png
from megavrc.video.times import frame_times

SECRET = (200, 30, 90)
SUFFIXES = ("", ".mp4", ".mkv", ".jpg", ".avi")


class Listener:
    """A socket of this host that nobody should connect to."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.port = self.server.getsockname()[1]

    @property
    def called(self) -> bool:
        try:
            self.server.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    with made.server:
        yield made


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A folder that holds one secret as a video, a stream and a numbered picture."""
    frames = np.zeros((17, 64, 64, 3), np.uint8) + np.array(SECRET, np.uint8)
    write_mp4(tmp_path / "secret.mp4", frames, fps=8)
    remux(tmp_path / "secret.mp4", tmp_path / "s.ts")
    write_png(tmp_path / "secret001.png", frames[0])
    return tmp_path


def playlists(port: int) -> dict[str, str]:
    """Texts that name another file or host, by kind. They stand beside the secret."""
    return {
        "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\ns.ts\n#EXT-X-ENDLIST\n",
        "hls-host": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nhttp://127.0.0.1:{port}/s.ts\n"
        "#EXT-X-ENDLIST\n",
        "hls-key": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXT-X-MAP:URI=secret.mp4\n"
        f'#EXT-X-KEY:METHOD=AES-128,URI="http://127.0.0.1:{port}/k"\n#EXTINF:3,\ns.ts\n#EXT-X-ENDLIST\n',
        "ffconcat": "ffconcat version 1.0\nfile secret.mp4\n",
        "ffconcat-host": f"ffconcat version 1.0\nfile http://127.0.0.1:{port}/v.mp4\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        f"a=control:rtsp://127.0.0.1:{port}/x\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
        '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1" codecs="avc1">'
        f"<BaseURL>http://127.0.0.1:{port}/v.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "asx": f'<asx version="3.0"><entry><ref href="http://127.0.0.1:{port}/v.mp4"/></entry></asx>',
        "reference": f"[Reference]\nRef1=http://127.0.0.1:{port}/v.asf\n",
        "rtsp": f"RTSPtext\nrtsp://127.0.0.1:{port}/v\n",
        "svg": '<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64">'
        '<image href="secret001.png" width="64" height="64"/></svg>',
    }


READERS: list[Callable[[Path], object]] = [
    lambda path: read_clip(path, 0, 1),
    count_frames,
    probe,
    frame_times,
]


@pytest.mark.parametrize("kind", playlists(0))
def test_a_file_that_names_others_is_refused(kind: str, secrets: Path, listener: Listener) -> None:
    for suffix in (*SUFFIXES, ".m3u8", ".ffconcat", ".sdp", ".mpd", ".svg"):
        path = secrets / f"hostile{suffix}"
        path.write_text(playlists(listener.port)[kind])
        for read in READERS:
            with pytest.raises(VideoError) as error:
                read(path)
            assert error.value.stage == "open" and "\n" not in error.value.reason
    assert not listener.called


def test_the_playlists_are_real(secrets: Path) -> None:
    """What a reader without this care makes of two of them."""
    for kind, suffix in {"ffconcat": ".mp4", "hls": ".m3u8"}.items():
        path = secrets / f"hostile{suffix}"
        path.write_text(playlists(0)[kind])
        with av.open(str(path)) as container:
            pixels = next(container.decode(video=0)).to_ndarray(format="rgb24")
        assert np.abs(pixels.mean((0, 1)) - SECRET).max() < 6


def test_a_name_is_never_an_address_or_a_command(
    secrets: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(secrets)
    here = f"127.0.0.1:{listener.port}"
    addresses = [
        f"{scheme}://{here}/x.mp4" for scheme in ("http", "https", "tcp", "rtsp", "rtmp", "ftp", "udp")
    ]
    commands = [
        "concat:secret.mp4",
        "subfile:,,start,0,end,0,,:secret.mp4",
        "file:secret.mp4",
        "async:secret.mp4",
    ]
    patterns = [
        "secret%03d.png",
        "secret*.png",
        "data:image/png;base64,AAAA",
        "pipe:0",
        "-",
        "fd:",
        "crypto:a",
    ]
    for name in (*addresses, *commands, *patterns):
        with pytest.raises(VideoError, match="io: No such file"):
            read_clip(name, 0, 1)
    assert not listener.called


def test_a_file_may_have_any_name(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(secrets)
    for name in ("http:x.mp4", "concat:a", "a%03d.mp4", "-", "file:a.mp4", "pipe:0", "data:,x", "a|b*.mkv"):
        shutil.copy("secret.mp4", name)
        assert np.abs(read_clip(name, 0, 1)[0].mean((0, 1)) - SECRET).max() < 6
        write_mp4(Path(name), np.zeros((2, 16, 16, 3), np.uint8))
        assert count_frames(name) == 2


def test_only_regular_files_are_opened(secrets: Path) -> None:
    """A pipe without a writer would wait for ever, a device has no end."""
    os.mkfifo(secrets / "pipe.mp4")
    (secrets / "frames").mkdir()
    os.mkfifo(secrets / "frames" / "0.png")
    for path, words in {
        secrets / "pipe.mp4": "open: not a regular file",
        Path("/dev/zero"): "open: not a regular file",
        secrets / "frames": r"decode: frame 0: 0\.png: not a regular file",
        Path("a\0b"): "open: embedded null",
    }.items():
        with pytest.raises(VideoError, match=words):
            read_clip(path, 0, 1)


def test_texts_in_old_encodings_do_not_matter(secrets: Path) -> None:
    remux(secrets / "secret.mp4", secrets / "t.mkv", title="Zuerich")
    content = (secrets / "t.mkv").read_bytes()
    assert b"Zuerich" in content
    (secrets / "t.mkv").write_bytes(content.replace(b"Zuerich", b"Z\xfcerich"))
    assert count_frames(secrets / "t.mkv") == 17
