"""One's own data as a file: whole, one's own, and never half of it taken for all."""

import asyncio
import json
import socket
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, text

from core.db import Database
from core.testing import Running
from modules.auth.models import SessionRow
from modules.questions.models import QuestionRow
from tests.conftest import Databases, Recorder, assert_no_canary, served
from tests.support import guestbook
from tests.support.api import PASSWORD, Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.raw import request
from tests.support.upstream import Received, Upstream, Wire

PATH = "/users/me/export"
OURS = [
    *("exported_at", "profile", "sessions", "questions", "question_usage"),
    "complete",
]
SESSION = {"id", "created_at", "last_used_at", "expires_at", "revoked_at", "client"}
# More than the sockets between a server and a client can hold.
MANY, LONG = 1_000, 16_000
END_OF_CHUNKS = b"0\r\n\r\n"


async def export(api: Api, who: Account) -> dict[str, Any]:
    """A whole export."""
    answer = await api.get(PATH, who)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert list(found)[-1] == "complete" and found["complete"] is True
    return found


async def store_questions(
    service: Running, who: Account, count: int, length: int = 10
) -> None:
    """Questions that somebody has asked, the first of them first."""
    statement = text(
        "INSERT INTO questions (user_id, content, idempotency_key)"
        " WITH RECURSIVE n (i) AS"
        " (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)"
        " SELECT :user_id, CAST(:content AS text), CAST(i AS text) FROM n"
        " WHERE i <= :count ORDER BY i"
    )
    given = {"count": count, "user_id": who.id, "content": "w" * length}
    async with service.service(Database).transaction() as session:
        await session.execute(statement, given)


async def question_ids(service: Running, who: Account) -> list[int]:
    statement = select(QuestionRow.id).where(QuestionRow.user_id == who.id)
    async with service.service(Database).reading() as session:
        return list(await session.scalars(statement.order_by(QuestionRow.id.desc())))


class HalfRead:
    """An export that has begun, and that nobody reads on."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.request_id = uuid.uuid4().hex
        self._reader = reader
        self._writer = writer

    async def begin(self, who: Account) -> None:
        headers = (
            f"Authorization: Bearer {who.token}",
            f"X-Request-ID: {self.request_id}",
            "Connection: close",
        )
        self._writer.write(request("GET", PATH, *headers))
        async with asyncio.timeout(20):
            head = await self._reader.readuntil(b'"profile": ')
        assert head.startswith(b"HTTP/1.1 200 OK")

    async def rest(self) -> bytes:
        """Everything that still comes, as it comes over the wire."""
        async with asyncio.timeout(20):
            return await self._reader.read()

    def hang_up(self) -> None:
        self._writer.transport.abort()


@asynccontextmanager
async def half_read(api: Api, who: Account) -> AsyncIterator[HalfRead]:
    """Begin to read, over a socket of little room."""
    bare = socket.socket()
    bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    bare.setblocking(False)
    address = (api.http.base_url.host, api.http.base_url.port)
    await asyncio.get_running_loop().sock_connect(bare, address)
    reader, writer = await asyncio.open_connection(sock=bare, limit=4_096)
    half = HalfRead(reader, writer)
    try:
        await half.begin(who)
        yield half
    finally:
        half.hang_up()


async def failures(recorder: Recorder, of: HalfRead) -> list[str]:
    """What was logged as an error of a request, once that has ended."""
    async with asyncio.timeout(60):
        while True:
            about = [line for line in recorder.lines if of.request_id in line]
            if any(line.startswith("request ") for line in about):
                return [line for line in about if "'levelname': 'ERROR'" in line]
            await asyncio.sleep(0.01)


@pytest.fixture
async def own(
    databases: Databases, database_kind: str, upstream: Upstream, tmp_path: Path
) -> AsyncIterator[tuple[Running, Api]]:
    """A service of the test's own with one connection to its database."""
    limits = "pool_size = 1\npool_wait_seconds = 0.5"
    url = await databases.migrated(database_kind)
    file = tmp_path / "app.toml"
    write_config(file, url, upstream.base_url, database=limits)
    async with served(file) as found:
        yield found


# What is in it.


async def test_the_file_has_everything_that_the_routes_show(
    service: Running, api: Api, upstream: Upstream, ada: Account, admin: Account
) -> None:
    async def refuses(wire: Wire, received: Received) -> None:
        await wire.respond({"error": "no"}, status="400 Bad Request")

    answered = (await api.ask(ada, "\u2028 Which \u00e9 \U0001f600?")).json()["id"]
    async with upstream.behaving(refuses):
        failed = (await api.ask(ada, "Second?")).json()["question_id"]
    await store_questions(service, ada, 1)
    made = await export(api, ada)
    assert list(made) == OURS
    assert made["profile"] == (await api.get(f"/users/{ada.id}", admin)).json()
    states = [(each["id"], each["status"]) for each in made["questions"]]
    assert states[1:] == [(failed, "failed"), (answered, "answered")]
    assert states[0][1] == "pending"
    for question in made["questions"]:
        shown = await api.get(f"/questions/{question['id']}", ada)
        assert question == shown.json()
    moment = datetime.fromisoformat(made["exported_at"])
    assert moment.tzinfo is not None


async def test_the_file_is_one_to_keep(api: Api, ada: Account) -> None:
    answer = await api.get(PATH, ada)
    named = 'attachment; filename="vopros-export.json"'
    assert answer.headers["content-disposition"] == named
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "content-length" not in answer.headers


async def test_sessions_are_there_with_the_ended_ones_and_without_a_secret(
    service: Running, api: Api, ada: Account
) -> None:
    second = await api.signed_in(ada.id, ada.username)
    body = {"current_password": PASSWORD, "new_password": f"{PASSWORD}, newer"}
    changed = await api.http.put("/auth/password", json=body, headers=second.auth)
    assert changed.status_code == 204
    answer = await api.get(PATH, second)
    assert_no_canary(answer.text)
    assert "argon2" not in answer.text
    newest, oldest = answer.json()["sessions"]
    assert newest.keys() == oldest.keys() == SESSION
    assert newest["created_at"] > oldest["created_at"]
    assert newest["revoked_at"] is None
    assert oldest["revoked_at"] > oldest["created_at"]
    statement = select(SessionRow.id).where(SessionRow.user_id == ada.id)
    async with service.service(Database).reading() as session:
        stored = {str(found) for found in await session.scalars(statement)}
    assert {newest["id"], oldest["id"]} == stored


async def test_somebody_new_has_a_short_file(api: Api, ada: Account) -> None:
    made = await export(api, ada)
    assert (len(made["sessions"]), made["questions"]) == (1, [])


@pytest.mark.parametrize("count", [99, 100, 101, 350])
async def test_every_question_is_there_once_newest_first(
    service: Running, api: Api, ada: Account, count: int
) -> None:
    await store_questions(service, ada, count)
    made = await export(api, ada)
    expected = await question_ids(service, ada)
    assert len(expected) == count
    assert [question["id"] for question in made["questions"]] == expected


async def test_every_session_is_there_once_though_all_began_at_one_moment(
    service: Running, api: Api, ada: Account
) -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    rows = [
        {
            "id": uuid.uuid4(),
            "user_id": ada.id,
            "created_at": moment,
            "expires_at": moment,
        }
        for _ in range(1_200)
    ]
    async with service.service(Database).transaction() as session:
        await session.execute(insert(SessionRow), rows)
    found = [each["id"] for each in (await export(api, ada))["sessions"]]
    assert len(found) == len(set(found)) == 1_201
    assert set(found) > {str(row["id"]) for row in rows}


async def test_A04_of_two_who_export_at_once_each_gets_their_own(
    service: Running, api: Api
) -> None:
    people = [await api.account() for _ in range(2)]
    expected = []
    # One question of each in turn: whoever read by id alone would get both people's.
    for n in range(150):
        statement = insert(QuestionRow).values(
            [
                {"user_id": who.id, "content": who.username, "idempotency_key": f"{n}"}
                for who in people
            ]
        )
        async with service.service(Database).transaction() as session:
            await session.execute(statement)
    expected = [await question_ids(service, who) for who in people]
    twice = await asyncio.gather(*[export(api, who) for who in people * 2])
    for who, ids, made in zip(people * 2, expected * 2, twice, strict=True):
        assert made["profile"]["id"] == who.id
        assert len(made["sessions"]) == 1
        assert [question["id"] for question in made["questions"]] == ids
        contents = {question["content"] for question in made["questions"]}
        assert contents == {who.username}


async def test_without_a_token_there_is_no_file(api: Api, ada: Account) -> None:
    assert_problem(await api.get(PATH), 401, "token_missing")
    await api.http.delete("/users/me", headers=ada.auth)
    assert_problem(await api.get(PATH, ada), 401, "invalid_token")


async def test_the_file_can_only_be_got(api: Api, ada: Account) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        refused = await api.http.request(method, PATH, headers=ada.auth)
        assert_problem(refused, 405, "method_not_allowed")
        assert refused.headers["allow"] == "GET"
    head = await api.http.head(PATH, headers=ada.auth)
    assert (head.status_code, head.content) == (405, b"")


# While it is read, and what may happen meanwhile.


async def test_A12_somebody_who_reads_slowly_holds_no_connection(
    own: tuple[Running, Api],
) -> None:
    service, api = own
    ada = await api.account()
    await store_questions(service, ada, MANY, LONG)
    async with half_read(api, ada) as slow, half_read(api, ada):
        assert (await api.get("/users/me", ada)).status_code == 200
        assert (await api.ask(ada, "Meanwhile?")).status_code == 201
        rest = await slow.rest()
    assert rest.endswith(END_OF_CHUNKS)
    assert rest.count(b'"content":"w') == MANY
    assert b"Meanwhile?" not in rest


@pytest.mark.slow
async def test_an_export_of_an_account_that_goes_meanwhile_breaks_off(
    own: tuple[Running, Api], secrets_stay_inside: Recorder
) -> None:
    service, api = own
    ada = await api.account()
    await store_questions(service, ada, MANY, LONG)
    async with half_read(api, ada) as slow:
        gone = await api.http.delete("/users/me", headers=ada.auth)
        assert gone.status_code == 204
        rest = await slow.rest()
    assert_broken(rest)
    (failure,) = await failures(secrets_stay_inside, slow)
    assert "InvalidToken" in failure


async def test_an_export_breaks_off_when_the_database_fails_in_the_middle(
    own: tuple[Running, Api], secrets_stay_inside: Recorder
) -> None:
    service, api = own
    ada = await api.account()
    await store_questions(service, ada, MANY, LONG)
    async with half_read(api, ada) as slow:
        async with service.service(Database).transaction() as session:
            await session.execute(text("ALTER TABLE questions RENAME TO lost"))
        assert_broken(await slow.rest())
    (failure,) = await failures(secrets_stay_inside, slow)
    assert "repository.py" in failure
    # What fails before anything was sent is told as anywhere else.
    assert_problem(await api.get(PATH, ada), 500, "internal_error")
    async with service.service(Database).transaction() as session:
        await session.execute(text("ALTER TABLE lost RENAME TO questions"))
    assert len((await export(api, ada))["questions"]) == MANY


def assert_broken(rest: bytes) -> None:
    """Neither a program nor a person takes it for the whole."""
    assert not rest.endswith(END_OF_CHUNKS)
    assert b'"complete"' not in rest
    assert 0 < rest.count(b'"content":"w') < MANY


async def test_hanging_up_ends_an_export_and_is_no_error(
    service: Running, api: Api, ada: Account, secrets_stay_inside: Recorder
) -> None:
    await store_questions(service, ada, MANY, LONG)
    seen = len(secrets_stay_inside.lines)
    async with half_read(api, ada) as slow:
        slow.hang_up()
        assert await failures(secrets_stay_inside, slow) == []
    lines = secrets_stay_inside.lines[seen:]
    assert not any("'levelname': 'ERROR'" in line for line in lines)
    assert (await api.get("/users/me", ada)).status_code == 200


# What others bring.


@pytest.fixture
async def with_guests(
    databases: Databases,
    database_kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[Running, Api]]:
    """A service with a stranger's module between ours."""
    guestbook.install(tmp_path / "site", monkeypatch, brings_callers=False)
    url = await databases.migrated(database_kind)
    names = f'enabled = ["users", "{guestbook.NAME}", "auth"]'
    file = write_config(tmp_path / "app.toml", url, modules=names)
    try:
        async with served(file) as found:
            yield found
    finally:
        guestbook.forget()


async def test_a_strangers_module_has_its_place_in_the_file(
    with_guests: tuple[Running, Api],
) -> None:
    _, api = with_guests
    ada = await api.account()
    made = await export(api, ada)
    theirs = ["guest", "visits", "gifts"]
    # Of a module that is not enabled there is nothing.
    assert list(made) == [*OURS[:2], *theirs, "sessions", "complete"]
    assert made["guest"] == {"number": ada.id, "since": "2026-11-23T00:00:00Z"}
    assert [visit["number"] for visit in made["visits"]] == [0, 1]
    # Strict JSON has no NaN.
    assert made["visits"][0]["mood"] is None
    assert made["gifts"] == []


async def test_a_stranger_is_not_asked_on_for_somebody_who_has_hung_up(
    with_guests: tuple[Running, Api], secrets_stay_inside: Recorder
) -> None:
    _, api = with_guests
    ada = await api.account()
    module = sys.modules[guestbook.NAME]
    module.VISITS = 1_000_000  # type: ignore[attr-defined]
    async with half_read(api, ada) as slow:
        slow.hang_up()
        async with asyncio.timeout(60):
            await module.LEFT.wait()
    assert await failures(secrets_stay_inside, slow) == []
    assert json.loads((await api.get("/health/live")).text) == {"status": "live"}


async def test_what_is_counted_of_somebody_is_theirs_to_see(
    api: Api, ada: Account
) -> None:
    """Also once the questions are gone: that gives nothing back."""
    assert (await export(api, ada))["question_usage"] == []
    asked = [(await api.ask(ada, f"{n}?")).json()["id"] for n in range(2)]
    for question_id in asked:
        await api.http.delete(f"/questions/{question_id}", headers=ada.auth)
    made = await export(api, ada)
    (counted,) = made["question_usage"]
    assert counted.keys() == {
        *("day", "questions", "tokens", "minute_ends_at", "minute_questions")
    }
    assert (counted["questions"], counted["tokens"]) == (2, 2 * 46)
    assert made["questions"] == []
    assert (await export(api, await api.account()))["question_usage"] == []
