"""The page's API, asked without a browser: it reads uploads, and no other file, address or host."""

import io
import json
import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import served
from PIL import Image

from megavrc.generation.folder import load_folder
from megavrc.video import write_mp4

pytest.importorskip("gradio", reason="needs the extra serve")
MARK = {"_type": "gradio.FileData"}


class Page:
    """Requests to a running page."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> tuple[int, bytes]:
        return self._open(urllib.request.Request(self.address + path))

    def post(self, path: str, body: Any) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        return self._open(urllib.request.Request(self.address + path, json.dumps(body).encode(), headers))

    def _open(self, request: urllib.request.Request) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def upload(self, content: bytes, name: str = "first.png") -> tuple[int, bytes]:
        body = (
            f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
            "Content-Type: image/png\r\n\r\n"
        ).encode()
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        whole = body + content + b"\r\n--x--\r\n"
        return self._open(urllib.request.Request(f"{self.address}/gradio_api/upload", whole, headers))

    def generate(self, picture: Any, source: Any = "a blue dog", seed: Any = 6) -> tuple[int, bytes]:
        """The status of the request, and of a running one all that came back."""
        inputs = [source, picture, seed, 1, 1, 1]
        status, answer = self.post("/gradio_api/call/generate", {"data": inputs})
        if status != 200:
            return status, answer
        return self.get(f"/gradio_api/call/generate/{json.loads(answer)['event_id']}")


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    home = tmp_path_factory.mktemp("home")
    (home / "token").write_text("hf_of_who_runs_the_server")
    with served(folder, home) as port:
        made = Page(port)
        yield made
        (path,) = json.loads(made.upload(png(picture()))[1])
        assert Path(path).is_file()
    assert not Path(path).exists()  # uploads go with the page


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3)).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    Image.fromarray(pixels).save(file := io.BytesIO(), "png")
    return file.getvalue()


def test_an_upload_becomes_the_first_frame(page: Page, folder: Path) -> None:
    status, answer = page.upload(png(picture()))
    (path,) = json.loads(answer)
    for marked in ({"path": path, "meta": MARK}, {"path": path}):
        status, answer = page.generate(marked)
        assert status == 200 and b"event: complete" in answer
        (clip,) = re.findall(rf'"url": "{page.address}([^"]+/17\.webp)"', answer.decode())
        shown = Image.open(io.BytesIO(page.get(clip)[1]))
        first = np.asarray(shown.convert("RGB").resize((16, 16), Image.Resampling.NEAREST))
        expected = load_folder(folder).generate(
            ["a blue dog"], seeds=[6], first_frame=torch.from_numpy(picture())[None]
        )
        assert np.array_equal(first, expected[1][0][0].numpy())


def hostile(secret: Path, port: int) -> list[Any]:
    """Paths that nobody uploaded."""
    link, here = secret.with_name("link.png"), f"127.0.0.1:{port}"
    link.symlink_to(secret)
    os.mkfifo(secret.with_name("pipe.png"))
    files = [secret, link, secret.with_name("pipe.png"), "/dev/zero", "/", "", ".", os.path.relpath(secret)]
    texts = [f"http://{here}/x.png", f"https://{here}/x.png", f"HTTP://{here}/x.png", f"tcp://{here}"]
    texts += [f"concat:{secret}", f"subfile:,,start,0,end,0,,:{secret}", f"file:{secret}", f"file://{secret}"]
    return [*map(str, files), *texts, "a\0b", 5, [str(secret)], {"path": str(secret)}, True]


def test_no_other_path_is_read(page: Page, tmp_path: Path, listener: socket.socket) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(picture(1)))
    uploaded = Path(json.loads(page.upload(png(picture()))[1])[0])
    up = f"{uploaded.parent}{'/..' * len(uploaded.parent.parts)}{secret}"
    for path in [*hostile(secret, listener.getsockname()[1]), up]:
        for extra in ({}, {"meta": MARK}, {"meta": MARK, "is_stream": True}, {"orig_name": "x.svg"}):
            status, answer = page.generate({"path": path, **extra})
            assert status == 403, (path, extra, answer)
            assert answer.decode().count("\n") == 0 and str(tmp_path) not in answer.decode()
    answer = page.generate({"url": f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"})[1]
    assert b"event: complete" not in answer
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_no_other_input_or_route_takes_a_path(page: Page, tmp_path: Path, listener: socket.socket) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(picture(1)))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
    for path in (str(secret), address):
        marked = {"path": path, "meta": MARK}
        assert page.generate(None, source=marked)[0] == 403
        assert page.generate(None, seed=[[{"deep": marked}]])[0] == 403
        body = {"data": ["a", marked, 0, 1, 1, 1], "fn_index": 0, "session_hash": "s"}
        for route in ("queue/join", "run/generate", "api/generate", "call/v2/generate", "component_server"):
            assert page.post(f"/gradio_api/{route}", body)[0] == 403, route
    inside = Path.cwd() / "README.md"
    for path in (
        secret,
        inside,
        "/etc/passwd",
        "/proc/self/environ",
        f"{tmp_path}/../{tmp_path.name}/secret.png",
    ):
        for route in (f"/gradio_api/file={path}", f"/file={path}", f"/gradio_api/file/{path}"):
            assert page.get(route)[0] in (403, 404), route
    for route in (f"file={address}", f"file/{address}", f"proxy={address}", "proxy=https://a.hf.space/x"):
        assert page.get(f"/gradio_api/{route}")[0] in (403, 404), route
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_nothing_behind_the_page_opens_addresses_or_files(
    page: Page, tmp_path: Path, listener: socket.socket
) -> None:
    """Every function that its buttons call, known by number: addresses of files too, which the page itself sends."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(picture(1)))
    here = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
    for address in (here, f"{page.address}/gradio_api/file={secret}", f"file://{secret}"):
        file = {"path": None, "url": address, "meta": MARK}
        for number in range(12):
            for data in ([file] * 24, [[{"image": file, "caption": "x"}], file, *["x"] * 22]):
                page.post("/gradio_api/run/predict", {"data": data, "fn_index": number})
    uploads = Path(json.loads(page.upload(png(picture()))[1])[0]).parents[1]
    assert list(uploads.rglob("first.png")) and not list(uploads.rglob("secret.png"))
    with pytest.raises(BlockingIOError):
        listener.accept()
    named = json.loads(page.get("/gradio_api/info")[1])["named_endpoints"]
    assert set(named) == {"/generate", "/generate_clips"}


def test_the_hub_token_of_who_runs_the_server_serves_nobody(page: Page) -> None:
    """Gradio's run history would use it for any visitor from this machine."""
    assert json.loads(page.get("/config")[1]).get("run_history") is not True
    for route in ("run-history/buckets", "run-history/records?bucket=me/private", "runs"):
        assert page.get(f"/gradio_api/{route}")[0] in (403, 404), route
    assert page.post("/gradio_api/run-history/connect", {"bucket_id": "me/new"})[0] in (403, 404, 405)


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x", "text/plain"])
@pytest.mark.parametrize("route", ["call/generate", "call/upload", "run/upload"])
def test_a_large_request_that_is_no_upload_is_refused(page: Page, kind: str, route: str) -> None:
    body = json.dumps({"data": ["x" * 400_000, None, 6, 1, 1, 1]}).encode()
    request = urllib.request.Request(f"{page.address}/gradio_api/{route}", body, {"Content-Type": kind})
    assert page._open(request)[0] == 413


def test_a_picture_that_would_fill_the_memory_is_not_decoded(page: Page) -> None:
    Image.new("1", (9000, 9000)).save(file := io.BytesIO(), "png")
    (path,) = json.loads(page.upload(file.getvalue())[1])
    answer = page.generate({"path": path, "meta": MARK})[1]
    assert b"the picture: not a picture that can be read (9000 x 9000 pixels are too many)" in answer


def test_a_clip_to_continue_is_an_upload(page: Page, folder: Path, tmp_path: Path) -> None:
    write_mp4(tmp_path / "clip.mp4", picture()[None].repeat(9, axis=0), scale=4)
    for content, said in (
        ((tmp_path / "clip.mp4").read_bytes(), b"complete"),
        (b"no video", b"up.mp4: not a video"),
    ):
        (path,) = json.loads(page.upload(content, "up.mp4")[1])
        inputs = ["a blue dog", None, 6, 1, 1, 1, 17, 1, False, {"path": path, "meta": MARK}, 5, *[None] * 7]
        answer = page.post("/gradio_api/call/generate_clips", {"data": inputs})[1]
        answer = page.get(f"/gradio_api/call/generate_clips/{json.loads(answer)['event_id']}")[1]
        assert said in answer and str(tmp_path).encode() not in answer


def test_uploads_that_are_no_pictures_and_odd_values_are_one_line(page: Page, folder: Path) -> None:
    playlist = b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n"
    for content in (b"no picture", playlist, b"ffconcat version 1.0\nfile /etc/passwd\n", b"<svg></svg>"):
        (path,) = json.loads(page.upload(content, "../../up.png")[1])
        assert ".." not in path
        answer = page.generate({"path": path, "meta": MARK})[1]
        assert b"the picture: not a picture that can be read" in answer, answer
    for seed in ("x", None, -1, 1e20, 1e300, 2.5, [1], float("nan")):
        answer = page.generate(None, seed=seed)[1]
        assert b"seed: give a whole number from 0 to 9007199254740991, not " in answer, answer
    try:
        status = page.upload(bytes(40 << 20))[0]
    except urllib.error.URLError:  # the server has answered and closed before all was sent
        status = 413
    assert status == 413
