"""The server of a blind study: the page, a rater's prompts, the clips, and that an answer is kept.

Notable: a rater gets clips by their place in the rater's own order. But for the pictures, nothing that is served
depends on whose clips they are: no name, number, time or header. `study.json` alone knows it.
"""

import base64
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from megavrc.errors import UserError
from megavrc.web.user_study import UserStudy
from megavrc.web.user_study_answers import Answers, Item, TooEarly

log = logging.getLogger(__name__)
PAGE = Path(__file__).with_name("user_study.html")
LARGEST = 4096  # bytes of a request
TOKEN = "^[A-Za-z0-9_-]{16,64}$"
Choice = Literal["1", "2", "tie"]


class Joining(BaseModel):
    """Who comes: a name that the browser has drawn. On a link of one's own it does not count."""

    model_config = ConfigDict(extra="forbid", strict=True)
    rater: str = Field(pattern=TOKEN)


class SentAnswer(BaseModel):
    """An answer from a browser; `id` is drawn there, and stays the same when it is sent again."""

    model_config = ConfigDict(extra="forbid", strict=True)
    id: str = Field(pattern=TOKEN)
    position: int
    consistency: Choice
    text_match: Choice | None = None
    milliseconds: int = Field(ge=0, le=2**31)


def study_app(study: UserStudy) -> FastAPI:
    """The server of a study."""
    page = PAGE.read_text()
    answers = Answers(study)
    app = FastAPI(openapi_url=None)  # nor pages about it
    app.middleware("http")(_guard(page))
    app.exception_handler(UserError)(_failed)

    @app.get("/r/{link}", response_class=HTMLResponse)
    def show(link: str) -> str:
        _check(study, link)
        return page

    @app.post("/r/{link}")
    def join(link: str, joining: Joining) -> dict[str, Any]:
        _check(study, link)
        rater = link if link in study.links else joining.rater
        items, answered = answers.items(rater)
        return {
            "rater": rater,
            "prompts": [study.pairs[item.pair].prompt for item in items],
            "answered": answered,
            "questions": study.questions,
            "width": study.width,
            "height": study.height,
            "second_at": study.second_at,
            "seconds": study.seconds,
        }

    @app.get("/r/{link}/{rater}/{position}.mp4")
    def clip(link: str, rater: str, position: int) -> Response:
        _check(study, link, rater)
        item = _item(answers, rater, position)
        pair = study.pairs[item.pair]
        content = study.clip(pair.swapped if item.swapped else pair.plain).read_bytes()
        answers.sent(rater, item)
        return Response(content, media_type="video/mp4")  # as bytes: a file's time and name stay here

    @app.post("/r/{link}/{rater}/answers")
    def answer(link: str, rater: str, sent: SentAnswer) -> dict[str, bool]:
        _check(study, link, rater)
        _item(answers, rater, sent.position)
        if (sent.text_match is not None) != ("text_match" in study.questions):
            raise HTTPException(422, "Exactly the questions of the study are to be answered.")
        try:
            choices = (sent.consistency, sent.text_match)
            return {"kept": answers.add(rater, sent.position, sent.id, choices, sent.milliseconds)}
        except TooEarly:
            raise HTTPException(425, "This pair cannot have been seen to its end yet.") from None

    return app


def _check(study: UserStudy, link: str, rater: str | None = None) -> None:
    """404 unless it is a link of the study, and, where one is named, the rater is of this link."""
    if link not in (*study.links, study.open_link):
        raise HTTPException(404, "This link is of no study here. Was it copied whole?")
    if rater is not None and not (rater == link if link in study.links else re.fullmatch(TOKEN, rater)):
        raise HTTPException(404, "This link has no such rater.")


def _item(answers: Answers, rater: str, position: int) -> Item:
    items, _ = answers.items(rater)
    if not 0 <= position < len(items):
        raise HTTPException(404, "There is no such pair.")
    return items[position]


def _failed(_: Request, error: Exception) -> Response:
    log.error("%s", error)
    return JSONResponse({"detail": "The server cannot keep answers at the moment."}, 503)


def _guard(page: str) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    """Refuses large requests; lets a browser run nothing but the page's own script, and tell nobody of the link."""
    hashes = {
        kind: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        )
        for kind in ("script", "style")
    }
    headers = {
        "Content-Security-Policy": f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        "media-src blob:; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }

    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length", "")
        if request.method == "GET" or (length.isdecimal() and int(length) <= LARGEST):
            response = await answer(request)
        else:
            response = JSONResponse({"detail": "too large"}, 413)
        response.headers.update(headers)
        return response

    return guard
