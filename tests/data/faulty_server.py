"""A web server of a folder that fails on request, in a thread of the test."""

import http.server
import threading
from collections import Counter, defaultdict, deque
from functools import partial
from pathlib import Path
from typing import Any


class FaultyServer:
    """Use as a context manager.

    Attributes:
        url: of the folder.
        faults: for a file's name, what its next answers do: "drop" the connection half-way, send "wrong" bytes, "busy".
        requests: whole answers and failed ones, by the file's name.
    """

    def __init__(self, folder: Path) -> None:
        self.faults: dict[str, deque[str]] = defaultdict(deque)
        self.requests: Counter[str] = Counter()
        handler = partial(_Handler, directory=str(folder), owner=self)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> "FaultyServer":
        self._thread.start()
        return self

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def __exit__(self, *details: Any) -> None:
        self.stop()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, owner: FaultyServer, **options: Any) -> None:
        self.owner = owner
        super().__init__(*args, **options)

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        self.owner.requests[path.name] += 1
        faults = self.owner.faults[path.name]
        fault = faults.popleft() if faults else ""
        if not path.is_file():
            return self.send_error(404)
        if fault == "busy":
            return self.send_error(503)
        content = path.read_bytes()
        if fault == "wrong":
            content = bytes(len(content))
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "drop" else content)
        if fault == "drop":
            self.close_connection = True
        return None

    def log_message(self, *words: Any) -> None: ...
