"""The database: what holds on each of the two, and how its faults are told."""

import asyncio
import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, MetaData, Table, insert, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from core.db import (
    BigId,
    Busy,
    Database,
    DatabaseUnavailable,
    StorageFull,
    UtcDateTime,
    among,
    db_now,
    translate,
)
from core.errors import StartRefused
from core.migrate import upgrade
from core.module import in_tree_names, load_modules
from core.settings import DatabaseSettings
from modules.questions.repository import newest_of
from tests.conftest import Databases, connected, served
from tests.support.api import PASSWORD, assert_problem
from tests.support.config import write_config
from tests.support.postgres import Postgres
from tests.support.process import serving
from tests.support.upstream import Upstream


async def pragmas(session: AsyncSession) -> list[Any]:
    names = ("foreign_keys", "journal_mode", "synchronous", "busy_timeout")
    return [await session.scalar(text(f"PRAGMA {name}")) for name in names]


async def test_F23_every_new_connection_to_sqlite_is_durable_and_checks_keys(
    databases: Databases,
) -> None:
    expected = [1, "wal", 2, 700]
    url = await databases.empty("sqlite")
    async with connected(url, pool_size=2, lock_seconds=0.7) as database:
        async with (
            database.transaction() as writer,
            database.reading() as first,
            database.reading() as second,
        ):
            assert await pragmas(writer) == expected
            assert await pragmas(first) == expected
            assert await pragmas(second) == expected
        async with database.migrating() as connection:
            keys = await connection.scalar(text("PRAGMA foreign_keys"))
        assert keys == 0


@pytest.mark.slow
async def test_simultaneous_changes_of_one_value_lose_none(database: Database) -> None:
    """With the SQLite driver's own transactions nearly all of these were lost."""
    async with database.transaction() as session:
        await session.execute(text("CREATE TABLE counter (value INTEGER NOT NULL)"))
        await session.execute(text("INSERT INTO counter VALUES (0)"))
    lock = " FOR UPDATE" if database.dialect == "postgresql" else ""

    async def add_one() -> None:
        async with database.transaction() as session:
            value = await session.scalar(text(f"SELECT value FROM counter{lock}"))
            await asyncio.sleep(0)
            await session.execute(
                text("UPDATE counter SET value = :value"), {"value": value + 1}
            )

    async def many() -> None:
        for _ in range(25):
            await add_one()

    async with asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(many())
    async with database.reading() as session:
        assert await session.scalar(text("SELECT value FROM counter")) == 16 * 25


async def test_two_processes_of_one_sqlite_file_wait_for_each_other(
    databases: Databases,
) -> None:
    url = await databases.empty("sqlite")
    async with connected(url) as one, connected(url) as other:
        async with one.transaction() as session:
            await session.execute(text("CREATE TABLE counter (value INTEGER)"))
            await session.execute(text("INSERT INTO counter VALUES (0)"))

        async def add(database: Database) -> None:
            for _ in range(50):
                async with database.transaction() as session:
                    value = await session.scalar(text("SELECT value FROM counter"))
                    changed = text(f"UPDATE counter SET value = {value + 1}")
                    await session.execute(changed)

        await asyncio.gather(add(one), add(other))
        async with one.reading() as session:
            assert await session.scalar(text("SELECT value FROM counter")) == 100


@pytest.mark.parametrize("ids", [[], [2], [1, 3, 99], list(range(1, 2_000))])
async def test_among_finds_the_rows_of_any_number_of_ids(
    database: Database, ids: list[int]
) -> None:
    numbers = Table("numbers", MetaData(), Column("id", BigId, primary_key=True))
    async with database.transaction() as session:
        connection = await session.connection()
        await connection.run_sync(numbers.create)
        await session.execute(insert(numbers), [{"id": n} for n in range(1, 6)])
        chosen = select(numbers.c.id).where(among(numbers.c.id, ids, database.dialect))
        found = await session.scalars(chosen.order_by(numbers.c.id))
        assert list(found) == [n for n in range(1, 6) if n in ids]


async def test_moments_are_aware_and_in_utc(database: Database) -> None:
    moments = Table("moments", MetaData(), Column("at", UtcDateTime))
    moscow = timezone(timedelta(hours=3))
    given = datetime(2024, 7, 1, 2, 30, 0, 123456, tzinfo=moscow)
    async with database.transaction() as session:
        connection = await session.connection()
        await connection.run_sync(moments.create)
        await session.execute(insert(moments).values(at=given))
        found = await session.scalar(select(moments.c.at))
        assert found is not None and found == given
        assert found.utcoffset() == timedelta(0)
        now = await session.scalar(select(db_now()))
        assert now is not None
        assert abs(now - datetime.now(UTC)) < timedelta(seconds=5)
        # In SQLite they are text: compared as text, it must still compare as time.
        minute = timedelta(minutes=1)
        await session.execute(
            insert(moments), [{"at": now + n * minute} for n in (-1, 1)]
        )
        past = select(moments.c.at).where(moments.c.at < db_now())
        assert set(await session.scalars(past)) == {given, now - minute}


async def test_a_naive_moment_is_refused(database: Database) -> None:
    moments = Table("moments", MetaData(), Column("at", UtcDateTime))
    async with database.transaction() as session:
        connection = await session.connection()
        await connection.run_sync(moments.create)
        with pytest.raises(Exception, match="a moment needs its time zone"):
            await session.execute(insert(moments).values(at=datetime(2026, 7, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("is_generic", [False, True])
@pytest.mark.parametrize("people", [5, 50, 5_000, 25_000])
async def test_the_last_three_come_from_the_index(
    databases: Databases, people: int, is_generic: bool
) -> None:
    """However the 50,000 questions there are spread over people."""
    url = await databases.migrated("postgresql")
    async with connected(url) as database:
        somebody = await _spread(database, people)
        async with database.reading() as session:
            newest: object = newest_of(somebody, 3).compile(
                dialect=postgresql.dialect(),  # type: ignore[no-untyped-call]
                compile_kwargs={"literal_binds": True},
            )
            if is_generic:
                # What a prepared statement comes to after some executions.
                await session.execute(text("SET plan_cache_mode = force_generic_plan"))
                unbound = str(newest).replace(f"{somebody}", "$1")
                await session.execute(text(f"PREPARE newest (bigint) AS {unbound}"))
                newest = f"EXECUTE newest ({somebody})"
            lines = await session.scalars(text(f"EXPLAIN {newest}"))
            plan = "\n".join(lines)
    assert "Index Scan using ix_questions_user_id_asked_at on questions" in plan
    assert "Sort" not in plan
    assert "Seq Scan" not in plan


async def _spread(database: Database, people: int) -> int:
    """50,000 questions of so many people; the id of one."""
    async with database.transaction() as session:
        for statement in (
            "INSERT INTO users (username, username_key) SELECT 'u' || n, 'u' || n"
            f" FROM generate_series(100, 99 + {people}) n",
            "INSERT INTO questions (user_id, content, idempotency_key)"
            " SELECT u.id, 'Why?', n::text"
            f" FROM generate_series(1, 50000 / {people}) n, users u ORDER BY random()",
        ):
            await session.execute(text(statement))
    async with database.reading() as session:
        await session.execute(text("ANALYZE questions"))
        return int(await session.scalar(text("SELECT min(id) FROM users")) or 0)


async def test_the_last_three_of_many_are_not_planned_again_and_again(
    databases: Databases,
) -> None:
    """It would take longer than finding them."""
    url = await databases.migrated("postgresql")
    async with connected(url, pool_size=1) as database:
        somebody = await _spread(database, 5)
        async with database.reading() as session:
            for _ in range(10):
                await session.execute(newest_of(somebody, 3))
            kept = "SELECT sum(generic_plans) FROM pg_prepared_statements"
            only = "WHERE statement LIKE '%questions.user_id%LIMIT%'"
            # Whether a plan is worth keeping is known after five executions.
            assert (await session.scalar(text(f"{kept} {only}")) or 0) > 0


# Faults, as a client and an operator see them.


@pytest.mark.slow
async def test_a_server_that_begins_has_all_its_connections(
    databases: Databases, tmp_path: Path
) -> None:
    """The first burst of questions waits for none to be opened."""
    url = await databases.migrated("postgresql")
    config = write_config(tmp_path / "app.toml", url, database="pool_size = 7")
    theirs = text(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'vopros'"
        " AND datname = current_database() AND pid <> pg_backend_pid()"
    )
    async with connected(url) as database, database.reading() as session:
        assert await session.scalar(theirs) == 0
        with serving("--config", config):
            assert await session.scalar(theirs) >= 7


async def test_F13_no_free_connection_is_503_busy(
    databases: Databases, database_kind: str, tmp_path: Path
) -> None:
    url = await databases.migrated(database_kind)
    limits = "pool_size = 1\npool_wait_seconds = 0.2"
    file = write_config(tmp_path / "app.toml", url, database=limits)
    async with served(file) as (running, api):
        someone = await api.account()
        database: Database = running.service(Database)
        async with database.transaction() as session:
            await session.execute(text("SELECT 1"))
            refused = await api.register("grace")
            problem = assert_problem(refused, 503, "busy")
            assert refused.headers["retry-after"] == "1"
            assert "sql" not in str(problem).lower()
            if database_kind == "postgresql":
                assert_problem(await api.get("/users/me", someone), 503, "busy")
        assert (await api.get("/users/me", someone)).status_code == 200
        assert (await api.register("grace")).status_code == 201


@pytest.mark.slow
async def test_F09_F10_A15_a_database_that_goes_is_503_and_one_that_returns_is_used(
    tmp_path: Path,
) -> None:
    postgres = Postgres()
    try:
        url = postgres.url(await postgres.create_database())
        async with connected(url) as database:
            await upgrade(database, load_modules(in_tree_names()))
        async with served(write_config(tmp_path / "app.toml", url)) as (_, api):
            ada = await api.account()
            # It stops as in a crash, and in tests it need not survive one.
            await postgres.execute("CHECKPOINT")
            await asyncio.to_thread(postgres.halt)
            for answer in (
                await api.get("/users/me", ada),
                await api.register("grace"),
                await api.log_in(ada.username),
                await api.ask(ada, "Why?"),
            ):
                problem = assert_problem(answer, 503, "database_unavailable")
                assert int(answer.headers["retry-after"]) <= 5
                assert str(postgres.port) not in str(problem)
            assert (await api.get("/health/live")).status_code == 200
            ready = await api.get("/health/ready")
            assert_problem(ready, 503, "database_unavailable")

            await asyncio.to_thread(postgres.start)
            assert (await api.get("/users/me", ada)).status_code == 200
            assert (await api.register("grace")).status_code == 201
            async with asyncio.timeout(60):
                while (await api.get("/health/ready")).status_code != 200:
                    await asyncio.sleep(0.1)
    finally:
        postgres.stop()


async def test_F12_a_connection_killed_inside_a_transaction_is_503_and_replaced(
    databases: Databases,
) -> None:
    url = await databases.empty("postgresql")
    async with connected(url, pool_size=1) as database:
        with pytest.raises(DatabaseUnavailable):
            async with database.transaction() as session:
                pid = await session.scalar(text("SELECT pg_backend_pid()"))
                await databases.postgres.execute(f"SELECT pg_terminate_backend({pid})")
                await session.execute(text("SELECT 1"))
        async with database.transaction() as session:
            assert await session.scalar(text("SELECT 1")) == 1


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ("40P01", Busy),
        ("40001", Busy),
        ("55P03", Busy),
        ("57014", Busy),
        ("53100", StorageFull),
        ("53300", DatabaseUnavailable),
        ("25006", DatabaseUnavailable),
        ("57P01", DatabaseUnavailable),
        ("08006", DatabaseUnavailable),
    ],
)
async def test_F14_F15_what_postgresql_refuses_for_now_is_503(
    databases: Databases, state: str, error: type[Exception]
) -> None:
    async with connected(await databases.empty("postgresql")) as database:
        raising = f"DO $$ BEGIN RAISE 'x' USING ERRCODE = '{state}'; END $$"
        with pytest.raises(error):
            async with database.transaction() as session:
                await session.execute(text(raising))


async def test_F14_a_statement_waits_for_a_lock_no_longer_than_configured(
    databases: Databases,
) -> None:
    url = await databases.migrated("postgresql")
    async with (
        connected(url, lock_seconds=0.2) as database,
        database.transaction() as holder,
    ):
        await holder.execute(text("LOCK TABLE users"))
        with pytest.raises(Busy):
            async with database.transaction() as session, asyncio.timeout(5):
                await session.execute(text("SELECT * FROM users"))


async def test_F14_a_statement_that_takes_too_long_is_503(databases: Databases) -> None:
    url = await databases.empty("postgresql")
    async with connected(url, command_seconds=0.2) as database:
        with pytest.raises((Busy, DatabaseUnavailable)):
            async with database.transaction() as session, asyncio.timeout(5):
                await session.execute(text("SELECT pg_sleep(10)"))
        async with database.reading() as session:
            assert await session.scalar(text("SELECT 1")) == 1


async def test_our_own_mistakes_are_not_called_faults_of_the_database(
    database: Database,
) -> None:
    with pytest.raises(Exception, match="nowhere") as raised:
        async with database.reading() as session:
            await session.execute(text("SELECT * FROM nowhere"))
    assert not isinstance(raised.value, (Busy, DatabaseUnavailable, StorageFull))


async def test_F19_a_full_disk_is_503_until_there_is_room_again(
    databases: Databases, upstream: Upstream, tmp_path: Path
) -> None:
    url = await databases.migrated("sqlite")
    file = write_config(tmp_path / "app.toml", url, upstream.base_url)
    async with served(file) as (running, api):
        ada = await api.account()
        database: Database = running.service(Database)

        async def allow(pages: int) -> None:
            async with database.transaction() as session:
                await session.execute(text(f"PRAGMA max_page_count = {pages}"))

        await allow(1)  # as many as there are
        answers = [await api.ask(ada, "x" * 4_000) for _ in range(8)]
        problem = assert_problem(answers[-1], 503, "storage_full")
        assert int(answers[-1].headers["retry-after"]) > 0
        assert problem["detail"] == "There is no room left to store anything."
        assert (await api.get("/questions/me", ada)).status_code == 200
        await allow(1_000_000)
        assert (await api.ask(ada, "x" * 4_000)).status_code == 201


@pytest.mark.slow
async def test_F20_a_file_that_another_process_keeps_writing_is_503_busy(
    databases: Databases, tmp_path: Path
) -> None:
    url = await databases.migrated("sqlite")
    file = write_config(tmp_path / "app.toml", url, database="lock_seconds = 0.2")
    async with served(file) as (_, api), connected(url) as other:
        ada = await api.account()
        async with other.transaction() as session:
            await session.execute(text("SELECT 1"))
            refused = await api.register("grace")
            assert_problem(refused, 503, "busy")
            assert refused.headers["retry-after"] == "1"
            assert (await api.get("/users/me", ada)).status_code == 200
        assert (await api.register("grace")).status_code == 201


async def test_F21_a_file_that_became_read_only_is_503(
    databases: Databases, tmp_path: Path
) -> None:
    file = write_config(tmp_path / "app.toml", await databases.migrated("sqlite"))
    async with served(file) as (running, api):
        ada = await api.account()
        database: Database = running.service(Database)
        async with database.transaction() as session:
            await session.execute(text("PRAGMA query_only = ON"))
        refused = await api.register("grace")
        assert_problem(refused, 503, "database_unavailable")
        assert (await api.get("/users/me", ada)).status_code == 200


# Starting.


async def test_F08_a_start_waits_for_the_database_only_so_long() -> None:
    url = f"postgresql+asyncpg://postgres:{PASSWORD}@127.0.0.1:9/vopros"
    async with connected(url, start_seconds=0.5) as database:
        with pytest.raises(StartRefused, match=r"did not answer in 0\.5 s") as raised:
            await database.connect_patiently()
    assert PASSWORD not in str(raised.value)


@pytest.mark.slow
async def test_F08_a_start_goes_on_when_the_database_comes_up() -> None:
    postgres = Postgres()
    try:
        url = postgres.url(await postgres.create_database())
        await asyncio.to_thread(postgres.halt)
        async with connected(url, start_seconds=30) as database:
            waiting = asyncio.create_task(database.connect_patiently())
            await asyncio.sleep(0.3)
            assert not waiting.done()
            await asyncio.to_thread(postgres.start)
            await waiting
    finally:
        postgres.stop()


async def test_a_database_that_is_not_there_is_told_at_once(
    databases: Databases,
) -> None:
    async with connected(databases.postgres.url("nosuch")) as database:
        with pytest.raises(StartRefused, match="there is no such database"):
            async with asyncio.timeout(5):
                await database.connect_patiently()


async def test_F21_what_is_no_database_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("This is not a database. " * 100)
    for name, reason in (
        ("folder", "unable to open database file"),
        ("text", "file is not a database"),
    ):
        url = f"sqlite+aiosqlite:///{tmp_path / name}"
        async with connected(url) as database:
            with pytest.raises(StartRefused, match=reason) as raised:
                async with asyncio.timeout(5):
                    await database.connect_patiently()
        assert str(tmp_path / name) in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "nonsense-canary",
        "mysql://user:canary@localhost/x",
        "postgresql+psycopg://user:canary@localhost/x",
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///:memory:",
        "sqlite+aiosqlite:///file:canary?mode=ro&uri=true",
    ],
)
def test_a_url_that_cannot_work_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(StartRefused, match=r"^\[database\] url: ") as raised:
        Database(DatabaseSettings.model_validate({"url": url}))
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize("url", ["sqlite:///var/x.db", "postgresql://localhost/x"])
def test_the_driver_need_not_be_named(url: str) -> None:
    database = Database(DatabaseSettings.model_validate({"url": url}))
    assert database.url.get_driver_name() in ("aiosqlite", "asyncpg")


async def test_the_password_may_be_given_apart_from_the_url(
    databases: Databases,
) -> None:
    url = databases.postgres.url("postgres")
    async with connected(url, password="p@ss/word") as database:
        assert database.url.password == "p@ss/word"
        await database.connect_patiently()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_BUSY_RECOVERY, Busy),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, Busy),
        (sqlite3.SQLITE_READONLY_DBMOVED, DatabaseUnavailable),
    ],
)
def test_F20_codes_that_say_more_than_busy_mean_the_same(
    code: int, kind: type[Exception]
) -> None:
    said = sqlite3.OperationalError("it is so")
    said.sqlite_errorcode = code
    assert isinstance(translate(OperationalError("SELECT 1", {}, said)), kind)


async def test_F10_a_rested_connection_that_leads_nowhere_is_replaced(
    databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has closed it: a firewall has forgotten it, and swallows what comes."""
    url = make_url(await databases.empty("postgresql"))
    swallowed: set[asyncio.StreamReader] = set()
    ways: list[asyncio.StreamReader] = []

    async def lead(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            if source not in swallowed:
                target.write(data)
        target.close()

    async def accept(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        far, back = await asyncio.open_connection(url.host, url.port)
        ways.append(reader)
        await asyncio.gather(lead(reader, back), lead(far, writer))

    firewall = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = firewall.sockets[0].getsockname()[1]
    through = url.set(port=port).render_as_string(hide_password=False)
    async with connected(through, pool_size=1, command_seconds=0.5) as found:
        async with found.reading() as session:
            first = await session.scalar(text("SELECT pg_backend_pid()"))
        swallowed.update(ways)
        monkeypatch.setattr("core.db._LONGEST_REST_SECONDS", 0)
        async with found.reading() as session:
            assert await session.scalar(text("SELECT pg_backend_pid()")) != first
    firewall.close()
