"""All that the modules keep of one person, in a file that is written while it is sent.

A hundred thousand records take the room of a few: the next are read from the database
once those before them are on their way.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from core.errors import BrokenOff, StartRefused
from core.http import Caller
from core.module import Module, ModuleContext, PersonalData, Record

_FIRST, _LAST = "exported_at", "complete"
_PIECE_BYTES = 65_536


class Exports:
    """Writes what every enabled module keeps of a user, in the order of the modules."""

    def __init__(self, context: ModuleContext, modules: Iterable[Module]) -> None:
        """Raises StartRefused for a section that the file would have twice."""
        self._context = context
        self._sections: dict[str, PersonalData] = {}
        for module in modules:
            for name, read in module.personal_data.items():
                if name in (_FIRST, _LAST, *self._sections):
                    problem = f"its personal data has the name {name!r}, which is taken"
                    raise StartRefused(f"module {module.name!r}: {problem}")
                self._sections[name] = read

    async def write(
        self, user_id: int, still_there: Callable[[int], Awaitable[object]]
    ) -> AsyncGenerator[bytes, None]:
        """Yield one JSON object in pieces; `complete` is its last member.

        `still_there` is asked before that, and raises for a user who went meanwhile:
        what was not read by then was not found either.
        """
        piece = bytearray()
        async with aclosing(self._members(user_id)) as members:
            async for part in members:
                piece += part
                if len(piece) >= _PIECE_BYTES:
                    yield bytes(piece)
                    piece.clear()
        await still_there(user_id)
        yield bytes(piece) + b',\n"%b": true}\n' % _LAST.encode()

    async def _members(self, user_id: int) -> AsyncGenerator[bytes, None]:
        yield b'{"%b": %b' % (_FIRST.encode(), _json(self._context.clock()))
        for name, read in self._sections.items():
            yield b",\n%b: " % _json(name)
            found = read(self._context, user_id)
            if isinstance(found, AsyncGenerator):
                async with aclosing(_list(found)) as parts:
                    async for part in parts:
                        yield part
            else:
                yield _json(await found)


async def _list(records: AsyncGenerator[Record, None]) -> AsyncGenerator[bytes, None]:
    """A JSON array, each record in a line of its own."""
    separator = b"[\n"
    async with aclosing(records):
        async for record in records:
            yield separator + _json(record)
            separator = b",\n"
    yield b"[]" if separator == b"[\n" else b"\n]"


def _json(value: object) -> bytes:
    # Strict JSON: it has no NaN.
    return to_json(value, inf_nan_mode="null")


class Download(Response):
    """A JSON file to be kept, sent while it is written.

    What fails before the first piece is an ordinary problem. After that the connection
    is closed without the end of the response, so that no client takes it for whole.
    """

    media_type = "application/json"

    def __init__(self, name: str, pieces: AsyncGenerator[bytes, None]) -> None:
        """`name` is the file's, of plain letters."""
        super().__init__()
        self.raw_headers = [
            (b"content-type", b"application/json"),
            (b"content-disposition", f'attachment; filename="{name}"'.encode()),
            (b"cache-control", b"no-store"),
        ]
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Nothing more is read for somebody who has hung up.
        await Caller(Request(scope, receive)).unless_gone(self._send(send))
        await send(_body(b"", is_last=True))

    async def _send(self, send: Send) -> None:
        async with aclosing(self._pieces) as pieces:
            first = await anext(pieces)
            start = {"type": "http.response.start", "status": self.status_code}
            await send(start | {"headers": self.raw_headers})
            await send(_body(first))
            try:
                async for piece in pieces:
                    await send(_body(piece))
            except Exception as exc:
                # Not as it is: a problem would be answered into what has begun.
                raise BrokenOff from exc


def _body(body: bytes, *, is_last: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": not is_last}
