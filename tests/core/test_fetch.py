"""`Database.fetch`: one statement, which is a transaction by itself."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from core.db import Database, DatabaseUnavailable, Statement
from core.errors import DomainError
from tests.conftest import Databases, connected

_NUMBERS = "CREATE TABLE numbers (number integer PRIMARY KEY CHECK (number > 0))"
_ADD_NUMBER = Statement(
    text("INSERT INTO numbers (number) VALUES (:number) RETURNING number"), writes=True
)
_ALL_NUMBERS = Statement(text("SELECT number FROM numbers ORDER BY number"))


async def test_one_statement_is_a_transaction_by_itself(database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(text(_NUMBERS))
    for number in (1, 2):
        ((added,),) = await database.fetch(_ADD_NUMBER, {"number": number})
        assert added == number
    assert [tuple(row) for row in await database.fetch(_ALL_NUMBERS, {})] == [
        (1,),
        (2,),
    ]


async def test_a_statement_that_breaks_a_rule_leaves_nothing_behind(
    database: Database,
) -> None:
    async with database.transaction() as session:
        await session.execute(text(_NUMBERS))
    await database.fetch(_ADD_NUMBER, {"number": 1})
    lock = "SELECT pg_advisory_xact_lock(7)"
    for wrong in (1, -1):
        with pytest.raises(IntegrityError):
            await database.fetch(_ADD_NUMBER, {"number": wrong}, lock=lock)
    async with asyncio.timeout(60):
        # Nor does it keep the lock.
        await database.fetch(_ADD_NUMBER, {"number": 2}, lock=lock)
    assert [tuple(row) for row in await database.fetch(_ALL_NUMBERS, {})] == [
        (1,),
        (2,),
    ]


async def test_a_mistake_of_ours_is_not_told_as_an_outage(database: Database) -> None:
    nowhere = Statement(text("SELECT 1 FROM nowhere"))
    with pytest.raises(Exception, match="nowhere") as raised:
        await database.fetch(nowhere, {})
    assert not isinstance(raised.value, DomainError)


async def test_a_statement_of_a_connection_that_dies_is_unavailable_and_then_heals(
    databases: Databases,
) -> None:
    async with connected(await databases.empty("postgresql"), pool_size=1) as database:
        dying = Statement(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        with pytest.raises(DatabaseUnavailable):
            await database.fetch(dying, {})
        ((one,),) = await database.fetch(Statement(text("SELECT 1")), {})
        assert one == 1


async def test_a_statement_that_is_left_does_not_hold_its_connection(
    databases: Databases,
) -> None:
    async with connected(await databases.empty("postgresql"), pool_size=1) as database:
        sleeping = Statement(text("SELECT pg_sleep(60)"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await database.fetch(sleeping, {})
        async with asyncio.timeout(60):
            await database.fetch(Statement(text("SELECT 1")), {})
