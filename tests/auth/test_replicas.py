"""Two server processes on one PostgreSQL: whatever is decided holds on both."""

import asyncio
import ipaddress
import itertools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from httpx import Response
from sqlalchemy import select, text

from core.db import Database
from modules.auth import attempts, repository
from modules.auth.attempts import Limit
from modules.auth.models import AttemptsRow
from modules.auth.settings import AuthSettings
from modules.auth.throttle import Throttle
from tests.conftest import Databases, connected, served
from tests.support.api import PASSWORD, Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.process import serving, vopros

NEW = f"{PASSWORD}-new"
# The shipped limits, networks that the tests choose for themselves, and no grace.
GUARDED = {
    "auth": "network_login_attempts = 30\nnetwork_registrations = 10\n"
    "refresh_grace_seconds = 0",
    "server": 'trusted_proxies = ["127.0.0.1"]',
}
# No limit is met, but everything is counted.
GENEROUS = {"auth": "login_attempts = 100\nnetwork_login_attempts = 100000"}
_NETWORKS = map(str, map(ipaddress.ip_address, itertools.count(0x0A000001)))


@dataclass(frozen=True)
class Replicas:
    """Two servers of one configuration."""

    one: Api
    other: Api
    file: Path

    @property
    def both(self) -> tuple[Api, Api]:
        return self.one, self.other

    def turns(self, count: int) -> list[Api]:
        """So many calls, half of them of each."""
        return list(itertools.islice(itertools.cycle(self.both), count))


@pytest.fixture(scope="module")
async def url(databases: Databases) -> AsyncIterator[str]:
    """The database of all replicas here; nothing in it may have blocked another."""
    found = await databases.migrated("postgresql")
    told = len(databases.postgres.log)
    yield found
    assert "deadlock detected" not in databases.postgres.log[told:]


@pytest.fixture(scope="module")
async def database(url: str) -> AsyncIterator[Database]:
    async with connected(url) as found:
        yield found


@asynccontextmanager
async def replicas(folder: Path, url: str, tables: dict[str, str]) -> Any:
    file = write_config(folder / "app.toml", url, **tables)
    with serving("--config", file) as one, serving("--config", file) as other:
        clients = Api(one.url), Api(other.url)
        yield Replicas(*clients, file)
        for client in clients:
            await client.close()
        for server in (one, other):
            assert "Traceback" not in server.log
            assert PASSWORD not in server.log
            assert "vopros_rt_" not in server.log


@pytest.fixture(scope="module")
async def guarded(
    tmp_path_factory: pytest.TempPathFactory, url: str
) -> AsyncIterator[Replicas]:
    """Replicas with the limits as shipped, without a grace for refreshing."""
    folder = tmp_path_factory.mktemp("guarded")
    async with replicas(folder, url, GUARDED) as found:
        yield found


@pytest.fixture(scope="module")
async def generous(
    tmp_path_factory: pytest.TempPathFactory, url: str
) -> AsyncIterator[Replicas]:
    """Replicas of the same database that bear much, with a grace for refreshing."""
    folder = tmp_path_factory.mktemp("generous")
    async with replicas(folder, url, GENEROUS) as found:
        yield found


@pytest.fixture
async def ada(generous: Replicas) -> Account:
    """Somebody new, who has signed in from 127.0.0.1; known to all four servers."""
    return await generous.one.account()


@pytest.fixture(scope="module")
async def admin(generous: Replicas) -> Account:
    """An administrator; there stays one whatever becomes of others."""
    name = new_name()
    await operate(generous, "create-admin", name)
    return await generous.one.signed_in(0, name)


async def operate(replicas: Replicas, *words: str) -> None:
    """What an operator does beside the servers."""
    arguments: list[str | Path] = ["--config", replicas.file, "accounts", *words]
    done = await asyncio.to_thread(vopros, *arguments, stdin=f"{PASSWORD}\n")
    assert done.returncode == 0, done.stderr


@pytest.fixture(params=["one tells", "the other tells"])
def turned(request: pytest.FixtureRequest, guarded: Replicas) -> Replicas:
    """The replicas in either order."""
    if request.param == "one tells":
        return guarded
    return Replicas(guarded.other, guarded.one, guarded.file)


def new_name() -> str:
    return f"n{uuid.uuid4().hex[:12]}"


async def again(api: Api, who: Account) -> Account:
    """Another session of theirs."""
    return await api.signed_in(who.id, who.username, who.password)


async def me(api: Api, token: str) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    return (await api.http.get("/users/me", headers=headers)).status_code


async def post(api: Api, path: str, who: Account) -> Response:
    return await api.http.post(path, headers=who.auth)


async def change(api: Api, who: Account, new: str = NEW, **more: Any) -> Response:
    body = {"current_password": who.password, "new_password": new}
    return await api.http.put("/auth/password", json=body, headers=who.auth | more)


async def leave(api: Api, who: Account) -> Response:
    return await api.http.delete("/users/me", headers=who.auth)


async def sign_in(
    api: Api, username: str, password: str = PASSWORD, *, via: str
) -> Response:
    """Sign in from an address; `via` is what the proxy tells of it."""
    form = {"grant_type": "password", "username": username, "password": password}
    headers = {"X-Forwarded-For": via}
    return await api.http.post("/auth/token", data=form, headers=headers)


async def assert_over(replicas: Replicas, *tokens: str, refresh: str = "") -> None:
    """Neither replica accepts any of the access tokens, nor the refresh token."""
    for api in replicas.both:
        assert [await me(api, token) for token in tokens] == [401] * len(tokens)
    if refresh:
        # Last: a token that was used before would end what these were to show.
        for api in replicas.both:
            assert_problem(await api.refresh(refresh), 401, "invalid_grant")


def problems(answers: list[Response]) -> list[Response]:
    """Those that were refused; none of them by a fault of ours."""
    for answer in answers:
        assert answer.status_code < 500, answer.text
    return [answer for answer in answers if answer.status_code >= 400]


# A7, J17: the next request, on every replica.


async def _log_out(api: Api, who: Account) -> Response:
    return await post(api, "/auth/logout", who)


async def _end_all(api: Api, who: Account) -> Response:
    return await post(api, "/auth/logout-all", who)


async def _log_out_everywhere(api: Api, who: Account) -> Response:
    return await _end_all(api, await again(api, who))


async def _end_by_id(api: Api, who: Account) -> Response:
    other = await again(api, who)
    listed = (await api.get("/auth/sessions", other)).json()
    (found,) = [s["id"] for s in listed if not s["is_current"]]
    return await api.http.delete(f"/auth/sessions/{found}", headers=other.auth)


async def _change_password(api: Api, who: Account) -> Response:
    other = await again(api, who)
    changed = await change(api, other)
    assert await me(api, other.token) == 200
    return changed


Ending = Callable[[Api, Account], Coroutine[Any, Any, Response]]


@pytest.mark.parametrize(
    "ending", [_log_out, _log_out_everywhere, _end_by_id, _change_password, leave]
)
async def test_A07_J17_an_end_on_one_replica_holds_at_once_on_the_other(
    turned: Replicas, ada: Account, ending: Ending
) -> None:
    assert [await me(api, ada.token) for api in turned.both] == [200, 200]
    ended = await ending(turned.one, ada)
    assert ended.status_code == 204, ended.text
    assert_problem(await turned.other.get("/users/me", ada), 401, "invalid_token")
    await assert_over(turned, ada.token, refresh=ada.refresh_token)


async def test_A07_J17_an_end_of_one_session_ends_no_other_on_any_replica(
    turned: Replicas, ada: Account
) -> None:
    other = await again(turned.one, ada)
    await _log_out(turned.one, ada)
    assert [await me(api, other.token) for api in turned.both] == [200, 200]
    changer = await again(turned.one, ada)
    assert (await change(turned.one, changer)).status_code == 204
    assert [await me(api, changer.token) for api in turned.both] == [200, 200]
    await assert_over(turned, other.token)


async def test_A07_J17_an_account_made_inactive_is_refused_at_once_on_both_replicas(
    turned: Replicas, admin: Account, ada: Account
) -> None:
    assert [await me(api, ada.token) for api in turned.both] == [200, 200]
    for is_active in (False, True):
        path, body = f"/users/{ada.id}", {"is_active": is_active}
        changed = await turned.one.http.patch(path, json=body, headers=admin.auth)
        assert changed.status_code == 200, changed.text
        await assert_over(turned, ada.token)
    # Being let in again takes a password.
    await assert_over(turned, refresh=ada.refresh_token)
    assert (await turned.other.log_in(ada.username)).status_code == 200


@pytest.mark.slow
async def test_A07_J17_a_changed_role_holds_at_once_on_both_replicas(
    guarded: Replicas, admin: Account, ada: Account
) -> None:
    async def seen() -> list[int]:
        return [(await api.get("/users", ada)).status_code for api in guarded.both]

    assert await seen() == [403, 403]
    for role, status in (("admin", 200), ("user", 403)):
        await operate(guarded, "set-role", ada.username, role)
        assert await seen() == [status, status]


async def execute(database: Database, statement: str, user_id: int = 0) -> None:
    async with database.transaction() as session:
        await session.execute(text(statement), {"id": user_id} if user_id else {})


# A8, F37: a refresh token in two hands.


async def test_A08_a_used_refresh_token_ends_its_session_on_both_replicas(
    turned: Replicas, ada: Account
) -> None:
    granted = (await turned.one.refresh(ada.refresh_token)).json()
    assert [await me(api, granted["access_token"]) for api in turned.both] == [200, 200]
    assert_problem(await turned.other.refresh(ada.refresh_token), 401, "invalid_grant")
    await assert_over(
        turned, ada.token, granted["access_token"], refresh=granted["refresh_token"]
    )


async def test_A08_a_grandparent_ends_the_session_on_both_replicas(
    turned: Replicas, ada: Account
) -> None:
    token = ada.refresh_token
    for api in (*turned.both, turned.one):
        granted = (await api.refresh(token)).json()
        token = granted["refresh_token"]
    assert_problem(await turned.other.refresh(ada.refresh_token), 401, "invalid_grant")
    await assert_over(turned, granted["access_token"], refresh=token)


@pytest.mark.parametrize("round", range(5))
@pytest.mark.parametrize("count", [2, 20])
async def test_A08_F37_of_refreshes_at_once_one_wins_and_then_all_is_over(
    guarded: Replicas, ada: Account, count: int, round: int
) -> None:
    answers = await asyncio.gather(
        *(api.refresh(ada.refresh_token) for api in guarded.turns(count))
    )
    refused = problems(list(answers))
    for answer in refused:
        assert_problem(answer, 401, "invalid_grant")
    (won,) = (answer.json() for answer in answers if answer not in refused)
    await assert_over(
        guarded, ada.token, won["access_token"], refresh=won["refresh_token"]
    )


async def test_A08_F37_in_the_grace_the_token_just_replaced_is_good_on_both_replicas(
    generous: Replicas, ada: Account
) -> None:
    for api in (*generous.both, *generous.both):
        answer = await api.refresh(ada.refresh_token)
        assert answer.status_code == 200, answer.text
    newest = (await generous.other.refresh(answer.json()["refresh_token"])).json()
    assert [await me(api, newest["access_token"]) for api in generous.both] == [200] * 2
    assert_problem(await generous.one.refresh(ada.refresh_token), 401, "invalid_grant")
    await assert_over(
        generous, ada.token, newest["access_token"], refresh=newest["refresh_token"]
    )


async def test_F37_in_the_grace_refreshes_at_once_all_win_and_one_goes_on(
    generous: Replicas, ada: Account
) -> None:
    answers = await asyncio.gather(
        *(api.refresh(ada.refresh_token) for api in generous.turns(20))
    )
    assert problems(list(answers)) == []
    first, second = (answer.json()["refresh_token"] for answer in answers[:2])
    newest = (await generous.one.refresh(first)).json()
    assert [await me(api, newest["access_token"]) for api in generous.both] == [200] * 2
    # Whoever goes on with another of them is somebody else.
    assert_problem(await generous.other.refresh(second), 401, "invalid_grant")
    await assert_over(generous, newest["access_token"], refresh=newest["refresh_token"])


# F36 and other races.


@asynccontextmanager
async def held(database: Database, lock: str) -> AsyncIterator[None]:
    """Nobody gets past this lock while the block runs."""
    async with database.transaction() as session:
        await session.execute(text(lock))
        yield


async def waiting(database: Database, count: int) -> None:
    """Until so many wait for a lock."""
    statement = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(60):
        while True:
            async with database.reading() as session:
                if await session.scalar(statement) == count:
                    return
            await asyncio.sleep(0.005)


async def first_of(task: asyncio.Task[Any], other: Coroutine[Any, Any, None]) -> None:
    """Until one of the two is done; the task goes on."""
    watching = asyncio.create_task(other)
    await asyncio.wait((task, watching), return_when=asyncio.FIRST_COMPLETED)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_F36_a_login_about_to_commit_ends_with_the_password(
    guarded: Replicas, database: Database, ada: Account
) -> None:
    lock = "LOCK TABLE auth_refresh_tokens IN SHARE MODE"
    async with held(database, lock):
        login = asyncio.create_task(again(guarded.other, ada))
        await waiting(database, 1)
        changing = asyncio.create_task(change(guarded.one, ada))
        # For the login, which has opened its session; or it is over already.
        await first_of(changing, waiting(database, 2))
    assert (await changing).status_code == 204
    late = await login
    await assert_over(guarded, late.token, refresh=late.refresh_token)


async def test_F36_a_password_verified_before_its_change_opens_nothing_after_it(
    guarded: Replicas, database: Database, ada: Account
) -> None:
    lock = "LOCK TABLE auth_sessions IN SHARE MODE"
    async with held(database, lock):
        # It has the new hash in place, and is about to end the sessions there are.
        changing = asyncio.create_task(change(guarded.one, ada))
        await waiting(database, 1)
        login = asyncio.create_task(guarded.other.log_in(ada.username))
        await waiting(database, 2)
    assert (await changing).status_code == 204
    assert_problem(await login, 401, "invalid_grant")


@pytest.mark.slow
@pytest.mark.parametrize("round", range(20))
async def test_F36_every_session_of_the_old_password_ends_with_it(
    generous: Replicas, ada: Account, round: int
) -> None:
    changing = asyncio.create_task(change(generous.one, ada))
    answers: list[Response] = []

    async def signing_in(api: Api) -> None:
        while not changing.done():
            answers.append(await api.log_in(ada.username))

    async def refreshing(api: Api) -> None:
        token = (await again(api, ada)).refresh_token
        while not changing.done():
            answers.append(answer := await api.refresh(token))
            if answer.status_code == 200:
                token = answer.json()["refresh_token"]

    others = [work(api) for api in generous.both for work in (signing_in, refreshing)]
    await asyncio.gather(*others, return_exceptions=True)
    assert (await changing).status_code == 204
    for answer in problems(answers):
        assert_problem(answer, 401, "invalid_grant")
    opened = [answer.json() for answer in answers if answer.status_code == 200]
    await assert_over(generous, *(found["access_token"] for found in opened))
    for found in opened:
        refused = await generous.other.refresh(found["refresh_token"])
        assert_problem(refused, 401, "invalid_grant")
    assert [await me(api, ada.token) for api in generous.both] == [200, 200]


@pytest.mark.parametrize("round", range(10))
async def test_F37_a_refresh_or_a_login_may_meet_the_end_of_the_account(
    generous: Replicas, ada: Account, round: int
) -> None:
    others = [await again(api, ada) for api in generous.turns(4)]
    calls = [
        call
        for api, who in zip(generous.turns(4), others, strict=True)
        for call in (
            api.refresh(who.refresh_token),
            api.log_in(ada.username),
            api.get("/auth/sessions", who),
        )
    ]
    calls.insert(round, leave(generous.one, ada))
    answers = await asyncio.gather(*calls)
    assert answers[round].status_code == 204
    for answer in problems(list(answers)):
        assert answer.status_code == 401, answer.text
    tokens = [
        answer.json()["access_token"]
        for answer in answers
        if answer.status_code == 200 and "access_token" in answer.text
    ]
    await assert_over(generous, ada.token, *tokens)


@pytest.mark.parametrize("path", ["/auth/logout", "/auth/logout-all"])
@pytest.mark.parametrize("round", range(5))
async def test_J17_refreshes_do_not_outlive_the_logouts_they_meet(
    generous: Replicas, ada: Account, path: str, round: int
) -> None:
    refreshing = [api.refresh(ada.refresh_token) for api in generous.turns(4)]
    leaving = [post(api, path, ada) for api in generous.turns(4)]
    answers = await asyncio.gather(
        *itertools.chain.from_iterable(zip(refreshing, leaving, strict=True))
    )
    for answer in problems(list(answers)):
        # A logout, too: it may be over before this one could say who is calling.
        assert answer.status_code == 401, answer.text
    assert 204 in [answer.status_code for answer in answers]
    granted = [a.json() for a in answers if a.status_code == 200]
    tokens = [found["access_token"] for found in granted]
    await assert_over(generous, ada.token, *tokens, refresh=ada.refresh_token)


@pytest.mark.parametrize("round", range(5))
async def test_J17_many_sessions_end_and_begin_at_once_and_nobody_blocks_another(
    generous: Replicas, ada: Account, round: int
) -> None:
    own = [await again(api, ada) for api in generous.turns(8)]
    calls: list[Awaitable[Response]] = [change(generous.one, own[0])]
    for api, who in zip(generous.turns(8), own, strict=True):
        calls += [
            api.refresh(who.refresh_token),
            post(api, "/auth/logout-all", who),
            api.log_in(ada.username),
            api.get("/auth/sessions", who),
        ]
    answers = await asyncio.gather(*calls)
    for answer in problems(list(answers)):
        assert answer.status_code == 401, answer.text
    await assert_over(generous, ada.token, *(who.token for who in own))


async def _log_in(api: Api, who: Account) -> Response:
    return await api.log_in(who.username)


@pytest.mark.parametrize("call", [_end_all, change, _log_in])
async def test_J17_F36_whoever_waits_for_an_account_holds_nothing_of_it(
    guarded: Replicas, database: Database, ada: Account, call: Ending
) -> None:
    # Else two of them, or one and a deletion, could block each other.
    async with held(database, f"SELECT 1 FROM users WHERE id = {ada.id} FOR UPDATE"):
        later = asyncio.create_task(call(guarded.one, ada))
        await waiting(database, 1)
        for table in ("auth_sessions", "auth_credentials"):
            free = f"SELECT 1 FROM {table} WHERE user_id = :id FOR UPDATE NOWAIT"
            await execute(database, free, ada.id)
    assert (await later).is_success


async def test_the_list_of_sessions_may_be_read_while_logins_add_to_it(
    generous: Replicas, ada: Account
) -> None:
    calls = [
        call
        for api in generous.turns(20)
        for call in (api.log_in(ada.username), api.get("/auth/sessions", ada))
    ]
    answers = await asyncio.gather(*calls)
    assert [answer.status_code for answer in answers] == [200] * 40
    for api in generous.both:
        assert len((await api.get("/auth/sessions", ada)).json()) == 21


@pytest.mark.slow
async def test_A11_right_logins_of_many_accounts_at_once_do_not_block_each_other(
    generous: Replicas,
) -> None:
    people = await asyncio.gather(*(api.account() for api in generous.turns(30)))
    answers = await asyncio.gather(
        *(
            api.log_in(who.username)
            for who, api in zip(people * 2, generous.turns(60), strict=True)
        )
    )
    assert [answer.status_code for answer in answers] == [200] * 60


# A11: guessing. What was verified is answered with 401, what had to wait with 429.


async def pass_time(database: Database, seconds: float) -> None:
    """Let all that was counted be older."""
    columns = ("blocked_until", "window_ends_at")
    moved = [f"{name} = {name} - interval '{seconds} seconds'" for name in columns]
    await execute(database, f"UPDATE auth_login_attempts SET {', '.join(moved)}")


def verified(answers: list[Response]) -> int:
    """How many guesses reached the hasher; all others were told to wait."""
    refused = problems(answers)
    assert len(refused) == len(answers)
    for answer in refused:
        if answer.status_code != 401:
            wait_of(answer)
    return sum(answer.status_code == 401 for answer in refused)


def wait_of(answer: Response) -> int:
    assert_problem(answer, 429, "too_many_attempts")
    seconds = int(answer.headers["retry-after"])
    assert seconds >= 1
    return seconds


async def guesses(
    replicas: Replicas, count: int, username: str = "", *, via: str = ""
) -> list[Response]:
    """So many wrong passwords at once; another name, another network each if none."""
    calls = [
        sign_in(api, username or new_name(), f"wrong {n}", via=via or next(_NETWORKS))
        for n, api in enumerate(replicas.turns(count))
    ]
    return list(await asyncio.gather(*calls))


def as_told(answers: list[Response]) -> set[tuple[int, str, str, str | None]]:
    """What the answers say, but for which request each belongs to."""
    told = ((answer.status_code, answer.json()) for answer in answers)
    return {(s, p["code"], p["title"], p.get("detail")) for s, p in told}


@pytest.mark.slow
async def test_A11_of_100_guesses_at_once_5_reach_the_hasher_for_any_name(
    url: str, tmp_path: Path, ada: Account
) -> None:
    # One at a time is hashed, and all have room to wait for their turn.
    slow = {"auth": "hash_threads = 1\nhash_queue = 100"}
    told = []
    async with replicas(tmp_path, url, slow) as narrow:
        for name in (ada.username, new_name()):
            answers = await guesses(narrow, 100, name)
            assert verified(answers) == 5
            told.append(as_told(answers))
    assert told[0] == told[1]


async def test_A11_guesses_from_many_networks_are_bounded_as_those_from_one(
    guarded: Replicas, ada: Account
) -> None:
    assert verified(await guesses(guarded, 60, ada.username)) == 5


async def test_A11_guesses_at_many_accounts_from_one_network_are_bounded(
    guarded: Replicas,
) -> None:
    network = next(_NETWORKS)
    assert verified(await guesses(guarded, 60, via=network)) == 30
    wait_of(await sign_in(guarded.other, new_name(), via=network))
    assert verified(await guesses(guarded, 1)) == 1


async def test_A11_the_owner_is_let_in_at_once_where_they_were_before(
    guarded: Replicas, ada: Account
) -> None:
    home, new_place = next(_NETWORKS), next(_NETWORKS)
    assert (await sign_in(guarded.one, ada.username, via=home)).status_code == 200
    assert verified(await guesses(guarded, 20, ada.username)) == 5
    for api in guarded.both:
        wait_of(await sign_in(api, ada.username, via=new_place))
        assert (await sign_in(api, ada.username, via=home)).status_code == 200
    # That it was let in there takes no guess of anybody else's back,
    wait_of(await sign_in(guarded.one, ada.username, via=new_place))
    # and is no leave to guess.
    assert verified(await guesses(guarded, 20, ada.username, via=home)) == 5


@pytest.mark.slow
async def test_A11_waits_grow_and_end_on_both_replicas(
    guarded: Replicas, database: Database, ada: Account
) -> None:
    network = next(_NETWORKS)
    assert verified(await guesses(guarded, 20, ada.username, via=network)) == 5
    shorter = 0
    for seconds in (32, 64, 128, 256, 512, 900, 900):
        for api in guarded.both:
            refused = await sign_in(api, ada.username, via=network)
            assert shorter < wait_of(refused) <= seconds
        shorter = seconds if seconds < 900 else 512
        await pass_time(database, seconds)
        assert verified(await guesses(guarded, 20, ada.username, via=network)) == 1
    await pass_time(database, 900)
    assert (await sign_in(guarded.other, ada.username, via=network)).status_code == 200
    assert verified(await guesses(guarded, 20, ada.username, via=network)) == 5


async def test_A11_a_day_later_all_guesses_are_free_again(
    guarded: Replicas, database: Database, ada: Account
) -> None:
    for _ in range(2):
        assert verified(await guesses(guarded, 20, ada.username)) == 5
        await pass_time(database, 86_400)


async def test_A11_a_network_may_guess_again_when_its_window_is_over(
    guarded: Replicas, database: Database
) -> None:
    network = next(_NETWORKS)
    for _ in range(2):
        assert verified(await guesses(guarded, 40, via=network)) == 30
        await pass_time(database, 900)


@pytest.mark.slow
async def test_A11_right_passwords_are_no_guesses_of_their_network(
    guarded: Replicas, database: Database, ada: Account
) -> None:
    network = next(_NETWORKS)
    for api in guarded.turns(40):
        assert (await sign_in(api, ada.username, via=network)).status_code == 200
    assert verified(await guesses(guarded, 40, via=network)) == 30
    await pass_time(database, 32)
    for api in guarded.turns(4):
        # The wait is over, and none of these begins another.
        assert (await sign_in(api, ada.username, via=network)).status_code == 200


async def test_A11_a_password_to_be_changed_is_guessed_no_more_often(
    guarded: Replicas, ada: Account
) -> None:
    via = {"X-Forwarded-For": next(_NETWORKS)}
    answers = await asyncio.gather(
        *(
            change(api, Account(ada.id, ada.username, ada.token, f"wrong {n}"), **via)
            for n, api in enumerate(guarded.turns(40))
        )
    )
    refused = [answer for answer in answers if answer.status_code == 429]
    for answer in refused:
        wait_of(answer)
    assert len(refused) == 35
    assert {answer.status_code for answer in answers} == {403, 429}


# I24: where a request comes from.


@pytest.mark.parametrize(
    "spoof",
    ["{n}.1.1.1, {own}", "{n}.1.1.1, {n}.2.2.2, {own}, 127.0.0.1", "{own}:{n}"],
)
async def test_I24_a_header_that_was_there_before_the_proxy_changes_nothing(
    guarded: Replicas, spoof: str
) -> None:
    own = next(_NETWORKS)
    answers = await asyncio.gather(
        *(
            sign_in(api, new_name(), via=spoof.format(n=n, own=own))
            for n, api in enumerate(guarded.turns(40), 1)
        )
    )
    assert verified(list(answers)) == 30


@pytest.mark.parametrize("written", ["2001:db8:7:7::{n:x}", "no address {n}", "{n}"])
async def test_I24_one_of_ipv6_has_a_64_and_what_is_no_address_is_one_place(
    guarded: Replicas, database: Database, written: str
) -> None:
    await pass_time(database, 900)
    answers = await asyncio.gather(
        *(
            sign_in(api, new_name(), via=written.format(n=n))
            for n, api in enumerate(guarded.turns(40), 1)
        )
    )
    assert verified(list(answers)) == 30


async def test_I24_without_a_trusted_proxy_the_header_changes_nothing(
    url: str, tmp_path: Path
) -> None:
    limits = "network_login_attempts = 3\nnetwork_registrations = 3"
    file = write_config(tmp_path / "app.toml", url, auth=limits)
    async with served(file) as (_, api):
        alone = Replicas(api, api, file)
        assert verified(await guesses(alone, 20)) == 3
        body = {"password": PASSWORD}
        answers = await asyncio.gather(
            *(
                api.http.post(
                    "/auth/register",
                    json=body | {"username": new_name()},
                    headers={"X-Forwarded-For": next(_NETWORKS)},
                )
                for _ in range(10)
            )
        )
        assert len(problems(list(answers))) == 7


# Registrations.


async def register(api: Api, username: str, *, via: str) -> Response:
    body = {"username": username, "password": PASSWORD}
    headers = {"X-Forwarded-For": via}
    return await api.http.post("/auth/register", json=body, headers=headers)


async def test_A11_registrations_of_one_network_are_bounded_over_both_replicas(
    guarded: Replicas, database: Database
) -> None:
    network = next(_NETWORKS)
    for _ in range(2):
        answers = await asyncio.gather(
            *(register(api, new_name(), via=network) for api in guarded.turns(30))
        )
        refused = problems(list(answers))
        for answer in refused:
            wait_of(answer)
        assert len(refused) == 20
        elsewhere = await register(guarded.one, new_name(), via=next(_NETWORKS))
        assert elsewhere.status_code == 201
        await pass_time(database, 3_600)


@pytest.mark.parametrize("round", range(3))
async def test_F28_of_50_registrations_of_one_name_at_once_one_succeeds(
    generous: Replicas, round: int
) -> None:
    name = new_name()
    answers = await asyncio.gather(
        *(
            api.register(name.upper() if n % 3 else name)
            for n, api in enumerate(generous.turns(50))
        )
    )
    refused = problems(list(answers))
    for answer in refused:
        assert_problem(answer, 409, "username_taken")
    assert len(refused) == 49
    for api in generous.both:
        assert (await api.log_in(name)).status_code == 200


# Sweeping beside all that.


async def test_A11_what_is_counted_while_the_sweep_comes_by_is_not_forgotten(
    database: Database,
) -> None:
    throttle = Throttle(database, AuthSettings())
    key, limit = uuid.uuid4().hex, Limit(5, 900)
    async with database.statement() as connection:
        assert await attempts.reserve(connection, key, limit)
    await pass_time(database, 900)
    async with database.transaction() as session:
        assert await attempts.reserve(await session.connection(), key, limit)
        sweeping = asyncio.create_task(throttle.sweep())
        # For us, or for nobody.
        await first_of(sweeping, waiting(database, 1))
    await sweeping
    statement = select(AttemptsRow.failures).where(AttemptsRow.key_hash == key)
    async with database.reading() as session:
        assert await session.scalar(statement) == 1


async def test_the_sweep_of_sessions_waits_for_nobody(
    database: Database, ada: Account
) -> None:
    year = "expires_at = expires_at - interval '1 year'"
    await execute(
        database, f"UPDATE auth_sessions SET {year} WHERE user_id = :id", ada.id
    )
    lock = f"SELECT id FROM auth_sessions WHERE user_id = {ada.id} FOR UPDATE"
    for is_held, swept in ((True, 0), (False, 1)):
        async with held(database, lock if is_held else "SELECT 1"):
            async with database.transaction() as session:
                found = await repository.sweep_sessions(
                    session, ended_seconds_ago=86_400, limit=10
                )
            assert found == swept
