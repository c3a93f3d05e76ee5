"""A real browser, Debian's chromium, and what it sees of a page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urldefrag

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}

LOOK = """() => ({
    links: [...document.querySelectorAll("a[href]")].map(a => a.href),
    names: [...document.querySelectorAll("[id], a[name]")].map(e => e.id || e.name),
    pictures: [...document.images].map(i => [i.src, i.naturalWidth]),
    text: document.querySelector("article").innerText,
})"""
LOADED = "() => [...document.images].every(i => i.complete)"
TOO_WIDE = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


class Seen(NamedTuple):
    """A page, as a browser shows it."""

    links: list[str]
    names: set[str]  # what a link can lead to within it
    unloaded: list[str]  # pictures
    text: str
    beyond: int  # how far it scrolls sideways on a phone, in pixels


class Watch:
    """What goes wrong in a tab, and what it asks of whom."""

    def __init__(self, page: Page) -> None:
        self.complaints: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.complain(message.type in ("error", "warning"), message.text))
        page.on("pageerror", lambda error: self.complain(True, str(error)))
        page.on("requestfailed", lambda request: self.complain(True, f"{request.url}: {request.failure}"))
        page.on("response", lambda answer: self.complain(answer.status >= 400, f"{answer.url}: {answer.status}"))
        page.on("request", lambda request: self.asked.append(request.url))

    def complain(self, wrong: bool, text: str) -> None:
        if wrong:
            self.complaints.append(text)

    def outside(self, home: str) -> list[str]:
        return [url for url in self.asked if not url.startswith((home, "data:", "blob:"))]


@contextmanager
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


def look(page: Page, url: str) -> Seen:
    """Open a page, as a desktop and as a phone shows it."""
    page.set_viewport_size(DESKTOP)
    page.goto(url)
    page.wait_for_function(LOADED)
    found = page.evaluate(LOOK)
    page.set_viewport_size(PHONE)
    page.wait_for_load_state("networkidle")  # a page that is left while it loads complains of that
    unloaded = [source for source, width in found["pictures"] if not width]
    return Seen(found["links"], set(found["names"]), unloaded, found["text"], page.evaluate(TOO_WIDE))


def broken(seen: dict[str, Seen], home: str) -> list[str]:
    """The links within the site that lead nowhere."""
    found = []
    for url, page in seen.items():
        for link in page.links:
            target, name = urldefrag(link)
            if not target.startswith(home):
                continue
            target = target + "index.html" if target.endswith("/") else target
            if target not in seen or (name and name not in seen[target].names):
                found.append(f"{url} -> {link}")
    return found
