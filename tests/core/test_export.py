"""A file that is written while it is sent takes the room of a few records."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest
from starlette.types import Message

from core.app import create_app, new_context
from core.errors import BrokenOff, ClientGone, StartRefused
from core.export import Download, Exports
from core.module import Module, ModuleContext, PersonalData, Record
from core.pages import every
from core.settings import load_settings
from tests.support import guestbook
from tests.support.config import write_config

ROWS = 10_000
PAGE = 100


class Table:
    """Rows to be read page by page; knows how far somebody has come."""

    def __init__(self, rows: int = ROWS) -> None:
        self.rows = rows
        self.pages = 0
        self.is_left = False

    async def read(self, last: int | None) -> Sequence[int]:
        self.pages += 1
        start = 0 if last is None else last + 1
        return range(start, min(start + PAGE, self.rows))

    async def records(
        self, context: ModuleContext, user_id: int
    ) -> AsyncGenerator[Record, None]:
        try:
            async for number in every(self.read):
                yield {"number": number, "text": "x" * 1_000}
        finally:
            self.is_left = True


class Client:
    """Takes the pieces of a response one by one, and may hang up."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.gone = asyncio.Event()
        self.waits = asyncio.Event()
        self._takes = asyncio.Semaphore(0)

    def takes(self, pieces: int) -> None:
        self.waits.clear()
        for _ in range(pieces):
            self._takes.release()

    async def send(self, message: Message) -> None:
        if self._takes.locked():
            self.waits.set()
        await self._takes.acquire()
        self.messages.append(message)

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


async def nobody_left(user_id: int) -> None:
    """Whoever exports is still there."""


def context(tmp_path: Path) -> ModuleContext:
    file = write_config(tmp_path / "app.toml", f"sqlite+aiosqlite:///{tmp_path}/v.db")
    return new_context(load_settings(file, {}))


def download(tmp_path: Path, *modules: Module) -> Download:
    exports = Exports(context(tmp_path), modules)
    return Download("file.json", exports.write(7, nobody_left))


def module(name: str, **personal_data: PersonalData) -> Module:
    return Module(name=name, personal_data=personal_data)


async def test_the_next_page_is_read_once_the_one_before_was_taken() -> None:
    table = Table(250)
    taken = []
    async with aclosing(every(table.read)) as rows:
        assert table.pages == 0
        async for number in rows:
            assert table.pages == number // PAGE + 1
            taken.append(number)
    assert taken == list(range(250))


@pytest.mark.parametrize("rows", [0, 1, 99, 100, 101, 200])
async def test_every_row_comes_once(rows: int) -> None:
    assert [number async for number in every(Table(rows).read)] == list(range(rows))


async def test_what_is_not_taken_is_not_read(tmp_path: Path) -> None:
    table, client = Table(), Client()
    response = download(tmp_path, module("a", rows=table.records))
    sending = asyncio.create_task(
        response({"type": "http"}, client.receive, client.send)
    )
    for taken in (2, 1, 4):
        client.takes(taken)
        await client.waits.wait()
        pages = table.pages
        # Of a page of 100 kB a little less than two pieces are made.
        assert pages <= len(client.messages)
        for _ in range(100):
            await asyncio.sleep(0)
        assert table.pages == pages
    client.takes(ROWS)
    await sending
    assert table.pages == ROWS // PAGE + 1
    assert table.is_left
    assert max(len(message.get("body", b"")) for message in client.messages) < 70_000
    made = json.loads(client.body)
    assert list(made) == ["exported_at", "rows", "complete"]
    assert [row["number"] for row in made["rows"]] == list(range(ROWS))
    assert [m.get("more_body", True) for m in client.messages].count(False) == 1


async def test_who_hangs_up_is_read_for_no_more(tmp_path: Path) -> None:
    table, client = Table(), Client()
    response = download(tmp_path, module("a", rows=table.records))
    sending = asyncio.create_task(
        response({"type": "http"}, client.receive, client.send)
    )
    client.takes(3)
    await client.waits.wait()
    client.gone.set()
    with pytest.raises(ClientGone):
        await sending
    assert table.is_left
    assert table.pages < 10
    assert client.messages[-1]["more_body"]


async def test_what_fails_in_the_middle_does_not_end(tmp_path: Path) -> None:
    table, client = Table(), Client()

    async def fails(context: ModuleContext, user_id: int) -> Record:
        raise LookupError

    response = download(tmp_path, module("a", rows=table.records, one=fails))
    client.takes(ROWS)
    with pytest.raises(BrokenOff) as broken:
        await response({"type": "http"}, client.receive, client.send)
    assert isinstance(broken.value.__cause__, LookupError)
    assert all(message.get("more_body", True) for message in client.messages)
    assert b"complete" not in client.body


async def test_what_fails_at_the_beginning_has_sent_nothing(tmp_path: Path) -> None:
    client = Client()

    async def fails(context: ModuleContext, user_id: int) -> Record:
        raise LookupError

    response = download(tmp_path, module("a", one=fails))
    client.takes(1)
    with pytest.raises(LookupError):
        await response({"type": "http"}, client.receive, client.send)
    assert client.messages == []


async def one(context: ModuleContext, user_id: int) -> Record:
    return {"user": user_id}


@pytest.mark.parametrize("name", ["one", "exported_at", "complete"])
def test_a_name_that_the_file_would_have_twice_refuses_the_start(
    tmp_path: Path, name: str
) -> None:
    modules = [module("first", one=one), module("second", **{name: one})]
    with pytest.raises(StartRefused) as refused:
        Exports(context(tmp_path), modules)
    assert "'second'" in str(refused.value) and f"'{name}'" in str(refused.value)


def test_a_strangers_name_that_is_taken_refuses_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guestbook.install(tmp_path / "site", monkeypatch)
    package = tmp_path / "site" / guestbook.NAME / "__init__.py"
    package.write_text(package.read_text().replace('"guest":', '"profile":'))
    names = f'enabled = ["users", "{guestbook.NAME}"]'
    url = f"sqlite+aiosqlite:///{tmp_path}/v.db"
    file = write_config(tmp_path / "app.toml", url, modules=names)
    try:
        settings = load_settings(file, {})
        with pytest.raises(StartRefused, match=r"'guestbook'.*'profile'"):
            create_app(settings)
    finally:
        guestbook.forget()
