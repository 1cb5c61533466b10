"""The server of a blind study, asked without a browser: what it tells, what it keeps, what it refuses."""

import secrets
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ports
import pytest
from user_studies import NAMES, Server, make_study, prompts, served_study

from megavrc.config import run_command
from megavrc.errors import UserError
from megavrc.web.user_study import UserStudy
from megavrc.web.user_study_answers import Answers

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")


SLOW = 0.05  # frames a second: nobody sees a clip to its end while a test runs


def later(study: UserStudy) -> None:
    """Let the time of a view go by."""
    with sqlite3.connect(study.answers) as base:
        base.execute("update item set sent = sent - ?", (study.seconds,))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> UserStudy:
    return make_study(tmp_path_factory.mktemp("study"), 4, repeats=1, fps=SLOW)


@pytest.fixture(scope="module")
def server(study: UserStudy) -> Iterator[Server]:
    with served_study(study, ports.free_port()) as found:
        yield found


def test_nothing_that_is_served_tells_whose_clips_they_are(study: UserStudy, server: Server) -> None:
    link, served = str(study.open_link), []
    heads = set()
    for _ in range(3):
        served.append(server.request("POST", f"/r/{link}", {"rater": (rater := secrets.token_hex(16))}))
        for position in range(len(prompts(4)) + 2):
            status, headers, content = server.request("GET", f"/r/{link}/{rater}/{position}.mp4")
            assert status == 200 and content[4:8] == b"ftyp"
            served.append((status, headers, content))
            heads.add(str({**headers, "content-length": "", "date": ""}))
        body = {"id": "x" * 16, "position": 0, "milliseconds": 1, "consistency": "1"}
        for wrong in (body, body | {"text_match": "9"}, b"{", b"[" * 5000):
            served.append(server.request("POST", f"/r/{link}/{rater}/answers", wrong))
    assert len(heads) == 1, heads  # of clips
    paths = ["/", "/docs", "/redoc", "/openapi.json", "/study.json", "/r/", "/r/../study.json", "/clips/"]
    paths += [f"/r/{link}/{end}" for end in ("", "answers", "study.json", "x/0.mp4", f"{'a' * 32}/99.mp4")]
    paths += [
        f"/clips/{study.pairs[0].plain}.mp4",
        f"/r/{study.pairs[0].plain}",
        f"/r/{link}/%2e%2e/study.json",
    ]
    refused = [server.request("GET", path) for path in paths]
    assert {status for status, *_ in refused} <= {404, 405, 307}
    page = server.request("GET", f"/r/{link}")
    assert page[0] == 200 and "default-src 'none'" in page[1]["content-security-policy"]
    names = [name for pair in study.pairs for name in pair[-2:]]
    secret = [*NAMES, "secretkey", "swapped", "attention", str(study.folder), *names]
    for status, headers, content in (*served, *refused, page):
        told = [word for word in secret if word.encode() in content or word in str(headers)]
        assert told == [], (status, headers, content[:300])
        assert not {"etag", "last-modified", "server", "content-disposition"} & {*headers}


def test_sides_are_balanced_and_repeats_are_turned(study: UserStudy) -> None:
    answers = Answers(study)
    orders = set()
    for _ in range(20):
        items, _ = answers.items(secrets.token_hex(16))
        assert [item.position for item in items] == list(range(6))
        shown = [item for item in items if not study.pairs[item.pair].attention]
        first = {item.pair: item for item in reversed(shown)}
        (again,) = [item for item in shown if item is not first[item.pair]]
        assert again.swapped != first[again.pair].swapped and again.position > first[again.pair].position + 1
        assert sum(item.swapped for item in first.values()) == 2 and len(first) == 4
        orders.add(tuple(item.pair for item in items))
    assert len(orders) > 10


def test_an_answer_counts_once_and_only_after_a_whole_view(study: UserStudy, server: Server) -> None:
    link, rater = str(study.open_link), secrets.token_hex(16)
    assert server.join(link, rater)["answered"] == []
    assert server.answer(link, rater, 0)[0] == 425  # not even asked for
    for position in (0, 1):
        server.request("GET", f"/r/{link}/{rater}/{position}.mp4")
    assert server.answer(link, rater, 0)[0] == 425
    later(study)
    sent = {"id": secrets.token_hex(16), "consistency": "2", "text_match": "1"}
    with ThreadPoolExecutor(8) as pool:  # double clicks, tries after lost replies
        replies = list(pool.map(lambda _: server.answer(link, rater, 0, **sent), range(8)))
    assert replies == [(200, {"kept": True})] * 8
    assert server.answer(link, rater, 0, consistency="1") == (200, {"kept": False})  # another tab came later
    assert server.answer(link, rater, 1)[0] == 425  # two pairs take two views
    server.kill()
    server.start()
    assert server.join(link, rater)["answered"] == [0]
    later(study)
    assert server.answer(link, rater, 1) == (200, {"kept": True})
    kept = [row for row in Answers(study).all() if row.rater == rater]
    assert [(row.item.position, row.choices) for row in kept] == [(0, ("2", "1")), (1, ("1", "tie"))]


def test_what_is_no_answer_is_refused(study: UserStudy, server: Server) -> None:
    link, rater = str(study.open_link), secrets.token_hex(16)
    server.join(link, rater)
    before = len(Answers(study).all())
    for change in (
        {"consistency": "3"}, {"consistency": None}, {"text_match": None}, {"milliseconds": -1}, {"position": "0"},
        {"id": "short"}, {"id": "../" * 8}, {"more": 1}, {"milliseconds": 2**40}, {"position": 0.5},
    ):  # fmt: skip
        assert server.answer(link, rater, **{"position": 0} | change)[0] == 422
    assert server.answer(link, rater, 6)[0] == server.answer(link, rater, -1)[0] == 404
    assert server.request("POST", f"/r/{link}/{rater}/answers", b"x" * 5000)[0] == 413
    assert server.request("POST", f"/r/{'b' * 32}", {"rater": rater})[0] == 404
    assert server.request("POST", f"/r/{link}", {"rater": "../../x"})[0] == 422
    assert len(Answers(study).all()) == before
    with pytest.raises(ConnectionRefusedError):
        server.request("GET", f"/r/{link}", host="127.0.0.2")  # this address of this machine alone


def test_a_link_of_ones_own_has_one_rater(tmp_path: Path, free_port: int) -> None:
    study = make_study(tmp_path, 1, repeats=0, attention=0, raters=2, fps=SLOW)
    with served_study(study, free_port) as server:
        mine, other = study.links
        assert server.join(mine, "c" * 32)["rater"] == mine
        assert server.request("GET", f"/r/{mine}/{mine}/0.mp4")[0] == 200
        for rater in (other, "c" * 32):
            assert server.request("GET", f"/r/{mine}/{rater}/0.mp4")[0] == 404
            assert server.answer(mine, rater, 0)[0] == 404
        later(study)
        assert server.answer(mine, mine, 0)[0] == 200
        server.process.terminate()
        said = server.process.communicate()[0]
        assert all(f"127.0.0.1:{free_port}/r/{link}" in said for link in study.links) and "ended" in said
        assert server.process.returncode == 0


def test_a_folder_that_cannot_be_served_is_one_line(study: UserStudy, tmp_path: Path, capsys) -> None:
    def refused(*words: object) -> str:
        assert (
            run_command({"serve": "megavrc.web.user_study_serve:serve_study"}, ["serve", *map(str, words)])
            == 2
        )
        return capsys.readouterr().err

    assert "study.json: no such file" in refused(tmp_path)
    assert "port: 0 is not one" in refused(study.folder, "--port", 0)
    for name in ("study.json", "clips"):
        (tmp_path / name).symlink_to(study.folder / name)
    (tmp_path / "answers.sqlite").write_bytes(b"no database, but longer than a header" * 99)
    assert "answers.sqlite: file is not a database" in refused(tmp_path)
    (tmp_path / "answers.sqlite").unlink()
    with sqlite3.connect(tmp_path / "answers.sqlite") as base:
        base.execute("pragma user_version = 2")
    assert "made by a newer megavrc" in refused(tmp_path)
    with pytest.raises(UserError, match="newer"):
        Answers(study.__class__(**{**vars(study), "folder": tmp_path}))
