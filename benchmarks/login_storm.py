"""Two hundred people sign in at once: does anybody else have to wait?

While they do, `/health/live` is asked on a connection of its own, and so is `/users/me`
by somebody who signed in before, every ten milliseconds each. Everybody comes from a
network of their own, so that all settings are the defaults.
"""

import asyncio
import os
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.clients import Client, bearer, clients, get, log_in, register
from benchmarks.servers import Server, core_apart, database, line, served

PEOPLE = 200
EVERY_SECONDS = 0.01
STORMS = 5
LIVE_TARGET_MS = 100
COLUMNS = ("server on", "refused logins", "200", "503", "seconds")
DELAYS = ("live p50 ms", "p99", "max", "target p99", "me p50 ms", "p99", "max")


@dataclass
class Weather:
    """What became of the logins of some storms, and how long others waited."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    live_ms: list[float] = field(default_factory=list)
    me_ms: list[float] = field(default_factory=list)


def table() -> str:
    """The table, in Markdown."""
    head = (*COLUMNS, *DELAYS)
    rows = [line(head), line(["---"] * len(head))]
    with (
        core_apart() as core,
        database() as url,
        served(url, server__trusted_proxies="127.0.0.1") as server,
    ):
        asyncio.run(_make_accounts(server))
        everywhere = core | os.sched_getaffinity(0)
        for where, cores in (("one core", core), ("any", everywhere)):
            server.keep_to(cores)
            for returns in (False, True):
                weather = asyncio.run(_storms(server, returns=returns))
                then = "come again" if returns else "are given up"
                rows.append(line([where, then, *_figures(weather)]))
    return "\n".join(rows)


def _figures(weather: Weather) -> list[str]:
    logins = [f"{weather.statuses[status] / STORMS:.0f}" for status in (200, 503)]
    seconds = f"{statistics.median(weather.seconds):.1f}"
    live, me = _delays(weather.live_ms), _delays(weather.me_ms)
    return [*logins, seconds, *live, str(LIVE_TARGET_MS), *me]


def _delays(ms: list[float]) -> list[str]:
    percentiles = statistics.quantiles(ms, n=100)
    return [f"{delay:.0f}" for delay in (percentiles[49], percentiles[98], max(ms))]


async def _storms(server: Server, *, returns: bool) -> Weather:
    weather = Weather()
    async with clients(server.url, 1) as (client,):
        grant = (await client.ask(log_in(_name(0), _network(0)))).json()
    for _ in range(STORMS):
        async with (
            clients(server.url, PEOPLE) as people,
            clients(server.url, 2) as (doctor, user),
        ):
            started = time.perf_counter()
            logins = asyncio.gather(
                *(
                    _sign_in(person, number, weather, returns=returns)
                    for number, person in enumerate(people)
                )
            )
            me = get("/users/me", bearer(grant["access_token"]))
            await asyncio.gather(
                logins,
                _ask_until(logins, doctor, get("/health/live"), weather.live_ms),
                _ask_until(logins, user, me, weather.me_ms),
            )
            weather.seconds.append(time.perf_counter() - started)
    assert set(weather.statuses) <= {200, 503}, weather.statuses
    return weather


async def _sign_in(
    person: Client, number: int, weather: Weather, *, returns: bool
) -> None:
    while True:
        answer = await person.ask(log_in(_name(number), _network(number)))
        weather.statuses[answer.status] += 1
        if answer.status != 503 or not returns:
            return
        await asyncio.sleep(answer.retry_after_seconds)


async def _ask_until(
    end: asyncio.Future[list[None]], client: Client, message: bytes, ms: list[float]
) -> None:
    due = time.perf_counter()
    while not end.done():
        answer = await client.ask(message)
        assert answer.status in (200, 503), answer
        answered = time.perf_counter()
        # Whoever else wanted to ask meanwhile has waited as well.
        while due <= answered:
            ms.append((answered - due) * 1_000)
            due += EVERY_SECONDS
        await asyncio.sleep(due - answered)


async def _make_accounts(server: Server) -> None:
    async with clients(server.url, 1) as (client,):
        for number in range(PEOPLE):
            (await client.ask(register(_name(number), _network(number)))).json()


def _name(number: int) -> str:
    return f"person{number}"


def _network(number: int) -> str:
    return f"X-Forwarded-For: 198.51.100.{number}"
