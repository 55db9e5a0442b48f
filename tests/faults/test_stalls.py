"""A model's server that takes its time: everything ends at a known moment."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from core.testing import Running
from tests.conftest import assert_no_secret_in, served
from tests.support.api import Account, Api
from tests.support.config import write_config
from tests.support.faults import ask_once, assert_failed
from tests.support.upstream import Received, Upstream, Wire

HEAD = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
DEADLINE_SECONDS = 0.8


@pytest.fixture(scope="module")
async def service(
    tmp_path_factory: pytest.TempPathFactory, database_url: str, upstream: Upstream
) -> AsyncIterator[Running]:
    """A service that soon loses its patience."""
    file = write_config(
        tmp_path_factory.mktemp("service") / "app.toml",
        database_url,
        upstream.base_url,
        llm=f"deadline_seconds = {DEADLINE_SECONDS}",
        providers__main="first_token_seconds = 0.3",
    )
    async with served(file) as (found, _):
        yield found
        await assert_no_secret_in(found)


class Stalls:
    """Sends this, then drips or is silent for ever; `gone` is set when we hang up."""

    def __init__(self, *parts: str, drip: str = "") -> None:
        self._parts = parts
        self._drip = drip
        self.gone = asyncio.Event()

    async def __call__(self, wire: Wire, received: Received) -> None:
        dripping = asyncio.create_task(self._send(wire))
        await wire.closed_by_client()
        self.gone.set()
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)

    async def _send(self, wire: Wire) -> None:
        await wire.send(*self._parts)
        while self._drip:
            await asyncio.sleep(0.05)
            await wire.send(self._drip)


STALLS = {
    "U02_says_nothing": ([], ""),
    "U03_stalls_after_the_status": (["HTTP/1.1 200 OK\r\n"], ""),
    "U03_stalls_after_one_byte": ([HEAD, "Content-Length: 500\r\n\r\n", "{"], ""),
    "U04_drips_its_head": (["HTTP/1.1 200 OK\r\n", "X-Slow: "], "z"),
    "U04_drips_its_body": ([HEAD, "Content-Length: 50000\r\n\r\n"], " "),
    "U04_drips_chunks": (
        [HEAD, "Transfer-Encoding: chunked\r\n\r\n"],
        "1\r\n \r\n",
    ),
    "U04_goes_on_being_about_to_answer": ([], "HTTP/1.1 102 Processing\r\n\r\n"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "drip"), STALLS.values(), ids=STALLS.keys())
async def test_an_answer_that_does_not_come_is_a_timeout(
    api: Api, ada: Account, upstream: Upstream, parts: list[str], drip: str
) -> None:
    stalls = Stalls(*parts, drip=drip)
    started = asyncio.get_running_loop().time()
    answer = await ask_once(api, ada, upstream, stalls)
    assert asyncio.get_running_loop().time() - started < DEADLINE_SECONDS + 20
    await assert_failed(api, ada, answer, 504, "provider_timeout")
    async with asyncio.timeout(1):
        await stalls.gone.wait()
