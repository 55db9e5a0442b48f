"""Answers that are read as they come, in a browser."""

from typing import Any

import pytest
from playwright.async_api import Error, Page

from core.testing import Running
from tests.browser.test_pages import authorize, close_dialog, execute, operation
from tests.support.api import Account
from tests.support.markdown import ROOT, blocks
from tests.support.upstream import Upstream, deltas, ending, streams

pytestmark = pytest.mark.browser

COLLECT = """async ([token, content]) => {
  const pieces = [];
  for await (const piece of ask(token, content)) pieces.push(piece);
  return pieces;
}"""


async def test_the_readers_javascript_reads_a_stream_and_knows_its_end(
    page: Page, service: Running, ada: Account, upstream: Upstream
) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = (block.code for block in blocks(readme) if block.language == "js")
    await page.goto(f"{service.url}/docs")
    await page.add_script_tag(content=code)

    async def read() -> Any:
        return await page.evaluate(COLLECT, [ada.token, "Which city?"])

    async with upstream.behaving(streams(*deltas("Par", "is \u2028"), *ending())):
        assert "".join(await read()) == "Paris \u2028"
    async with upstream.behaving(streams(*deltas("Par"), is_cut=True)):
        with pytest.raises(Error, match="The language model's answer broke off"):
            await read()
    with pytest.raises(Error, match="not valid"):
        await page.evaluate(COLLECT, [ada.token, "  "])


async def test_the_page_shows_a_stream(
    page: Page, service: Running, ada: Account, upstream: Upstream
) -> None:
    await page.goto(f"{service.url}/docs")
    await authorize(page, ada.username, ada.password)
    await close_dialog(page)
    async with upstream.behaving(streams(*deltas("Par", "is"), *ending())):
        block = operation(page, "post", "/questions/stream")
        status, shown = await execute(block, {"content": "Which city?"})
    assert status == 200
    for told in ("event: meta", 'data: {"text": "Par', "event: done"):
        assert told in shown
