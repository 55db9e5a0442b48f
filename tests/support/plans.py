"""How a database would execute what our functions send it, and what that reads."""

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

Act = Callable[[AsyncSession], Awaitable[object]]
"""Something that executes a statement."""


@dataclass(frozen=True)
class Sent:
    """A statement as a driver is given it."""

    sql: str
    values: tuple[Any, ...]


class _Caught(Exception):
    def __init__(self, sent: Sent) -> None:
        self.sent = sent


async def first_sent(session: AsyncSession, act: Act) -> Sent:
    """What `act` would send first; nothing is executed."""
    connection = (await session.connection()).sync_connection

    def catch(
        connection: Any, cursor: Any, sql: str, values: Any, context: Any, many: bool
    ) -> None:
        raise _Caught(Sent(sql, tuple(values)))

    event.listen(connection, "before_cursor_execute", catch)
    try:
        await act(session)
    except _Caught as caught:
        return caught.sent
    finally:
        event.remove(connection, "before_cursor_execute", catch)
    raise AssertionError("nothing was sent")


@dataclass(frozen=True)
class Plan:
    """What PostgreSQL has done, by its own account."""

    root: dict[str, Any]

    @property
    def nodes(self) -> list[dict[str, Any]]:
        return list(_below(self.root))

    def nodes_of(self, table: str) -> list[dict[str, Any]]:
        """The steps that read a table."""
        return [
            node
            for node in self.nodes
            if node.get("Relation Name") == table and "Scan" in node["Node Type"]
        ]

    def read(self, table: str) -> int:
        """How many of its rows were looked at."""
        return sum(
            sum(node.get(key, 0) for key in ("Actual Rows", "Rows Removed by Filter"))
            * node["Actual Loops"]
            for node in self.nodes_of(table)
        )

    @property
    def pages(self) -> int:
        """How many pages were looked at, before any are written.

        Those of an index count that held nothing.
        """
        is_read = self.root["Node Type"] != "ModifyTable"
        return sum(
            node[f"Shared {kind} Blocks"]
            for node in ([self.root] if is_read else self.root["Plans"])
            for kind in ("Hit", "Read")
        )

    @property
    def indexes(self) -> set[str]:
        return {node["Index Name"] for node in self.nodes if "Index Name" in node}


def _below(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _below(child)


async def explained(session: AsyncSession, sent: Sent, *, is_generic: bool) -> Plan:
    """Execute a statement on PostgreSQL, take it back, and tell how it was done.

    `is_generic`: by the plan that a statement may come to that is executed often, which
    knows none of its values.
    """
    connection = await session.connection()
    explain = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)"
    async with connection.begin_nested() as taken_back:
        if is_generic:
            await connection.exec_driver_sql(
                "SET LOCAL plan_cache_mode = force_generic_plan"
            )
            await connection.exec_driver_sql(f"PREPARE explained AS {sent.sql}")
            values = f"({', '.join(map(_written, sent.values))})" if sent.values else ""
            told = await connection.exec_driver_sql(
                f"{explain} EXECUTE explained{values}"
            )
            await connection.exec_driver_sql("DEALLOCATE explained")
        else:
            told = await connection.exec_driver_sql(
                f"{explain} {sent.sql}", sent.values
            )
        found = told.scalar_one()
        await taken_back.rollback()
    plans = json.loads(found) if isinstance(found, str) else found
    return Plan(plans[0]["Plan"])


def _written(value: Any) -> str:
    match value:
        case None:
            return "NULL"
        case int() | float():
            return str(value)
        case list():
            return f"'{{{','.join(map(str, value))}}}'"
        case datetime():
            return f"'{value.isoformat()}'"
    quoted = str(value).replace("'", "''")
    return f"'{quoted}'"


async def steps(session: AsyncSession, sent: Sent) -> Sequence[str]:
    """SQLite's account of how it would execute a statement."""
    connection = await session.connection()
    told = await connection.exec_driver_sql(
        f"EXPLAIN QUERY PLAN {sent.sql}", sent.values
    )
    return [row.detail for row in told]
