"""Watching whether a client is still there leaves nothing behind."""

import asyncio
import gc
import weakref
from typing import Any

from fastapi import Request

from core.http import Caller


class Connection:
    """A client that stays."""

    async def receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError("it never hangs up")


async def answered_in_a_while() -> str:
    # Long enough for the watch to begin.
    await asyncio.sleep(0.2)
    return "So."


async def test_a_request_is_let_go_of_without_waiting_for_the_collector() -> None:
    """Or a thousand at a time would each hold twenty kilobytes for too long."""
    connection = Connection()
    gone = weakref.ref(connection)
    request = Request({"type": "http"}, receive=connection.receive)
    gc.collect()
    gc.disable()
    try:
        answer = await Caller(request).unless_gone(answered_in_a_while())
        del connection, request
        # The watch has its turn to end.
        await asyncio.sleep(0.05)
        assert answer == "So."
        assert gone() is None
    finally:
        gc.enable()
