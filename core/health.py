"""Liveness depends on nothing; readiness on the database and its migrations.

Providers count in neither: a model that is down is no reason to take the API away.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from sqlalchemy import text
from starlette.responses import JSONResponse, Response

from core.db import Database
from core.errors import DomainError, StartRefused, Unavailable
from core.migrate import is_behind
from core.module import Module
from core.problems import problem_responses
from core.services import service

_CHECK_SECONDS = 1.0
_CACHE_SECONDS = 1.0


class NotReady(Unavailable):
    """The service is not ready."""


class Live(BaseModel):
    """The process answers."""

    status: str = Field(examples=["live"])


class Ready(BaseModel):
    """The service can do its work."""

    status: str = Field(examples=["ready"])
    notes: dict[str, str] = Field(
        description="What the parts of the service have to say about themselves.",
        examples=[{"provider": "main, as configured"}],
    )


class Health:
    """What the parts of one application know about its state."""

    def __init__(self, database: Database, modules: Sequence[Module]) -> None:
        self.draining = False
        self.notes: dict[str, str] = {}
        self._database = database
        self._modules = modules
        self._is_migrated = False
        self._checked_at = float("-inf")
        self._complaint: str | None = None
        self._looking: set[asyncio.Task[str | None]] = set()

    async def complaint(self) -> str | None:
        """Why the service is not ready, or None; looked up at most once a second."""
        if self.draining:
            return "The server is shutting down."
        if time.monotonic() - self._checked_at > _CACHE_SECONDS:
            self._complaint = await self._check()
            self._checked_at = time.monotonic()
        return self._complaint

    async def _check(self) -> str | None:
        looking = asyncio.create_task(self._look())
        self._looking.add(looking)
        looking.add_done_callback(self._looking.discard)
        await asyncio.wait({looking}, timeout=_CHECK_SECONDS)
        if looking.done():
            return looking.result()
        # Not awaited: letting go of a connection that hangs takes its time as well.
        looking.cancel()
        return "The database does not answer."

    async def _look(self) -> str | None:
        try:
            if not self._is_migrated:
                behind = await is_behind(self._database, self._modules)
                self._is_migrated = not behind
            async with self._database.probing() as connection:
                await connection.execute(text("SELECT 1"))
        except DomainError as error:
            return error.title
        except StartRefused as refused:
            return str(refused)
        return None if self._is_migrated else "Migrations are behind: run `migrate`."


router = APIRouter(prefix="/health", tags=["health"])
TheHealth = Annotated[Health, Depends(service(Health))]


@router.get("/live", summary="Is the process alive?")
async def get_liveness() -> Live:
    """Says that the process answers; depends on nothing else."""
    return Live(status="live")


@router.get(
    "/ready",
    summary="Can the service do its work?",
    response_model=Ready,
    responses=problem_responses(NotReady),
)
async def get_readiness(health: TheHealth) -> Response:
    """200 when the database answers and is migrated, else 503 with what is wrong.

    `notes` names the provider that answers questions, and why it was chosen.
    """
    if complaint := await health.complaint():
        raise NotReady(complaint)
    return JSONResponse(Ready(status="ready", notes=health.notes).model_dump())
