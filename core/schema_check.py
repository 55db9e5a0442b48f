"""Whether the database has the schema that this program was written for."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum

from core.db import Database
from core.migrate import History, histories, is_newer, known_revisions
from core.module import Module

log = logging.getLogger(__name__)

_FRESH_SECONDS = 1.0
_SETTLED_SECONDS = 60.0


class SchemaState(Enum):
    """The revisions in the database beside those of the program."""

    CURRENT = "current"
    BEHIND = "behind"
    NEWER = "newer"


class SchemaCheck:
    """Compares revisions: once a second at most while they differ, for all who ask.

    A change is logged, with what to do about it.
    """

    def __init__(
        self,
        database: Database,
        modules: Sequence[Module],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._modules = modules
        self._clock = clock
        self._state = SchemaState.CURRENT
        self._checked_at = self._current_since = float("-inf")
        self._known: Mapping[str, Sequence[str]] | None = None
        self._checking: asyncio.Task[SchemaState] | None = None

    async def state(self) -> SchemaState:
        """Return the state; one that does not fit may be a second old.

        Raises DatabaseUnavailable or Busy when the database cannot be asked.
        """
        is_fresh = self._clock() - self._checked_at < _FRESH_SECONDS
        if is_fresh and self._state is not SchemaState.CURRENT:
            return self._state
        if self._checking is None:
            self._checking = asyncio.create_task(self._check())
            self._checking.add_done_callback(self._checked)
        # One who is cancelled does not take the others' answer along.
        return await asyncio.shield(self._checking)

    async def is_current(self) -> bool:
        """Return whether program and database fit, and have for a minute.

        What failed while a migration ended has still met the schema before it. Raises
        as `state` does.
        """
        is_current = await self.state() is SchemaState.CURRENT
        return is_current and self._clock() - self._current_since > _SETTLED_SECONDS

    async def _check(self) -> SchemaState:
        if self._known is None:
            self._known = known_revisions(self._modules)
        found = await histories(self._database, self._modules, self._known)
        state, now = _compared(found), self._clock()
        if state is not self._state:
            _log_change(state, [h.module.name for h in found if h.is_behind])
            if state is SchemaState.CURRENT:
                self._current_since = now
        self._state, self._checked_at = state, now
        return state

    def _checked(self, task: asyncio.Task[SchemaState]) -> None:
        self._checking = None
        if not task.cancelled():
            task.exception()  # Everybody who awaits it gets it.


def _compared(found: Sequence[History]) -> SchemaState:
    if any(map(is_newer, found)):
        return SchemaState.NEWER
    if any(history.is_behind for history in found):
        return SchemaState.BEHIND
    return SchemaState.CURRENT


def _log_change(state: SchemaState, modules: list[str]) -> None:
    fields: dict[str, object] = {"modules": modules}
    if state is SchemaState.CURRENT:
        log.info("database.current")
    elif state is SchemaState.BEHIND:
        hint = "run `vopros migrate`; until then requests get 503"
        log.warning("database.behind", extra=fields | {"hint": hint})
    else:
        hint = "what the newer schema breaks gets 503: upgrade this server"
        log.warning("database.newer", extra=fields | {"hint": hint})
