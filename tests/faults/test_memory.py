"""Many long answers at once take as much memory as they have text, and little more."""

import asyncio
from pathlib import Path

import psutil
import pytest

from tests.conftest import Databases
from tests.support.api import Account, Api
from tests.support.config import write_config
from tests.support.leaver import asking
from tests.support.process import serving
from tests.support.upstream import (
    STREAM_HEAD,
    Received,
    Upstream,
    Wire,
    deltas,
    ending,
    framed,
)

_STREAMS, _STREAMS_IN_A_SOAK = 100, 500
_LONGEST_ANSWER_BYTES = 262_144
# Two bytes a letter, in UTF-8 and in memory alike.
_PIECE = "ж" * 2_048
_PIECES = _LONGEST_ANSWER_BYTES // len(_PIECE.encode())
_FACTOR = 4
"""The answer in pieces, the answer, and what is on its way through the sockets."""
_STORING_MIB = 64
"""A batch of answers, in the forms it takes on its way to the database, and code."""


@pytest.mark.slow
@pytest.mark.soak
async def test_F43_memory_is_bounded_by_the_answers_in_flight(
    tmp_path: Path,
    databases: Databases,
    database_kind: str,
    upstream: Upstream,
    is_soak: bool,
) -> None:
    streams = _STREAMS_IN_A_SOAK if is_soak else _STREAMS
    url = await databases.migrated(database_kind)
    file = write_config(tmp_path / "app.toml", url, upstream.base_url)
    release, said = asyncio.Event(), 0

    async def say_all(wire: Wire, received: Received) -> None:
        nonlocal said
        await wire.send(STREAM_HEAD)
        for _ in range(_PIECES):
            await wire.send(*map(framed, deltas(_PIECE)))
        said += 1
        await release.wait()
        await wire.send(*map(framed, ending()), "0\r\n\r\n")

    async def read(api: Api, who: Account) -> bool:
        client = await asking(api, who, "Tell me everything.", "/questions/stream")
        last = b""
        try:
            while data := await client.reader.read(65_536):
                last = (last + data)[-_LONGEST_ANSWER_BYTES * 2 :]
                if b"event: done" in last and last.endswith(b"\r\n0\r\n\r\n"):
                    return True
            return False
        finally:
            client.hang_up()

    with serving("--config", file) as server:
        api = Api(server.url)
        ada = await api.account()
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        async with upstream.behaving(say_all), asyncio.timeout(300):
            readers = [asyncio.create_task(read(api, ada)) for _ in range(streams)]
            while said < streams:
                await asyncio.sleep(0.05)
            release.set()
            ended = await asyncio.gather(*readers)
        grown = highest(server.process.pid) - before
        newest = await api.newest(ada)
        await api.close()
    assert ended == [True] * streams, server.log
    assert newest[0]["answer"] == _PIECE * _PIECES
    answers = streams * _LONGEST_ANSWER_BYTES
    assert grown < _FACTOR * answers + _STORING_MIB * 2**20


def highest(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("there is no such line")
