"""What it costs to ask the database on every request whether a session lasts.

Two servers on one core take turns at GET /users/me: one as it is, one that believes the
token (`unchecked.py`). Both read the user, so the difference is the check. Each
connection has a session of its own.
"""

import asyncio
import statistics
from collections import defaultdict
from collections.abc import Sequence

from benchmarks.clients import Client, bearer, clients, get, log_in, log_out, register
from benchmarks.servers import Server, core_apart, database, line, served

CONNECTIONS = (1, 64)
TARGETS = {1: "", 64: "0.10"}
# Many and short: both servers meet the same moments of a machine that is not quiet.
ROUNDS = 60
REQUESTS = 256
COLUMNS = ("connections", "checked", "stub", "more", "half of the rounds", "target")


def table() -> str:
    """The table, in Markdown."""
    with (
        core_apart() as core,
        database() as url,
        served(url) as checked,
        served(url, program="benchmarks.unchecked") as stub,
    ):
        for server in (checked, stub):
            server.keep_to(core)
        return asyncio.run(_table(checked, stub))


async def _table(checked: Server, stub: Server) -> str:
    tokens = await _sign_in(checked, max(CONNECTIONS))
    spent: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for number in range(ROUNDS + 1):
        for count in CONNECTIONS:
            asking = [get("/users/me", bearer(token)) for token in tokens[:count]]
            # Whoever comes second finds the machine as the first has left it.
            turns = (checked, stub) if number % 2 else (stub, checked)
            cost = {server: await _cost(server, asking) for server in turns}
            # The first round only warms up.
            if number:
                spent[count].append((cost[checked], cost[stub]))
    await _assert_only_one_checks(checked, stub, tokens[0])
    rows = [_row(count, pairs) for count, pairs in spent.items()]
    return "\n".join([line(COLUMNS), line(["---"] * len(COLUMNS)), *rows])


def _row(count: int, pairs: Sequence[tuple[float, float]]) -> str:
    checked, stub = (statistics.median(costs) for costs in zip(*pairs, strict=True))
    low, more, high = statistics.quantiles((a - b for a, b in pairs), n=4)
    figures = (f"{figure:.3f}" for figure in (checked, stub, more))
    return line([str(count), *figures, f"{low:.3f} to {high:.3f}", TARGETS[count]])


async def _cost(server: Server, asking: Sequence[bytes]) -> float:
    """CPU milliseconds of the server's per request, all connections busy throughout."""
    async with clients(server.url, len(asking)) as found:
        pairs, share = list(zip(found, asking, strict=True)), REQUESTS // len(asking)
        # The first request of a connection is also its acceptance.
        await asyncio.gather(*(_ask(one, what, 1) for one, what in pairs))
        before = server.cpu_seconds()
        await asyncio.gather(*(_ask(one, what, share) for one, what in pairs))
        used = server.cpu_seconds() - before
    return 1_000 * used / (share * len(asking))


async def _ask(client: Client, message: bytes, times: int) -> None:
    for _ in range(times):
        answer = await client.ask(message)
        assert answer.status == 200, answer


async def _sign_in(server: Server, count: int) -> list[str]:
    tokens = []
    async with clients(server.url, 1) as (client,):
        for number in range(count):
            name = f"person{number}"
            (await client.ask(register(name))).json()
            token = (await client.ask(log_in(name))).json()
            tokens.append(token["access_token"])
    return tokens


async def _assert_only_one_checks(checked: Server, stub: Server, token: str) -> None:
    """A session that is over shows which of the two asks the database."""
    me, statuses = get("/users/me", bearer(token)), []
    for server, message in ((checked, log_out(token)), (checked, me), (stub, me)):
        async with clients(server.url, 1) as (client,):
            statuses.append((await client.ask(message)).status)
    assert statuses == [204, 401, 200], statuses
