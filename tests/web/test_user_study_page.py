"""The page of a blind study in headless Chromium."""

import time
from typing import Any

import pytest
from user_studies import Server, make_study, prompts, served_study

from megavrc.web.user_study import UserStudy
from megavrc.web.user_study_answers import Answers, GivenAnswer
from megavrc.web.user_study_report import open_answers

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
PIXELS = "canvases.map(c => [...c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data])"


def open_page(context: Any, server: Server, link: str) -> Any:
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(server.url(link))
    page.locator("#start:enabled").wait_for()
    return page


def until(page: Any, expression: str, value: Any = True) -> None:
    """Wait until an expression has a value. (The page forbids what Playwright's own waiting is made of.)"""
    for _ in range(1200):
        if page.evaluate(expression) == value:
            return
        time.sleep(0.05)
    raise TimeoutError(expression)


def preferred(page: Any) -> str:
    """The key for the video of the first model, which is the red one."""
    one, two = page.evaluate(PIXELS)
    return "ArrowLeft" if one[0] - one[2] > two[0] - two[2] else "ArrowRight"


def answer(page: Any, *keys: str) -> None:
    until(page, "viewed")
    for key in keys or (preferred(page), "ArrowDown"):
        page.keyboard.press(key)


def kept(study: UserStudy) -> list[GivenAnswer]:
    return Answers(study).all()


def test_a_rater_sees_both_in_step_and_answers_with_the_keyboard(browser, tmp_path, free_port) -> None:
    study = make_study(tmp_path, 3, repeats=1, attention=0)
    with served_study(study, free_port) as server:
        page = open_page(browser.new_context(), server, str(study.open_link))
        page.evaluate(
            "window.seen = []; (function look() { if (film.readyState >= 2 && film.currentTime)"
            f" seen.push([viewed, ...{PIXELS}]); requestAnimationFrame(look) }})()"
        )
        held = []
        page.route("**/0.mp4", lambda route: held.append(route))
        page.locator("#start").click()
        while not held:
            page.wait_for_timeout(20)
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("Enter")
        assert page.locator("fieldset button:disabled").count() == 6 and page.evaluate("position") == 0
        assert page.evaluate("[viewed, complete(), JSON.stringify(choices)]") == [False, False, "{}"]
        held[0].continue_()
        for position in range(4):
            until(page, "position", position)
            shown = page.locator("#prompt").inner_text()
            assert shown in prompts(3) and page.locator("#prompt b").count() == 0
            assert page.locator("#place").inner_text() == f"Pair {position + 1} of 4"
            answer(page)
            page.keyboard.press("Enter")
        until(page, "study.answered.size", 4)
        page.get_by_text("All your answers have arrived").wait_for()
        seen = page.evaluate("seen")
        judged = [viewed for viewed, *_ in seen]
        assert not judged[0] and any(judged)  # the first pictures cannot be judged yet
        # Brightness tells the frame: of both videos that of the same one, in every picture that was drawn.
        levels = {tuple(max(pixel[0], pixel[2]) for pixel in pair) for _, *pair in seen if pair[0][3]}
        assert max(abs(one - two) for one, two in levels) < 12 and len(levels) > 2
        assert page.faults == []
    rows = open_answers(study)
    assert {row.choices["consistency"] for row in rows} == {"first"} and len(rows) == 4
    assert {row.choices["text_match"] for row in rows} == {"tie"}
    assert {row.video_1 for row in rows} == {"first", "second"}
    assert [row.kind for row in rows].count("repeat") == 1
    assert all(row.seconds >= study.seconds * 0.9 for row in rows)


def test_answers_survive_a_killed_server_double_clicks_and_the_back_button(
    browser, tmp_path, free_port
) -> None:
    study = make_study(tmp_path, 4, repeats=0, attention=0, raters=1)
    (link,) = study.links
    with served_study(study, free_port) as server:
        page = open_page(browser.new_context(), server, link)
        page.locator("#start").dblclick()
        answer(page)
        page.locator("#next").dblclick()
        until(page, "study.answered.size", 1)
        until(page, "films.size", 3)
        page.evaluate("films.get(2)")  # the next pair is here
        server.kill()
        for said in ("1 answer is", "2 answers are"):
            answer(page)
            page.locator("#next").dblclick()
            page.get_by_text(f"{said} not sent yet; you can go on.").wait_for()
        assert page.locator("#place").inner_text() == "Pair 4 of 4" and len(kept(study)) == 1
        page.get_by_text("The connection is lost. Trying again").wait_for()
        server.start()
        until(page, "study.answered.size", 3)
        until(page, "viewed")
        page.goto("about:blank")
        page.go_back()
        page.locator("#start:enabled").wait_for()
        page.get_by_role("button", name="Go on").click()
        assert page.locator("#place").inner_text() == "Pair 4 of 4"
        answer(page)
        server.kill()
        page.keyboard.press("Enter")
        page.get_by_text("1 answer is not sent yet: please leave this page open.").wait_for()
        context = page.context
        page.close()  # closed in spite of that, and the link opened again
        assert len(kept(study)) == 3
        server.start()
        page = open_page(context, server, link)
        until(page, "study.answered.size", 4)
        page.locator("#start").click()
        page.get_by_text("All your answers have arrived").wait_for()
        assert page.faults == []
    rows = kept(study)
    assert [row.item.position for row in rows] == [0, 1, 2, 3] and {row.rater for row in rows} == {link}


def test_a_small_phone_has_seen_both_before_it_answers(browser, tmp_path, free_port) -> None:
    """Upright the second video is below the screen: it is seen once it was scrolled to. Turned, both are there."""
    study = make_study(tmp_path, 2, repeats=0, attention=0)
    with served_study(study, free_port) as server:
        context = browser.new_context(viewport={"width": 360, "height": 600}, is_mobile=True, has_touch=True)
        page = open_page(context, server, str(study.open_link))
        page.evaluate("window.ends = 0; film.addEventListener('ended', () => ends++)")
        page.locator("#start").tap()
        until(page, "ends >= 2")
        assert not page.evaluate("viewed") and page.locator("#questions button:enabled").count() == 0
        assert [text.strip() for text in page.locator("figcaption").all_inner_texts()] == [
            "Video 1 ✓",
            "Video 2",
        ]
        page.locator("canvas").nth(1).scroll_into_view_if_needed()
        until(page, "viewed")
        page.set_viewport_size({"width": 640, "height": 360})
        page.evaluate("scrollTo(0, 0)")
        boxes = [canvas.bounding_box() for canvas in page.locator("canvas").all()]
        assert boxes[0]["y"] == boxes[1]["y"] and all(box["y"] + box["height"] <= 360 for box in boxes)
        assert page.evaluate("document.documentElement.scrollWidth") <= 640 and page.faults == []


def test_two_tabs_are_one_rater_and_a_phone_shows_full_width(browser, tmp_path, free_port) -> None:
    study = make_study(tmp_path, 2, repeats=0, attention=0)
    with served_study(study, free_port) as server:
        context = browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
        first, second = (open_page(context, server, str(study.open_link)) for _ in range(2))
        for page in (first, second):
            page.bring_to_front()
            page.locator("#start").tap()
            until(page, "viewed")
        boxes = [canvas.bounding_box() for canvas in second.locator("canvas").all()]
        assert all(box["width"] >= 360 and abs(box["height"] - box["width"]) < 1 for box in boxes)
        assert boxes[1]["y"] > boxes[0]["y"] + boxes[0]["height"] and not second.evaluate("scrollX")
        assert second.evaluate("document.documentElement.scrollWidth") <= 390
        for row in second.locator(".choices").all():
            row.get_by_text("Video 1").tap()
        second.locator("#next").tap()
        until(second, "study.answered.size", 1)
        until(first, "position", 1)  # the other tab has moved on
        first.bring_to_front()
        until(first, "viewed")
        for row in first.locator(".choices").all():
            row.get_by_text("The same").tap()
        first.locator("#next").tap()
        until(first, "study.answered.size", 2)
        for page in (first, second):
            until(page, "position", -1)
            assert page.faults == []
    rows = kept(study)
    assert [row.choices for row in rows] == [("1", "1"), ("tie", "tie")] and len(
        {row.rater for row in rows}
    ) == 1
