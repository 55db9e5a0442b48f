"""What lists cost when there are many questions, in the database alone and over HTTP.

One database is measured with 50 thousand questions and then with 5 million, of the same
people; one of them has a 25th of all, and everything that failed is old. What
the database takes is timed on one connection, statement by statement, with everything
prepared; those are the statements that the service sends, taken from its own functions.
"""

import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import cycle
from typing import Any
from urllib.parse import urlencode

import asyncpg
from sqlalchemy import Select
from sqlalchemy.dialects.postgresql.asyncpg import dialect

from benchmarks.clients import bearer, clients, get, log_in, register
from benchmarks.servers import Server, core_apart, database, line, served
from core.db import PLANNING
from core.pages import encode_cursor
from modules.questions.models import Status
from modules.questions.repository import newest_of, page_of

QUESTIONS = (50_000, 5_000_000)
PEOPLE = 50_000
SIGNED_IN = 20
# One in so many is of the first of them.
SHARE = 25
ROUNDS = {"last three": 3_000}
OTHER_ROUNDS, WARM_UP, PAGE = 200, 10, 50
COLUMNS = ("p50 ms", "p99 ms", "HTTP p50 ms", "HTTP p99 ms")
_BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_AT_A_TIME = 250_000
_FILL = """
INSERT INTO questions (user_id, content, status, answer, provider, model, error_code,
    idempotency_key, asked_at, answered_at)
SELECT
    CASE WHEN n % $1 = 0 THEN 1 ELSE 1 + (random() * ($2 - 1))::bigint END,
    repeat(md5(n::text), 2), status,
    CASE WHEN status = 'answered' THEN repeat(md5(n::text), 8) END, 'echo', 'echo',
    CASE WHEN status <> 'answered' THEN 'internal' END,
    n::text, at, CASE WHEN status = 'answered' THEN at END
FROM (
    SELECT n, $6::timestamptz + n * interval '5 seconds' AS at, CASE
        WHEN n % 10 > 0 OR n > $5 THEN 'answered'
        WHEN n % 20 = 0 THEN 'failed' ELSE 'interrupted' END AS status
    FROM generate_series($3::bigint, $4::bigint) AS n
) AS numbered
"""
_PEOPLE = """
INSERT INTO users (username, username_key)
SELECT 'someone' || n, 'someone' || n FROM generate_series(1, $1::bigint) AS n
"""


@dataclass(frozen=True)
class List:
    """A list, as the database is asked for it and as a client asks."""

    name: str
    statements: Sequence[Select[Any]]
    messages: Sequence[bytes]


def table() -> str:
    """The table, in Markdown."""
    with core_apart() as core, database() as url, served(url) as server:
        server.keep_to(core)
        return asyncio.run(_table(server, url))


async def _table(server: Server, url: str) -> str:
    tokens = [await _sign_in(server, f"person{n}") for n in range(SIGNED_IN)]
    rows: dict[str, list[str]] = defaultdict(list)
    there = 0
    plain_url = url.replace("+asyncpg", "")
    connection = await asyncpg.connect(plain_url, server_settings=PLANNING)
    try:
        await connection.execute("UPDATE users SET role = 'admin' WHERE id = 1")
        await connection.execute(_PEOPLE, PEOPLE - SIGNED_IN)
        for count in QUESTIONS:
            await _fill(connection, there, count)
            there = count
            for found in _lists(count, tokens):
                figures = (
                    *await _alone(connection, found),
                    *await _over_http(server, found),
                )
                rows[found.name] += [f"{figure:.2f}" for figure in figures]
    finally:
        await connection.close()
    names = [f"{count:,}: {name}" for count in QUESTIONS for name in COLUMNS]
    lines = [["list", *names], ["---"] * (1 + len(names))]
    lines += [[name, *figures] for name, figures in rows.items()]
    return "\n".join(map(line, lines))


async def _sign_in(server: Server, name: str) -> str:
    async with clients(server.url, 1) as (client,):
        (await client.ask(register(name))).json()
        token: str = (await client.ask(log_in(name))).json()["access_token"]
    return token


async def _fill(connection: Any, there: int, count: int) -> None:
    # Nobody is missing, and asking so for each of them takes longer than all the rest.
    await connection.execute("SET session_replication_role = replica")
    for begin in range(there, count, _AT_A_TIME):
        end = min(begin + _AT_A_TIME, count)
        given = (SHARE, PEOPLE, begin + 1, end, count // 20, _BEGIN)
        await connection.execute(_FILL, *given)
    await connection.execute("VACUUM ANALYZE")
    await connection.execute("CHECKPOINT")
    assert await connection.fetchval("SELECT count(*) FROM questions") == count


def _lists(count: int, tokens: Sequence[str]) -> Iterator[List]:
    """All that are measured. Who signed in first has most, and may see everything."""
    first, *others = (bearer(token) for token in tokens)
    anybody, most = range(2, PEOPLE, 50), 1
    yield List(
        "last three",
        [newest_of(user_id, 3) for user_id in anybody],
        [get("/questions/me", who) for who in others],
    )
    yield List(
        "last three of who has most",
        [newest_of(most, 3)],
        [get("/questions/me", first)],
    )
    middle, old = count // 2, count // 40
    window = {"asked_from": _asked(count // 80), "asked_before": _asked(count - 100)}
    failed, answered = {"status": Status.FAILED}, {"status": Status.ANSWERED}
    for name, filters, deep in (
        ("all", {}, middle),
        ("in a window of time", window, middle),
        ("answered", answered, middle),
        ("failed", failed, old),
        ("failed, in a window", failed | window, old),
        ("pending (none)", {"status": Status.PENDING}, middle),
        ("of who has most", {"user_id": most}, middle),
        ("of them, in a window", {"user_id": most} | window, middle),
        ("of them, answered", {"user_id": most} | answered, middle),
        ("of them, failed", {"user_id": most} | failed, old),
        ("of them, failed, in a window", {"user_id": most} | failed | window, old),
    ):
        yield _page(f"{name}, first page", filters, None, first)
        yield _page(f"{name}, deep page", filters, deep, first)


def _page(name: str, filters: Mapping[str, Any], after: int | None, who: str) -> List:
    everything = dict.fromkeys(("user_id", "status", "asked_from", "asked_before"))
    place, query = None, dict(filters)
    if after is not None:
        place = (_asked(after), after)
        microseconds = (place[0] - _EPOCH) // timedelta(microseconds=1)
        query["cursor"] = encode_cursor("questions", microseconds, after)
    for key in ("asked_from", "asked_before"):
        if key in query:
            query[key] = query[key].isoformat()
    statement = page_of(after=place, limit=PAGE + 1, **{**everything, **filters})
    return List(name, [statement], [get(f"/questions?{urlencode(query)}", who)])


def _asked(n: int) -> datetime:
    return _BEGIN + timedelta(seconds=5 * n)


async def _alone(connection: Any, found: List) -> tuple[float, float]:
    kind = dialect()  # type: ignore[no-untyped-call]
    compiled = [each.compile(dialect=kind) for each in found.statements]
    prepared = await connection.prepare(str(compiled[0]))
    values = cycle(
        [each.params[name] for name in each.positiontup or ()] for each in compiled
    )
    return await _timed(found, lambda: prepared.fetch(*next(values)))


async def _over_http(server: Server, found: List) -> tuple[float, float]:
    messages = cycle(found.messages)
    async with clients(server.url, 1) as (client,):
        answer = await client.ask(found.messages[0])
        assert answer.status == 200, answer
        return await _timed(found, lambda: client.ask(next(messages)))


async def _timed(
    found: List, act: Callable[[], Awaitable[object]]
) -> tuple[float, float]:
    """The median and the 99th of a hundred, in milliseconds, one after the other."""
    for _ in range(WARM_UP):
        await act()
    taken = []
    for _ in range(ROUNDS.get(found.name, OTHER_ROUNDS)):
        begun = time.perf_counter()
        await act()
        taken.append(1_000 * (time.perf_counter() - begun))
    return statistics.median(taken), statistics.quantiles(taken, n=100)[-1]
