"""A real, headless Chromium that cannot reach anything but this machine."""

import shutil
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, Request, async_playwright

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


@pytest.fixture(scope="session")
def database_kind() -> str:
    """What a page shows does not depend on the database."""
    return "sqlite"


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=FLAGS
        )
        yield chromium
        await chromium.close()


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """An empty page; fails the test that wanted anything from another host."""
    context = await browser.new_context(viewport={"width": 1200, "height": 1000})
    context.set_default_timeout(15_000)
    wanted: list[Request] = []
    context.on("request", lambda request: wanted.append(request))
    try:
        yield await context.new_page()
        elsewhere = [
            request.url
            for request in wanted
            if urlsplit(request.url).scheme in ("http", "https", "ws", "wss")
            and urlsplit(request.url).hostname != "127.0.0.1"
        ]
        assert not elsewhere
        assert wanted
    finally:
        await context.close()
