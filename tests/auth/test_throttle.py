"""Guessing is bounded, and nobody is locked out for good (A11, C8)."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from core.client import Client
from core.db import Busy, Database, db_after, db_now
from core.testing import Running
from modules.auth.accounts import Accounts
from modules.auth.models import AttemptsRow
from modules.auth.throttle import Throttle
from tests.conftest import Databases, served
from tests.support.api import PASSWORD, Api, assert_problem
from tests.support.config import write_config
from tests.support.hashing import Work

LIMITS = "network_login_attempts = 8\nnetwork_registrations = 12"
TRUSTING = 'trusted_proxies = ["127.0.0.1"]'
Served = tuple[Running, Api]


@pytest.fixture
async def limited(
    databases: Databases, database_kind: str, tmp_path: Any
) -> AsyncIterator[Served]:
    """A service with limits, behind a proxy that tells where a request comes from."""
    url = await databases.migrated(database_kind)
    file = write_config(tmp_path / "app.toml", url, auth=LIMITS, server=TRUSTING)
    async with served(file) as found:
        yield found


async def log_in(
    api: Api, username: str, password: str, network: str = "192.0.2.1"
) -> httpx.Response:
    form = {"grant_type": "password", "username": username, "password": password}
    headers = {"X-Forwarded-For": network}
    return await api.http.post("/auth/token", data=form, headers=headers)


async def register(api: Api, username: str, network: str) -> httpx.Response:
    body = {"username": username, "password": PASSWORD}
    headers = {"X-Forwarded-For": network}
    return await api.http.post("/auth/register", json=body, headers=headers)


def wait_of(answer: httpx.Response) -> int:
    """How long a refused attempt is told to wait."""
    assert_problem(answer, 429, "too_many_attempts")
    return int(answer.headers["retry-after"])


async def guess(api: Api, username: str, times: int, network: str) -> None:
    for _ in range(times):
        answer = await log_in(api, username, "wrong", network)
        assert_problem(answer, 401, "invalid_grant")


async def let_time_pass(service: Running, seconds: float) -> None:
    """What was to happen happens so much sooner."""
    async with service.service(Database).transaction() as session:
        rows = (await session.execute(select(AttemptsRow))).scalars().all()
        for row in rows:
            row.blocked_until -= timedelta(seconds=seconds)
            row.window_ends_at -= timedelta(seconds=seconds)


@pytest.mark.parametrize("exists", [True, False], ids=["known", "unknown"])
async def test_A11_C8_five_guesses_are_free_and_then_each_wait_is_longer(
    limited: Served, exists: bool
) -> None:
    service, api = limited
    username = (await api.account()).username if exists else "nobody.here"
    await guess(api, username, 5, "192.0.2.1")
    waits: list[int] = []
    for expected in (32, 64, 128, 256, 512, 900, 900):
        wait = wait_of(await log_in(api, username, "wrong", "198.51.100.1"))
        assert expected - 5 <= wait <= expected
        await let_time_pass(service, expected)
        await guess(api, username, 1, f"203.0.113.{len(waits)}")
        waits.append(wait)
    assert waits == sorted(waits)


@pytest.mark.slow
async def test_A11_what_is_refused_costs_no_work_and_makes_no_wait_longer(
    limited: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, api = limited
    ada = await api.account()
    await guess(api, ada.username, 5, "192.0.2.1")
    work = Work(monkeypatch)
    waits = [
        wait_of(await log_in(api, ada.username, PASSWORD, "198.51.100.1"))
        for _ in range(20)
    ]
    assert work.since_last_look() == (0, 0)
    assert all(wait <= 32 for wait in waits)
    # Nothing was guessed from there, so the network is free.
    await guess(api, "nobody.else", 5, "198.51.100.1")
    await let_time_pass(service, 32)
    answer = await log_in(api, ada.username, PASSWORD, "198.51.100.1")
    assert answer.status_code == 200


async def test_A11_guesses_from_elsewhere_do_not_keep_the_owner_out(
    limited: Served,
) -> None:
    _, api = limited
    ada = await api.account()
    assert (await log_in(api, ada.username, PASSWORD, "192.0.2.7")).status_code == 200
    await guess(api, ada.username, 5, "198.51.100.1")
    for elsewhere in ("198.51.100.1", "198.51.100.2"):
        wait_of(await log_in(api, ada.username, PASSWORD, elsewhere))
    home = await log_in(api, ada.username, PASSWORD, "192.0.2.7")
    assert home.status_code == 200
    # At home guesses are bounded as well, by a count of its own.
    await guess(api, ada.username, 5, "192.0.2.7")
    wait_of(await log_in(api, ada.username, PASSWORD, "192.0.2.7"))


async def test_A11_a_network_is_known_to_those_only_who_signed_in_there(
    limited: Served,
) -> None:
    """Else whoever has an account of their own would have guesses of their own."""
    _, api = limited
    ada, eve = await api.account(), await api.account()
    for network in ("198.51.100.1", "198.51.100.2"):
        mine = await log_in(api, eve.username, PASSWORD, network)
        assert mine.status_code == 200
    await guess(api, ada.username, 5, "198.51.100.1")
    wait_of(await log_in(api, ada.username, "wrong", "198.51.100.2"))


async def test_A11_the_right_password_forgets_the_wrong_ones(limited: Served) -> None:
    _, api = limited
    ada = await api.account()
    for _ in range(3):
        await guess(api, ada.username, 2, "127.0.0.1")
        assert (await log_in(api, ada.username, PASSWORD, "127.0.0.1")).is_success


async def test_A11_another_spelling_of_a_name_is_the_same_account(
    limited: Served,
) -> None:
    _, api = limited
    await guess(api, "Nobody.Here", 3, "192.0.2.1")
    await guess(api, "nobody.here", 2, "192.0.2.2")
    wait_of(await log_in(api, "NOBODY.HERE", "wrong", "192.0.2.3"))


async def test_A11_one_network_is_bounded_over_all_accounts(limited: Served) -> None:
    service, api = limited
    ada = await api.account()
    for number in range(8):
        await guess(api, f"nobody{number}", 1, "192.0.2.1")
    assert wait_of(await log_in(api, ada.username, PASSWORD, "192.0.2.1")) <= 32
    assert (await log_in(api, ada.username, PASSWORD, "192.0.2.2")).is_success
    await let_time_pass(service, 32)
    assert (await log_in(api, ada.username, PASSWORD, "192.0.2.1")).is_success
    await let_time_pass(service, 15 * 60)
    for number in range(8):
        await guess(api, f"nobody{number}x", 1, "192.0.2.1")


@pytest.mark.slow
async def test_A11_right_passwords_do_not_use_up_a_network(limited: Served) -> None:
    _, api = limited
    ada = await api.account()
    for _ in range(20):
        assert (await log_in(api, ada.username, PASSWORD, "192.0.2.1")).is_success


async def test_A11_a_right_password_after_many_wrong_ones_ends_the_wait_it_began(
    limited: Served,
) -> None:
    _, api = limited
    ada = await api.account()
    for number in range(7):
        await guess(api, f"nobody{number}", 1, "192.0.2.1")
    for _ in range(3):
        assert (await log_in(api, ada.username, PASSWORD, "192.0.2.1")).is_success


async def test_A09_what_the_hasher_had_no_room_for_was_no_attempt(
    limited: Served,
) -> None:
    service, _ = limited
    throttle, client = service.service(Throttle), Client("192.0.2.1", None)
    for _ in range(20):
        guessed = await throttle.guess("ada", client, is_known_there=False)
        with pytest.raises(Busy):
            async with throttle.guessing(guessed):
                raise Busy
        with pytest.raises(Busy):
            async with throttle.registering(client):
                raise Busy


async def test_A11_an_ipv6_network_is_one_however_many_addresses_it_has(
    limited: Served,
) -> None:
    _, api = limited
    for number in range(8):
        await guess(api, f"nobody{number}", 1, f"2001:db8:0:1::{number + 1}")
    wait_of(await log_in(api, "nobody", "wrong", "2001:db8:0:1:ffff::1"))
    await guess(api, "nobody", 1, "2001:db8:0:2::1")


@pytest.mark.slow
async def test_I24_a_header_of_anybody_but_a_trusted_proxy_changes_nothing(
    databases: Databases, tmp_path: Any
) -> None:
    url = await databases.migrated("sqlite")
    server = 'trusted_proxies = ["192.0.2.99"]'
    file = write_config(tmp_path / "app.toml", url, auth=LIMITS, server=server)
    async with served(file) as (_, api):
        for number in range(8):
            await guess(api, f"nobody{number}", 1, f"192.0.2.{number}")
        wait_of(await log_in(api, "nobody", "wrong", "198.51.100.1"))


async def test_A11_registrations_are_bounded_for_each_network(limited: Served) -> None:
    service, api = limited
    for number in range(12):
        answer = await register(api, f"someone{number}", "192.0.2.1")
        assert answer.status_code == 201
    assert wait_of(await register(api, "one.too.many", "192.0.2.1")) <= 32
    assert (await register(api, "someone.else", "192.0.2.2")).status_code == 201
    await let_time_pass(service, 32)
    assert (await register(api, "one.too.many", "192.0.2.1")).status_code == 201
    wait = wait_of(await register(api, "two.too.many", "192.0.2.1"))
    assert 32 < wait <= 64


async def test_a_refused_registration_that_makes_no_hash_is_not_counted(
    limited: Served,
) -> None:
    _, api = limited
    body = {"username": "somebody.new", "password": "password"}
    for _ in range(20):
        assert_problem(await api.http.post("/auth/register", json=body), 422)
    assert (await register(api, "somebody.new", "127.0.0.1")).status_code == 201


async def test_Q04_guesses_of_the_current_password_are_throttled(
    limited: Served,
) -> None:
    _, api = limited
    ada = await api.account()
    body = {"current_password": "wrong", "new_password": f"{PASSWORD}-new"}
    for status in (403, 403, 403, 403, 403, 429):
        answer = await api.http.put("/auth/password", json=body, headers=ada.auth)
        assert answer.status_code == status
    right = body | {"current_password": PASSWORD}
    answer = await api.http.put("/auth/password", json=right, headers=ada.auth)
    assert wait_of(answer) <= 32


async def test_Q04_another_user_name_brings_no_more_guesses(limited: Served) -> None:
    _, api = limited
    ada = await api.account()
    body = {"current_password": "wrong", "new_password": f"{PASSWORD}-new"}
    statuses = []
    for number in range(7):
        name = {"username": f"{ada.username}.{number}"}
        await api.http.patch("/users/me", json=name, headers=ada.auth)
        answer = await api.http.put("/auth/password", json=body, headers=ada.auth)
        statuses.append(answer.status_code)
    assert statuses == [403] * 5 + [429] * 2


async def test_A11_a_name_that_looks_like_a_number_is_not_the_account_of_it(
    limited: Served,
) -> None:
    _, api = limited
    ada = await api.account()
    await guess(api, str(ada.id), 5, "192.0.2.1")
    wait_of(await log_in(api, str(ada.id), "wrong"))
    # From a network where she has not been: there the two could be one.
    assert (await log_in(api, ada.username, PASSWORD)).status_code == 200


async def test_an_operator_who_resets_a_password_ends_the_waiting(
    limited: Served,
) -> None:
    service, api = limited
    ada = await api.account()
    await guess(api, ada.username, 5, "198.51.100.1")
    new = f"{PASSWORD}-reset"
    wait_of(await log_in(api, ada.username, PASSWORD, "198.51.100.2"))
    await service.service(Accounts).reset_password(ada.username, new)
    assert (await log_in(api, ada.username, new, "198.51.100.2")).is_success


async def test_a_right_current_password_is_no_failure_whatever_the_new_one(
    limited: Served,
) -> None:
    _, api = limited
    ada = await api.account()
    body = {"current_password": PASSWORD, "new_password": PASSWORD}
    for _ in range(8):
        answer = await api.http.put("/auth/password", json=body, headers=ada.auth)
        assert_problem(answer, 422)


async def kept(service: Running) -> int:
    async with service.service(Database).reading() as session:
        of = select(func.count()).select_from(AttemptsRow)
        return await session.scalar(of) or 0


async def test_what_no_longer_counts_is_swept(limited: Served) -> None:
    service, api = limited
    await guess(api, "nobody.here", 5, "192.0.2.1")
    throttle = service.service(Throttle)
    await throttle.sweep()
    assert await kept(service) == 2
    async with service.service(Database).transaction() as session:
        await session.execute(update(AttemptsRow).values(window_ends_at=db_now()))
    await throttle.sweep()
    assert await kept(service) == 1, "what still makes somebody wait was swept"
    async with service.service(Database).transaction() as session:
        await session.execute(update(AttemptsRow).values(blocked_until=db_after(-1)))
    await throttle.sweep()
    assert await kept(service) == 0


async def test_nothing_that_was_tried_can_be_read_in_the_database(
    limited: Served,
) -> None:
    service, api = limited
    await guess(api, "ada.of.the.hashes", 1, "192.0.2.1")
    async with service.service(Database).reading() as session:
        rows = (await session.execute(select(AttemptsRow.__table__))).all()
    assert "ada.of" not in repr(rows)
    assert "192.0.2" not in repr(rows)
