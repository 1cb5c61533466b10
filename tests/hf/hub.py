"""A small hub that folders are pushed to, and a look at what arrived."""

import base64
import http.server
import json
import os
import platform
import subprocess
import threading
from pathlib import Path

SCRIPT = """
import sys; sys.modules["megavrc"] = None
from transformers import AutoModel
AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).push_to_hub("me/vrc", token="hf_no")
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """What push_to_hub asks a hub for; keeps the files of the commit in the folder `self.server.pushed`."""

    @property
    def hub(self) -> str:
        return f"http://{self.headers['Host']}"

    def do_GET(self) -> None:
        self.answer({"id": "me/vrc", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            self.answer({"url": f"{self.hub}/me/vrc", "name": "me/vrc"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self.answer(
                {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            )
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            for file in files:
                (self.server.pushed / file["path"]).write_bytes(base64.b64decode(file["content"]))
            self.answer({"success": True, "commitUrl": f"{self.hub}/me/vrc/commit/0", "commitOid": "0" * 40})
        else:  # checks of the model card
            self.answer({"errors": [], "warnings": []})

    def answer(self, content: dict[str, object]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def push(python: str | Path, folder: Path, place: Path) -> Path:
    """Push a folder from a process without megavrc; returns the folder of what arrived."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.pushed = place / "pushed"
    server.pushed.mkdir()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    private = {"HF_HOME": str(place / "home"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    private |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "NO_PROXY": "127.0.0.1"}
    command = [python, "-I", "-c", SCRIPT, folder]
    run = subprocess.run(command, env=os.environ | private, cwd=place, capture_output=True, text=True)
    server.shutdown()
    assert run.returncode == 0, run.stderr
    return server.pushed


def assert_names_no_machine(pushed: Path, *places: Path) -> None:
    secrets = [str(place) for place in (*places, Path(__file__).parents[2])]
    for word in (*secrets, f"{Path.home()}/", platform.node(), "/tmp/", "hf_no"):
        found = [
            path.name for path in pushed.iterdir() if len(word) > 3 and word.encode() in path.read_bytes()
        ]
        assert not found, (word, found)
