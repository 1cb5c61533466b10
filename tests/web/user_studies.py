"""Small blind studies: clips of two models, a study of them, its server in a process of its own, requests to it."""

import contextlib
import http.client
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megavrc.video.write import write_mp4
from megavrc.web.user_study import UserStudy, read_user_study
from megavrc.web.user_study_build import build_study

ROOT = Path(__file__).resolve().parents[2]
FRAMES, FPS, SIZE = 8, 16, 32
NAMES = ("Frobnicate-L", "Loong-Baseline")
WORDS = (
    "red <b>square</b>",
    "blue 'disk' & \"ring\"",
    "green مربع",
    "=HYPERLINK(1)",
    "white star",
    "grey box",
)


def prompts(count: int) -> list[str]:
    return [f"a {WORDS[index % len(WORDS)]} {index}" for index in range(count)]


def frames_of(index: int, model: int, length: int = FRAMES, size: int = SIZE) -> NDArray[np.uint8]:
    """A clip whose brightness tells the frame; its red the first model, its blue the second, its green the prompt."""
    frames = np.zeros((length, size, size, 3), np.uint8)
    frames[..., 2 * model] = (40 + 24 * np.arange(length))[:, None, None]
    frames[..., 1] = 16 * index
    return frames


def write_clips(folder: Path, model: int, count: int, **shape: int) -> Path:
    """A folder as another program leaves it: a video a key."""
    folder.mkdir(parents=True)
    for index in range(count):
        write_mp4(folder / f"secretkey{index:02d}.mp4", frames_of(index, model, **shape))
    return folder


def write_planned(path: Path, texts: Sequence[str]) -> Path:
    lines = [json.dumps({"id": f"secretkey{i:02d}", "caption": text}) for i, text in enumerate(texts)]
    path.write_text("\n".join(lines))
    return path


def make_study(root: Path, count: int = 3, **options: Any) -> UserStudy:
    """A study of two folders of clips."""
    first, second = (write_clips(root / name, model, count) for model, name in enumerate(NAMES))
    planned = write_planned(root / "planned.jsonl", prompts(count))
    build_study(first, second, root / "study", planned, **{"fps": FPS} | options)
    return read_user_study(root / "study")


class Server:
    """`megavrc user_study serve` of a folder; `kill` is the hard end of a process, `start` another one."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.start()

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "megavrc",
            "user_study",
            "serve",
            str(self.folder),
            "--port",
            str(self.port),
        ]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(1200):
            assert self.process.poll() is None
            with contextlib.suppress(OSError):
                if self.request("GET", "/")[0] == 404:
                    return
            time.sleep(0.1)
        raise TimeoutError

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def url(self, link: str) -> str:
        return f"http://127.0.0.1:{self.port}/r/{link}"

    def request(
        self, method: str, path: str, body: Any = None, host: str = "127.0.0.1"
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content."""
        connection = http.client.HTTPConnection(host, self.port, timeout=60)
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        found = answer.status, headers, answer.read()
        connection.close()
        return found

    def join(self, link: str, rater: str = "") -> dict[str, Any]:
        status, _, content = self.request("POST", f"/r/{link}", {"rater": rater or secrets.token_hex(16)})
        assert status == 200, content
        return json.loads(content)

    def answer(self, link: str, rater: str, position: int, **changes: Any) -> tuple[int, Any]:
        body = {"id": secrets.token_hex(16), "position": position, "milliseconds": 900}
        body |= {"consistency": "1", "text_match": "tie"} | changes
        status, _, content = self.request("POST", f"/r/{link}/{rater}/answers", body)
        return status, json.loads(content)


@contextlib.contextmanager
def served_study(study: UserStudy, port: int) -> Iterator[Server]:
    server = Server(study.folder, port)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait()
