"""The pages, in headless Chromium where the system has one, with real clicks and keys."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clients.compare import write_comparison
from clients.rate_server import desk, server
from clients.ratings import read_ratings, summarise_ratings
from clients.report import segments, write_report
from modelstore import UserError
from tests.clients import pages

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this system (apt-get install chromium)")
WIDTHS = [390, 1280]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_report(pages.page(), folder)


def opened(browser: Any, url: str, width: int = 1280) -> tuple[Any, list[str]]:
    """A page and whatever it complains about or asks the network for."""
    page, faults = browser.new_page(viewport={"width": width, "height": 900}, locale="en-GB"), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "request", lambda sent: None if sent.url.startswith(url.split("#", maxsplit=1)[0]) else faults.append(sent.url)
    )
    page.goto(url)
    return page, faults


@in_browser
@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_fits_filters_and_speaks_both_languages(browser: Any, report: Path, width: int) -> None:
    page, faults = opened(browser, report.as_uri(), width)
    assert "is better than the base model" in page.inner_text(".verdict")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.select_option("#category", "multi-hop")
    assert page.inner_text("#shown") == "50 / 146"
    page.select_option("#outcome", "none")
    shown = page.locator("details.q:visible")
    assert 0 < shown.count() == int(page.inner_text("#shown").split()[0])
    page.select_option("#outcome", "won")
    page.locator("details.q:visible summary").first.click()
    assert page.locator("details.q[open] mark.said").first.is_visible()
    page.click("#language")
    assert "微调模型比基础模型好" in page.inner_text(".verdict")
    assert "类别" in page.inner_text("#category") and "Accuracy" not in page.inner_text("body")
    assert faults == []
    page.close()


@in_browser
def test_the_report_prints_and_follows_the_dark(browser: Any, report: Path) -> None:
    page, _ = opened(browser, report.as_uri())
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)" != dark
    assert not page.is_visible("#category") and len(page.pdf()) > 20_000
    page.close()


def test_the_report_loads_nothing_and_keeps_ids_apart(report: Path) -> None:
    html = report.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", html) and "<b>Ask" not in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)) and html.count("<svg") == 4
    assert not re.search(r"#0[1-5]0[1-5]0[1-5]", html), "a plot keeps a colour of its own"


def test_marks_cut_an_answer_in_pieces() -> None:
    side = {"text": "at 9 days, not 90", "marks": [[3, 9, "said"], [15, 17, "wrong"]]}
    assert segments(side) == [("at ", ""), ("9 days", "said"), (", not ", ""), ("90", "wrong")]


@in_browser
def test_the_comparison_shows_the_trend(browser: Any, tmp_path: Path) -> None:
    from clients.compare import _point

    found = [_point(pages.page()), _point(pages.page(pages.questions("zh")))]
    out = write_comparison(found, tmp_path / "compare.html")
    page, faults = opened(browser, out.as_uri(), 390)
    assert page.locator("tr").count() == 3 and page.locator("svg").count() == 1 and faults == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert out.with_suffix(".md").read_text().count("\n") >= 4
    page.close()


@pytest.fixture
def rating(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    rows = pages.questions()[:6]
    (tmp_path / "report.json").write_text(json.dumps(pages.page(rows)), encoding="utf-8")
    listening = server(desk(tmp_path / "report.json"), "127.0.0.1", 0)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}/", tmp_path / "ratings.jsonl"
    listening.shutdown()
    listening.server_close()


def wait_for_lines(file: Path, count: int) -> None:
    for _ in range(300):  # each click is flushed to the disk, which may be busy
        if file.exists() and file.read_text().count("\n") >= count:
            break
        time.sleep(0.1)
    assert file.read_text().count("\n") == count, "every click is kept"


@in_browser
def test_what_could_not_be_saved_comes_back(browser: Any, rating: tuple[str, Path]) -> None:
    url, file = rating
    page, _ = opened(browser, url)
    page.fill("#name", "Ana")
    page.keyboard.press("Enter")
    page.wait_for_selector("#desk:visible")
    question = page.inner_text("#question")
    page.route("**/rate", lambda route: route.abort())
    page.keyboard.press("s")
    page.wait_for_selector("#error:not(:empty)")  # no script of the test's own: the page's policy forbids it
    assert page.inner_text("#question") == question and page.inner_text("#count") == "0 / 5" and not file.exists()
    page.unroute("**/rate")
    page.keyboard.press("s")
    wait_for_lines(file, 1)
    page.close()


@in_browser
@pytest.mark.parametrize("width", WIDTHS)
def test_a_person_rates_with_keys_and_clicks(browser: Any, rating: tuple[str, Path], width: int) -> None:
    url, file = rating
    page, faults = opened(browser, url, width)
    page.fill("#name", "Ana")
    page.keyboard.press("Enter")
    page.wait_for_selector("#desk:visible")
    assert "tuned" not in page.content().lower().replace("--tuned", ""), "the page tells which model is which"
    for key in "24s51":  # a pair, the same, a pair: faster than they are saved
        page.keyboard.press(key)
    assert page.inner_text("#count") == "3 / 5"
    wait_for_lines(file, 3)
    page.keyboard.press("ArrowLeft")
    page.locator("#left .keys button").nth(2).click()
    wait_for_lines(file, 4)
    page.reload()
    page.fill("#name", "Ana")
    page.keyboard.press("Enter")
    page.wait_for_selector("#desk:visible")
    assert page.inner_text("#count") == "3 / 5", "who comes back goes on"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for _ in range(2):
        page.click("#same")
    wait_for_lines(file, 6)
    assert page.is_visible("#done") and faults == []
    page.click("#language")
    assert "全部评完" in page.inner_text("#done")
    page.close()
    assert {one.rater for one in read_ratings(file)} == {"Ana"} and len(read_ratings(file)) == 5


def test_who_is_left_and_right_is_by_lot_and_stays(rating: tuple[str, Path]) -> None:
    file = rating[1]
    table = desk(file.parent / "report.json")
    first, again = table.todo("Ana"), table.todo("Ana")
    assert first == again and first != table.todo("Ben")
    assert {row["left"] == table.pairs[row["id"]].base for row in table.todo("Cai") + first} == {True, False}


@pytest.mark.parametrize(
    "wish",
    [[], {"id": "none"}, {"rater": ""}, {"left": 6, "right": 1}, {"left": 1}, {"left": True, "right": 1}],
)
def test_what_is_no_rating_is_refused(rating: tuple[str, Path], wish: Any) -> None:
    table = desk(rating[1].parent / "report.json")
    name = next(iter(table.pairs))
    with pytest.raises(ValueError, match=r"pair|name|score"):
        table.rate({"rater": "Ana", "id": name, **wish} if isinstance(wish, dict) else wish)
    assert summarise_ratings(read_ratings(rating[1])) is None


def test_there_must_be_something_to_rate(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"answers": []}))
    with pytest.raises(UserError, match="nothing to rate"):
        desk(tmp_path / "report.json")
