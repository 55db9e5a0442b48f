"""Liveness depends on nothing; readiness on the database and its migrations.

Providers count in neither: a model that is down is no reason to take the API away.
"""

import asyncio
import logging
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from core.db import (
    Busy,
    Database,
    DatabaseNotMigrated,
    DatabaseReadOnly,
    DatabaseUnavailable,
)
from core.errors import Unavailable
from core.problems import problem_responses
from core.schema_check import SchemaCheck, SchemaState
from core.security import is_administrator
from core.services import service

log = logging.getLogger(__name__)

_CHECK_SECONDS = 1.0
_CACHE_SECONDS = 1.0


class ShuttingDown(Unavailable):
    """The server is shutting down."""


class Live(BaseModel):
    """The process answers."""

    status: str = Field(examples=["live"])


class Ready(BaseModel):
    """The service can do its work."""

    status: str = Field(examples=["ready"])
    notes: dict[str, str] | None = Field(
        None,
        description="For administrators: what the parts of the service report.",
        examples=[None],
    )


class Health:
    """The state of one application: draining, and whether its database can be used."""

    def __init__(self, database: Database, schema: SchemaCheck) -> None:
        self.draining = False
        self.notes: dict[str, str] = {}
        """What parts of the service report to its operator."""
        self._database = database
        self._schema = schema
        self._checked_at = float("-inf")
        self._complaint: Unavailable | None = None
        self._looking: set[asyncio.Task[Unavailable | None]] = set()

    async def complaint(self) -> Unavailable | None:
        """Why the service is not ready, or None; looked up at most once a second."""
        if self.draining:
            return ShuttingDown()
        if time.monotonic() - self._checked_at > _CACHE_SECONDS:
            complaint = await self._check()
            if type(complaint) is not type(self._complaint):
                _log_change(complaint)
            self._complaint = complaint
            self._checked_at = time.monotonic()
        return self._complaint

    async def _check(self) -> Unavailable | None:
        looking = asyncio.create_task(self._look())
        self._looking.add(looking)
        looking.add_done_callback(self._looking.discard)
        await asyncio.wait({looking}, timeout=_CHECK_SECONDS)
        if looking.done():
            return looking.result()
        # Not awaited: letting go of a connection that hangs takes its time as well.
        looking.cancel()
        return DatabaseUnavailable()

    async def _look(self) -> Unavailable | None:
        try:
            if await self._database.is_read_only():
                return DatabaseReadOnly()
            # Every time: an operator may take a module back. Beside a newer schema a
            # server that runs goes on serving.
            if await self._schema.state() is SchemaState.BEHIND:
                return DatabaseNotMigrated()
        except Unavailable as error:
            return error
        return None


def _log_change(complaint: Unavailable | None) -> None:
    if complaint is None:
        log.info("health.ready")
        return
    cause = complaint.__cause__
    raised = type(getattr(cause, "orig", cause)).__name__ if cause else None
    log.warning("health.not_ready", extra={"code": complaint.code, "raised": raised})


router = APIRouter(prefix="/health", tags=["health"])
TheHealth = Annotated[Health, Depends(service(Health))]


@router.get("/live", summary="Is the process alive?")
@router.head("/live", include_in_schema=False)
async def get_liveness() -> Live:
    """Says that the process answers; depends on nothing else."""
    return Live(status="live")


@router.get(
    "/ready",
    summary="Can the service do its work?",
    response_model=Ready,
    responses=problem_responses(
        ShuttingDown, DatabaseUnavailable, DatabaseNotMigrated, DatabaseReadOnly, Busy
    ),
)
@router.head("/ready", include_in_schema=False)
async def get_readiness(health: TheHealth, request: Request) -> Response:
    """200 when the database answers, is migrated and can be written to, else 503.

    The `code` of the problem tells which it is; the rest is in the server's log. An
    administrator who sends an access token also gets `notes`: the provider that answers
    questions, and why it was chosen.
    """
    if complaint := await health.complaint():
        # Its own: one that is raised again and again collects a traceback.
        raise type(complaint)()
    ready = Ready(status="ready")
    if await is_administrator(request):
        ready.notes = health.notes
    return JSONResponse(ready.model_dump(exclude_none=True))
