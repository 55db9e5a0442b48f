"""What came of a question cannot be stored at that moment: it is kept, and told so."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from core.db import Database
from core.testing import Running
from modules.questions.asking import Asking
from modules.questions.settings import QuestionSettings
from modules.questions.upkeep import Upkeep
from tests.conftest import Databases, connected, served
from tests.support.api import Account, Api
from tests.support.config import write_config
from tests.support.line import Line, line_to
from tests.support.upstream import Upstream

LONG_AGO = "2020-01-01 00:00:00.000000+00:00"


class Case:
    """A service whose database can be taken away, and one that cannot."""

    def __init__(self, running: Running, api: Api, direct: Database) -> None:
        self.running = running
        self.api = api
        self.direct = direct

    @asynccontextmanager
    async def without_storage(self) -> AsyncIterator[None]:
        raise NotImplementedError
        yield

    async def row(self) -> Any:
        """The only question, whether or not the service can see it."""
        async with self.direct.reading() as session:
            return (await session.execute(text("SELECT * FROM questions"))).one()

    async def ended(self) -> Any:
        """The only question, once it is pending no more."""
        async with asyncio.timeout(60):
            while (row := await self.row()).status == "pending":
                await asyncio.sleep(0.02)
        return row


class OverALine(Case):
    """PostgreSQL, at the far end of a line."""

    line: Line

    @asynccontextmanager
    async def without_storage(self) -> AsyncIterator[None]:
        self.line.cut()
        try:
            yield
        finally:
            self.line.mend()


class OfAFile(Case):
    """SQLite, whose file another process may be writing to."""

    @asynccontextmanager
    async def without_storage(self) -> AsyncIterator[None]:
        # SQLite is one writer; its BEGIN IMMEDIATE is enough.
        async with connected(address(self.direct)) as other, other.work():
            yield


def address(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


@asynccontextmanager
async def case_of(
    kind: str, folder: Path, databases: Databases, base_url: str, **tables: str
) -> AsyncIterator[Case]:
    url = await databases.migrated(kind)
    async with line_to(url) as line, connected(url) as direct:
        near = line.url if kind == "postgresql" else url
        tables = {"database": "lock_seconds = 0.2"} | tables
        file = write_config(folder / "app.toml", near, base_url, **tables)
        async with served(file, outlives_database=True) as (running, api):
            case: Case
            if kind == "postgresql":
                case = OverALine(running, api, direct)
                case.line = line
            else:
                case = OfAFile(running, api, direct)
            yield case


@pytest.fixture
async def case(
    tmp_path: Path, databases: Databases, database_kind: str, upstream: Upstream
) -> AsyncIterator[Case]:
    async with case_of(database_kind, tmp_path, databases, upstream.base_url) as found:
        yield found


async def ask_plainly(api: Api, who: Account) -> tuple[int, dict[str, Any]]:
    """What an asker is told who waits: the status, and the question or problem."""
    answer = await api.ask(who, "Is it kept?")
    return answer.status_code, answer.json()


async def ask_and_read(api: Api, who: Account) -> tuple[int, dict[str, Any]]:
    """The same for one who reads, whose status is told in the last event."""
    *_, last = await api.read(who, "Is it kept?")
    return (201 if last.name == "done" else last.data["status"]), last.data


Ask = Callable[[Api, Account], Awaitable[tuple[int, dict[str, Any]]]]
both_ways = pytest.mark.parametrize("ask", [ask_plainly, ask_and_read])


@both_ways
async def test_F18_an_answer_that_cannot_be_stored_is_kept_until_it_can(
    case: Case, upstream: Upstream, ask: Ask
) -> None:
    ada = await case.api.account()
    async with upstream.stalled() as release:
        asking = asyncio.ensure_future(ask(case.api, ada))
        await upstream.asked()
        async with case.without_storage():
            release.set()
            status, problem = await asking
            assert (status, problem["code"]) == (503, "not_stored")
            row = await case.row()
            assert (row.status, row.answer) == ("pending", None)
            assert problem["question_id"] == row.id
    await case.ended()
    (question,) = await case.api.newest(ada)
    assert (question["id"], question["status"]) == (row.id, "answered")
    assert question["answer"] == "Answer to: Is it kept?"
    assert len(upstream.requests) == 1


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[int]:
    """The questions that the log tells this of."""
    found = (vars(r) for r in caplog.records if r.message == event)
    return [record["question_id"] for record in found]


async def reap(case: Case) -> None:
    """What some other replica does now and then, whose database is there."""
    settings = case.running.settings.section(QuestionSettings)
    await Upkeep(case.direct, settings).interrupt_overdue()


async def make_overdue(case: Case) -> None:
    async with case.direct.transaction() as session:
        await session.execute(text(f"UPDATE questions SET deadline_at = '{LONG_AGO}'"))


@both_ways
async def test_F18_what_was_taken_for_lost_stays_so_and_is_told_so(
    case: Case, upstream: Upstream, ask: Ask
) -> None:
    ada = await case.api.account()
    async with upstream.stalled() as release:
        asking = asyncio.ensure_future(ask(case.api, ada))
        await upstream.asked()
        await make_overdue(case)
        await reap(case)
        release.set()
        status, problem = await asking
    assert (status, problem["code"]) == (503, "owner_lost")
    row = await case.row()
    assert problem["question_id"] == row.id
    assert (row.status, row.error_code, row.answer) == (
        "interrupted",
        "owner_lost",
        None,
    )


@pytest.mark.slow
async def test_F18_an_answer_kept_for_too_long_changes_nothing_that_is_final(
    databases: Databases, tmp_path: Path, upstream: Upstream
) -> None:
    """Taken for lost while the answer was kept: the first end is the only one."""
    case: Case
    async with case_of("postgresql", tmp_path, databases, upstream.base_url) as case:
        ada = await case.api.account()
        async with upstream.stalled() as release:
            asking = asyncio.ensure_future(ask_plainly(case.api, ada))
            await upstream.asked()
            async with case.without_storage():
                release.set()
                assert (await asking)[1]["code"] == "not_stored"
                await make_overdue(case)
                await reap(case)
        settling = case.running.service(Asking)._settling
        async with asyncio.timeout(60):
            while settling._unstored:
                await asyncio.sleep(0.02)
        (question,) = await case.api.newest(ada)
        assert (question["status"], question["error_code"]) == (
            "interrupted",
            "owner_lost",
        )
        assert question["answer"] is None


@pytest.mark.slow
@both_ways
async def test_F18_an_answer_is_given_up_at_its_deadline_and_then_reaped(
    databases: Databases,
    database_kind: str,
    tmp_path: Path,
    upstream: Upstream,
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("modules.questions.asking._LAST_SECONDS", 0.5)
    opened = case_of(
        database_kind,
        tmp_path,
        databases,
        upstream.base_url,
        llm="deadline_seconds = 1",
    )
    async with opened as case:
        ada = await case.api.account()
        async with upstream.stalled() as release:
            asking = asyncio.ensure_future(ask(case.api, ada))
            await upstream.asked()
            async with case.without_storage():
                release.set()
                problem = (await asking)[1]
                assert problem["code"] == "not_stored"
                async with asyncio.timeout(60):
                    while not logged(caplog, "question.given_up"):
                        await asyncio.sleep(0.02)
        assert logged(caplog, "question.given_up") == [problem["question_id"]]
        assert (await case.row()).status == "pending"
        await reap(case)
        row = await case.row()
        assert (row.status, row.error_code) == ("interrupted", "owner_lost")


@pytest.mark.slow
@pytest.mark.parametrize("is_back", [True, False], ids=["back", "gone"])
async def test_F18_a_server_that_ends_tries_once_more_to_store_what_is_not(
    databases: Databases,
    database_kind: str,
    tmp_path: Path,
    upstream: Upstream,
    is_back: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Without its end it would not try again for an hour.
    monkeypatch.setattr("modules.questions.settling._FIRST_PAUSE_SECONDS", 3_600)
    async with AsyncExitStack() as service, AsyncExitStack() as outage:
        opened = case_of(database_kind, tmp_path, databases, upstream.base_url)
        case = await service.enter_async_context(opened)
        ada = await case.api.account()
        async with upstream.stalled() as release:
            asking = asyncio.ensure_future(ask_plainly(case.api, ada))
            await upstream.asked()
            await outage.enter_async_context(case.without_storage())
            release.set()
            question_id = (await asking)[1]["question_id"]
        url = address(case.direct)
        if is_back:
            await outage.aclose()
        async with asyncio.timeout(60):
            await service.aclose()
    async with connected(url) as database, database.reading() as session:
        status = await session.scalar(text("SELECT status FROM questions"))
    assert status == ("answered" if is_back else "pending")
    given_up = logged(caplog, "question.given_up")
    assert given_up == ([] if is_back else [question_id])


@both_ways
async def test_F18_an_answer_that_too_many_are_stored_before_is_kept_as_well(
    case: Case, upstream: Upstream, ask: Ask
) -> None:
    ada = await case.api.account()
    batcher = case.running.service(Asking)._writing.settling
    usual, batcher._longest_queue = batcher._longest_queue, 0
    status, problem = await ask(case.api, ada)
    assert (status, problem["code"]) == (503, "not_stored")
    assert (await case.row()).status == "pending"
    batcher._longest_queue = usual
    assert (await case.ended()).status == "answered"


# A connection is lost when all is done, and nobody was told.

LIMITED = "per_minute = 1000\nservice_per_day = 1000"


@pytest.fixture(params=["", LIMITED], ids=["without limits", "with limits"])
async def on_a_line(
    request: pytest.FixtureRequest,
    databases: Databases,
    tmp_path: Path,
    upstream: Upstream,
) -> AsyncIterator[OverALine]:
    opened = case_of(
        "postgresql",
        tmp_path,
        databases,
        upstream.base_url,
        questions=request.param,
    )
    async with opened as found:
        assert isinstance(found, OverALine)
        yield found


@both_ways
async def test_F12_F18_a_question_stored_without_a_word_is_stored_once(
    on_a_line: OverALine, upstream: Upstream, ask: Ask
) -> None:
    case, marks = on_a_line, [b"Is it kept?"]
    ada = await case.api.account()
    if (await limits_of(case, ada)).keys():
        # Several statements: what counts is that their end has come.
        marks.append(b"COMMIT")
    upstream.requests.clear()
    case.line.lose_the_answer_to(*marks)
    status, question = await ask(case.api, ada)
    assert (status, case.line.losses) == (201, 1)
    assert (await case.row()).id == question["id"]
    assert len(upstream.requests) == 1
    assert {limit["remaining"] for limit in (await limits_of(case, ada)).values()} <= {
        999
    }


@both_ways
async def test_F12_F18_an_answer_stored_without_a_word_is_told_as_stored(
    on_a_line: OverALine, upstream: Upstream, ask: Ask
) -> None:
    case = on_a_line
    ada = await case.api.account()
    case.line.lose_the_answer_to(b"Answer to: Is it kept?")
    status, question = await ask(case.api, ada)
    assert (status, case.line.losses) == (201, 1)
    assert question == (await case.api.newest(ada))[0]
    assert question["answered_at"] is not None


async def limits_of(case: Case, who: Account) -> dict[str, Any]:
    found = (await case.api.get("/questions/limits", who)).json()["limits"]
    return {limit["name"]: limit for limit in found}


@both_ways
async def test_F12_F18_a_question_that_is_stored_behind_our_back_is_stored_once(
    databases: Databases, tmp_path: Path, upstream: Upstream, ask: Ask
) -> None:
    """The connection is dead, its statement is not: it comes to its end later."""
    opened = case_of(
        "postgresql",
        tmp_path,
        databases,
        upstream.base_url,
        database="lock_seconds = 5",
    )
    async with opened as case:
        assert isinstance(case, OverALine)
        ada = await case.api.account()
        async with case.direct.transaction() as session:
            await session.execute(text("SELECT id FROM users FOR UPDATE"))
            asking = asyncio.ensure_future(ask(case.api, ada))
            await waiting_for_a_lock(case, 1)
            case.line.cut()
            case.line.mend()
            await waiting_for_a_lock(case, 2)
        status, question = await asking
        assert status == 201
        assert (await case.row()).id == question["id"]


async def waiting_for_a_lock(case: Case, statements: int) -> None:
    found = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    async with asyncio.timeout(60):
        while True:
            async with case.direct.reading() as session:
                if await session.scalar(found) == statements:
                    return
            await asyncio.sleep(0.01)
