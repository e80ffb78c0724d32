"""A real browser for tests of pages: Debian's chromium, led by Playwright.

    with open_browser() as browser:
        visit = browser.visit("http://127.0.0.1:8470/")
        visit.page.get_by_label("Pairing code").fill("1234 5678")
        visit.blame()

Whatever a page asks of another host, and whatever it complains of in the console, is kept; `blame` fails on it. The
browser blocks the thread that leads it, so what it visits is served from another thread or process (`serving`).
"""

import asyncio
import contextlib
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

import pytest

PROGRAM: Final = "chromium"
ARGUMENTS: Final = [
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-gpu",
]
PHONE: Final = (390, 844)
DESKTOP: Final = (1280, 900)
WAIT_MS: Final = 15_000
T = TypeVar("T")


class Visit:
    """One window on one page, with a memory of its own. `page` is Playwright's."""

    def __init__(self, context: Any, url: str) -> None:
        self.context = context
        self.page = context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self._host = urlsplit(url).netloc
        context.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.goto(url)

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def blame(self, *, expected: tuple[str, ...] = ()) -> None:
        """Fails when the page asked another host, or complained of anything but what `expected` names a part of."""
        strangers = [url for url in self.asked if urlsplit(url).netloc != self._host and not url.startswith("data:")]
        assert not strangers, strangers
        unexpected = [one for one in self.complaints if not any(part in one for part in expected)]
        assert not unexpected, unexpected


class Browser:
    """See `open_browser`."""

    def __init__(self, program: Any) -> None:
        self._program = program
        self._visits: list[Visit] = []

    def visit(
        self, url: str, size: tuple[int, int] = DESKTOP, scheme: Literal["light", "dark"] = "light", **options: Any
    ) -> Visit:
        """Opens a page in a window of its own; `options` are those of Playwright's `new_context`."""
        width, height = size
        context = self._program.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=size == PHONE, **options
        )
        context.set_default_timeout(WAIT_MS)
        visit = Visit(context, url)
        self._visits.append(visit)
        return visit

    def close_all(self) -> None:
        """Closes what was opened."""
        while self._visits:
            self._visits.pop().context.close()


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser without a window. Skips the test where there is none; under CI=true it fails."""
    program = shutil.which(PROGRAM)
    try:
        from playwright.sync_api import expect, sync_playwright
    except ImportError as error:
        program, why = None, str(error)
    else:
        why = f"{PROGRAM} is not installed (scripts/test-setup)"
    if program is None and os.environ.get("CI") == "true":
        pytest.fail(why)
    if program is None:
        pytest.skip(why)
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=program, headless=True, args=ARGUMENTS)
        try:
            yield Browser(launched)
        finally:
            launched.close()


class Loop:
    """An event loop in a thread of its own: `run` waits for what it does, `call` has something done in it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Has `work` awaited there, and returns what it does."""

        async def do() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(do(), self.loop).result(30)

    def close(self) -> None:
        """Ends it."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
