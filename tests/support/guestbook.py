"""A module of somebody else's: installed beside this tree, found by its entry point."""

import sys
from pathlib import Path

import pytest

from tests.support import packages

NAME = "guestbook"
CANARY = "canary-inside-7c20be"
_MODULE = """
import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from core.module import Module
from core.security import Authenticator
from core.testing import NamedCallers


@asynccontextmanager
async def lifespan(context):
    if {brings_callers}:
        context.services.add(Authenticator, NamedCallers())
    yield


async def guest(context, user_id):
    return {{"number": user_id, "since": datetime(2026, 11, 23, tzinfo=UTC)}}


VISITS = 2
LEFT = asyncio.Event()


async def visits(context, user_id):
    try:
        for number in range(VISITS):
            yield {{"number": number, "mood": float("nan"), "words": "w" * 1_000}}
            # As a database would: others have their turn.
            await asyncio.sleep(0)
    finally:
        LEFT.set()


async def nothing(context, user_id):
    for number in ():
        yield number


MODULE = Module(
    name="guestbook",
    router="guestbook.router",
    lifespan=lifespan,
    personal_data={{"guest": guest, "visits": visits, "gifts": nothing}},
)
"""
_ROUTER = '''
"""What guests leave."""

from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException
from pydantic import BaseModel, field_validator
from sqlalchemy import text

from core.db import Database
from core.security import CurrentAdmin, CurrentUser
from core.services import Services
from fastapi import Request

router = APIRouter(prefix="/guests", tags=["guests"])
# Apart from where it is raised: a traceback shows that line.
INSIDE = "{canary}"


class Entry(BaseModel):
    text: str
    stars: int = 1

    @field_validator("text")
    @classmethod
    def _polite(cls, value: str) -> str:
        if "damn" in value:
            raise ValueError(INSIDE + value)
        return value


@router.post("", status_code=201)
async def write(entry: Entry, who: CurrentUser) -> dict[str, Any]:
    """Write something."""
    return {{"text": entry.text, "by": who.user_id}}


@router.get("/search")
async def search(body: dict[str, Any]) -> dict[str, Any]:
    """A GET that reads a body, as some do."""
    return body


@router.post("/form")
async def sign(name: Annotated[str, Form()]) -> dict[str, str]:
    """Sign with a form."""
    return {{"name": name}}


@router.get("/all")
async def read_all(who: CurrentAdmin) -> list[str]:
    """For administrators."""
    return []


@router.get("/fails")
async def fails() -> None:
    """Raise what nobody foresaw."""
    raise RuntimeError(INSIDE)


@router.get("/database")
async def database(request: Request) -> None:
    """Make the database raise."""
    services: Services = request.app.state.services
    async with services.get(Database).reading() as session:
        await session.execute(text("SELECT * FROM {canary_table}"))


@router.get("/lies")
async def lies() -> Entry:
    """Return what the route did not promise."""
    return {{"text": [INSIDE]}}  # type: ignore[return-value]


@router.get("/http/{{status}}")
async def says(status: int) -> None:
    """Raise FastAPI's own exception."""
    raise HTTPException(status, INSIDE, {{"X-Canary": INSIDE, "Retry-After": "7"}})
'''


def install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, brings_callers: bool = True
) -> None:
    """Put the module where an installed distribution would be."""
    router = _ROUTER.format(canary=CANARY, canary_table=CANARY.replace("-", "_"))
    packages.install(
        folder,
        NAME,
        "1.0",
        entry_points=f"[vopros.modules]\n{NAME} = {NAME}:MODULE",
        files={
            f"{NAME}/__init__.py": _MODULE.format(brings_callers=brings_callers),
            f"{NAME}/router.py": router,
        },
    )
    monkeypatch.syspath_prepend(folder)


def forget() -> None:
    """Unload what a test has installed: the next one installs it elsewhere."""
    for name in (NAME, f"{NAME}.router"):
        sys.modules.pop(name, None)
