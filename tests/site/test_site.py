"""The documentation site, built as `make docs` builds it and opened in a real browser, served and as files."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.pages import ROOT
from tests.site.browser import CHROMIUM, DESKTOP, Seen, Watch, broken, chromium, look

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        CHROMIUM is None and "CI" not in os.environ,
        reason="no chromium for the site's pages; apt install chromium, or CHROMIUM names one",
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a warning."""
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    quiet = {"NO_MKDOCS_2_WARNING": "1"}  # Material's notice about its own future
    built = subprocess.run(command, cwd=ROOT, env=os.environ | quiet, capture_output=True, text=True)
    lines = (built.stdout + built.stderr).splitlines()
    told = "\n".join(line for line in lines if not line.startswith("INFO    -  "))
    assert (built.returncode, told) == (0, "")
    return folder


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site)) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}/"
        served.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM, "no chromium; hint: apt install chromium, or CHROMIUM names one"
    with chromium() as started:
        yield started


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(color_scheme="light", viewport=DESKTOP)
    yield context.new_page()
    context.close()


class Walk:
    """Every page of the site, seen once."""

    def __init__(self, browser: Browser, site: Path, home: str) -> None:
        context = browser.new_context()
        page = context.new_page()
        self.home, self.watch = home, Watch(page)
        files = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if path.name != "404.html")
        self.seen: dict[str, Seen] = {home + file: look(page, home + file) for file in files}
        context.close()


@pytest.fixture(scope="module")
def walk(browser: Browser, site: Path, server: str) -> Walk:
    return Walk(browser, site, server)


def test_no_link_is_broken(walk: Walk) -> None:
    assert len(walk.seen) > 50
    assert sum(len(page.links) for page in walk.seen.values()) > 5_000
    assert broken(walk.seen, walk.home) == []


def test_the_browser_complains_of_nothing(walk: Walk) -> None:
    assert walk.watch.complaints == []


def test_nothing_is_asked_of_anybody_else(walk: Walk) -> None:
    assert len(walk.watch.asked) > len(walk.seen)
    assert walk.watch.outside(walk.home) == []


def test_every_picture_is_there(walk: Walk) -> None:
    assert [source for page in walk.seen.values() for source in page.unloaded] == []


def test_no_page_scrolls_sideways_on_a_phone(walk: Walk) -> None:
    assert {url: page.beyond for url, page in walk.seen.items() if page.beyond > 0} == {}


def test_no_markup_is_left_over(walk: Walk) -> None:
    for left in (":::", "Args:\n", "Raises:\n    ", "Reference:\n"):
        assert [url for url, page in walk.seen.items() if "/source/" not in url and f"\n{left}" in page.text] == []


def test_every_page_can_be_reached_from_the_first(walk: Walk) -> None:
    reached, todo = set(), [walk.home + "index.html"]
    while todo:
        if (url := todo.pop()) in walk.seen and url not in reached:
            reached.add(url)
            todo += [link.partition("#")[0] for link in walk.seen[url].links]
    assert set(walk.seen) - reached == set()


@pytest.mark.parametrize("way", ["served", "opened as a file"])
def test_the_search_finds_a_rule(way: str, tab: Page, site: Path, server: str) -> None:
    home = server if way == "served" else site.as_uri() + "/"
    watch = Watch(tab)
    tab.goto(home + "index.html")
    tab.locator(".md-search__input").click()
    tab.locator(".md-search__input").press_sequentially("scale_by_lion", delay=20)
    result = tab.locator(".md-search-result__link").first
    result.wait_for(state="visible")
    assert "rules/parts.html" in result.get_attribute("href")
    result.click()
    tab.wait_for_url("**/rules/parts.html*")
    assert (watch.complaints, watch.outside(home)) == ([], [])


def test_dark_stays_dark_on_the_next_page(tab: Page, server: str) -> None:
    def background() -> str:
        return tab.evaluate("() => getComputedStyle(document.body).backgroundColor")

    tab.goto(server + "index.html")
    light = background()
    tab.locator("label[title=Dark]").click()
    tab.wait_for_function("() => document.body.getAttribute('data-md-color-scheme') === 'slate'")
    dark = background()
    tab.goto(server + "trainer.html")
    assert background() == dark != light


def test_a_program_is_shown_as_it_is_written(tab: Page, server: str) -> None:
    tab.goto(server + "examples/callbacks.html")
    code = tab.locator("td.code code")
    assert code.text_content().rstrip() == (ROOT / "examples" / "callbacks.py").read_text("utf-8").rstrip()
    assert code.evaluate("e => getComputedStyle(e).whiteSpace") == "pre"
    ends = "s => [...document.querySelectorAll(s)].at(-1).getBoundingClientRect().bottom"
    number, line = (tab.evaluate(ends, selector) for selector in (".linenos .normal", "td.code code > span"))
    assert abs(number - line) < 4  # pixels: the last number stands beside the last line


def test_code_is_copied_as_it_is_written(tab: Page, server: str) -> None:
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.goto(server + "rules/parts.html")
    formula = tab.locator("pre", has_text="√(ν̂ + ε')").first
    formula.locator("xpath=..").locator("button").click()
    tab.wait_for_function("async () => (await navigator.clipboard.readText()) !== ''")
    copied = tab.evaluate("() => navigator.clipboard.readText()")
    assert "u = μ̂ / (√(ν̂ + ε') + ε)" in copied.splitlines()
