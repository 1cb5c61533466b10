"""Files that a page may read, which were uploaded to it, in a folder of its own. Nothing of the server, no address.

Gradio compares paths with its upload folder only where a request marks them as files, and downloads addresses itself.
"""

import json
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from megavrc.errors import UserError

UPLOAD = "/gradio_api/upload"
MOST_BYTES = 2**18  # of a request that is no upload: inputs and a history of a dozen clips

Message = MutableMapping[str, Any]


class SmallRequests:
    """ASGI middleware that refuses bodies above MOST_BYTES before they are in memory; Gradio limits uploads itself."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Any) -> None:
        from fastapi import HTTPException

        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MOST_BYTES:
                raise HTTPException(413, f"a request has at most {MOST_BYTES} bytes")
            return message

        free = scope["type"] != "http" or scope["path"] == UPLOAD
        await self.app(scope, receive if free else limited, send)


def only_uploads(folder: Path) -> Callable[..., Awaitable[None]]:
    """A FastAPI dependency of all routes that refuses requests with an address, or with a path outside of `folder`."""
    from fastapi import HTTPException, Request

    async def check(request: Request) -> None:
        if "url_path" in request.path_params or any("://" in str(v) for v in request.path_params.values()):
            raise HTTPException(403, "this server opens no addresses")
        if request.headers.get("content-type", "").startswith("multipart/"):  # an upload
            return
        try:
            for path in _paths(json.loads(await request.body() or b"null")):
                uploaded(path, folder)
        except UserError as error:
            raise HTTPException(403, str(error)) from None
        except (ValueError, RecursionError):
            raise HTTPException(400, "not valid JSON") from None

    return check


def uploaded(path: Any, folder: Path) -> Path:
    """The file that `path` names, if it was uploaded into `folder` (without links in its own path).

    Raises:
        UserError: anything else: another file, a link to one, an address, no text.
    """
    try:
        found = Path(path).resolve(strict=True)
        if found.is_file() and found.is_relative_to(folder):
            return found
    except (TypeError, ValueError, OSError, RuntimeError):  # no path, a loop of links
        pass
    raise UserError("only a file that was uploaded to this page is read")


def _paths(content: Any) -> Iterator[Any]:
    """Every value that is called `path`, at any depth."""
    rest = [content]
    while rest:
        match rest.pop():
            case dict() as found:
                if found.get("path") is not None:
                    yield found["path"]
                rest += found.values()
            case list() as found:
                rest += found
