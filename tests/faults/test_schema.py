"""A server whose database has another schema than its own: 503, and never a bug."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from core.db import Database, DatabaseNotMigrated
from core.migrate import downgrade, upgrade, version_table
from core.module import in_tree_names, load_modules
from core.testing import Running
from tests.conftest import Databases, connected, make_admin, served
from tests.support.api import Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.process import assert_refused, vopros
from tests.support.upstream import Upstream

MODULES = load_modules(in_tree_names())
CODE = "database_not_migrated"
# What needs no database: the process, and the providers in its memory.
WITHOUT = {"/health/live"}
Calls = list[tuple[str, str, Account | None]]


@pytest.fixture
async def config(
    databases: Databases, database_kind: str, tmp_path: Path, upstream: Upstream
) -> Path:
    """A configuration of a migrated database, which a start leaves as it is."""
    url = await databases.migrated(database_kind)
    as_it_is = "migrate_on_start = false"
    return write_config(
        tmp_path / "app.toml", url, upstream.base_url, database=as_it_is
    )


@asynccontextmanager
async def database_of(config: Path) -> AsyncIterator[Database]:
    url = config.read_text().partition('url = "')[2].partition('"')[0]
    async with connected(url) as database:
        yield database


async def take_back(config: Path, *names: str) -> None:
    async with database_of(config) as database:
        for name in names:
            await downgrade(database, MODULES, name)


async def calls(api: Api, user: Account, admin: Account) -> Calls:
    """Every operation, called as somebody who may."""
    document = (await api.get("/openapi.json")).json()
    found: Calls = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            is_restricted = "x-required-role" in operation
            who = admin if is_restricted else user if operation["security"] else None
            found.append((method, path, who))
    return found


BODIES: dict[str, dict[str, Any]] = {
    "/auth/register": {"username": "grace", "password": "four quiet blue whales"},
    "/auth/refresh": {"refresh_token": "vopros_rt_" + "x" * 43},
    "/auth/password": {
        "current_password": "four quiet blue whales",
        "new_password": "nine purple whales at tea",
    },
    "/questions": {"content": "Why?"},
    "/questions/stream": {"content": "Why?"},
    "/users/me": {"username": "grace"},
    "/users/{user_id}": {"is_active": True},
}


async def call(api: Api, method: str, path: str, who: Account | None) -> httpx.Response:
    url = path.replace("{session_id}", "0b0e5d3c-8f0f-4a53-9a3c-6d1c1f5a2b11")
    for name in ("{question_id}", "{user_id}"):
        url = url.replace(name, "1")
    headers = who.auth if who else {}
    if path == "/auth/token":
        form = BODIES["/auth/register"] | {"grant_type": "password"}
        return await api.http.post(url, data=form)
    body = BODIES.get(path) if method in ("post", "put", "patch") else None
    return await api.http.request(method, url, json=body, headers=headers)


def assert_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    told = [r for r in caplog.records if r.name.startswith(("core", "modules"))]
    assert [r.getMessage() for r in told if r.levelno >= logging.ERROR] == []


def hints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log advises about the schema."""
    events = ("database.behind", "database.newer")
    return [r.hint for r in caplog.records if r.getMessage() in events]  # type: ignore[attr-defined]


@pytest.mark.slow
async def test_every_route_waits_for_the_migrations_and_then_serves(
    config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(config) as (found, api):
        user, admin = await api.account("Ada"), await make_admin(found, api)
    await take_back(config, "questions", "auth", "users")
    caplog.set_level(logging.INFO)
    caplog.clear()
    async with served(config) as (_, api):
        seen = 0
        for method, path, who in await calls(api, user, admin):
            if path in WITHOUT:
                continue
            answer = await call(api, method, path, who)
            assert_problem(answer, 503, CODE)
            assert int(answer.headers["retry-after"]) > 0
            seen += 1
        assert seen == 24
        assert_no_bug(caplog)
        (hint,) = hints(caplog)
        assert "vopros migrate" in hint

        async with database_of(config) as database:
            await upgrade(database, MODULES)
        grace = await api.account("Grace")
        await ready(api)
        assert (await api.ask(grace, "Why?")).status_code == 201
        assert len(await api.newest(grace)) == 1
        assert_no_bug(caplog)


async def ready(api: Api) -> None:
    """Wait until readiness is looked up again."""
    while (await api.get("/health/ready")).status_code != 200:
        pass


async def test_a_module_that_is_behind_takes_no_other_along(
    config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await take_back(config, "questions")
    async with served(config, outlives_database=True) as (_, api):
        ada = await api.account("Ada")
        assert (await api.get("/users/me", ada)).status_code == 200
        assert_problem(await api.ask(ada, "Why?"), 503, CODE)
        assert_problem(await api.get("/questions/me", ada), 503, CODE)
        assert_problem(await api.get("/health/ready"), 503, CODE)
        assert_no_bug(caplog)


async def execute(found: Running, statements: Iterable[str]) -> None:
    async with found.service(Database).work() as connection:
        for statement in statements:
            await connection.execute(text(statement))


@pytest.mark.slow
async def test_F27_a_running_server_serves_on_beside_a_newer_schema(
    config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (table,) = (version_table(m) for m in MODULES if m.name == "questions")
    async with served(config) as (found, api):
        ada = await api.account("Ada")
        assert (await api.ask(ada, "Before?")).status_code == 201
        await execute(
            found,
            (
                f"UPDATE {table} SET version_num = '9999'",
                "ALTER TABLE users ADD COLUMN nickname varchar(9)",
                "ALTER TABLE questions RENAME COLUMN finish_reason TO ended_by",
            ),
        )
        assert (await api.get("/users/me", ada)).status_code == 200
        assert (await api.log_in(ada.username)).status_code == 200
        assert (await api.register("grace")).status_code == 201
        assert (await api.get("/health/ready")).status_code == 200
        # Only what the newer schema breaks.
        assert_problem(await api.get("/questions/me", ada), 503, CODE)
        assert (await api.get("/users/me", ada)).status_code == 200
        assert_no_bug(caplog)
        # The question is stored; what came of it cannot be.
        assert_problem(await api.ask(ada, "After?"), 503, "not_stored")
        (hint,) = hints(caplog)
        assert "upgrade this server" in hint


@pytest.mark.slow
async def test_a_new_column_without_a_default_is_no_taken_name(
    databases: Databases, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = await databases.migrated("postgresql")
    async with served(write_config(tmp_path / "app.toml", url)) as (found, api):
        (table,) = (version_table(m) for m in MODULES if m.name == "users")
        added = "ALTER TABLE users ADD COLUMN email varchar NOT NULL"
        await execute(found, [f"UPDATE {table} SET version_num = '9999'", added])
        assert_problem(await api.register("grace"), 503, CODE)
        assert_no_bug(caplog)


@pytest.mark.slow
async def test_what_the_schema_is_not_to_blame_for_stays_our_mistake(
    config: Path,
) -> None:
    async with served(config) as (found, api):
        ada = await api.account("Ada")
        await execute(
            found, ["ALTER TABLE questions RENAME COLUMN finish_reason TO ended_by"]
        )
        assert_problem(await api.get("/questions/me", ada), 500, "internal_error")


async def test_a_rule_of_a_newer_schema_is_no_bug(
    databases: Databases, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = await databases.migrated("postgresql")
    async with served(write_config(tmp_path / "app.toml", url)) as (found, api):
        (table,) = (version_table(m) for m in MODULES if m.name == "users")
        added = "ALTER TABLE users ADD CHECK (length(username) < 9)"
        await execute(found, [f"UPDATE {table} SET version_num = '9999'", added])
        assert_problem(await api.register("grace-the-second"), 503, CODE)
        await api.account("grace")
        assert_problem(await api.register("Grace"), 409, "username_taken")
        assert_no_bug(caplog)


async def test_a_column_that_is_altered_under_a_server_is_no_bug(
    databases: Databases,
    tmp_path: Path,
    upstream: Upstream,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = await databases.migrated("postgresql")
    file = write_config(tmp_path / "app.toml", url, upstream.base_url)
    async with served(file) as (found, api):
        ada = await api.account("Ada")
        for _ in range(3):
            assert (await api.ask(ada, "Why?")).status_code == 201
            assert len(await api.newest(ada))
        # PostgreSQL refuses the plans of prepared statements from now on.
        await execute(
            found,
            (
                "ALTER TABLE users ALTER COLUMN username TYPE varchar(99)",
                "ALTER TABLE questions ALTER COLUMN model TYPE varchar(999)",
            ),
        )
        for path in ("/questions/me", "/users/me") * 10:
            answer = await api.get(path, ada)
            if answer.status_code != 200:
                assert_problem(answer, 503, "busy")
        assert (await api.get("/questions/me", ada)).status_code == 200
        assert (await api.ask_when_busy(ada, "Why?")).status_code == 201
        assert_no_bug(caplog)


@pytest.mark.slow
async def test_a_statement_that_fails_while_a_migration_ends_is_no_bug(
    config: Path,
) -> None:
    await take_back(config, "questions")
    async with served(config) as (found, _), database_of(config) as other:
        with pytest.raises(DatabaseNotMigrated):
            async with found.service(Database).reading() as session:
                try:
                    await session.execute(text("SELECT 1 FROM questions"))
                finally:
                    await asyncio.sleep(1.1)  # the state is kept for a second
                    await upgrade(other, MODULES)


@pytest.mark.slow
async def test_readiness_follows_a_module_that_is_taken_back_and_brought_again(
    databases: Databases, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = await databases.migrated("postgresql")
    file = write_config(tmp_path / "app.toml", url)
    caplog.set_level(logging.INFO)
    async with served(file) as (_, api):
        await ready(api)
        await take_back(file, "questions")
        async with asyncio.timeout(60):
            while (await api.get("/health/ready")).status_code == 200:
                await asyncio.sleep(0.1)
        assert_problem(await api.get("/health/ready"), 503, CODE)
        async with database_of(file) as database:
            await upgrade(database, MODULES)
        await ready(api)
        assert len(hints(caplog)) == 1
        assert_no_bug(caplog)


async def test_the_log_says_at_the_start_what_to_run(
    databases: Databases, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = await databases.empty("postgresql")
    caplog.set_level(logging.INFO)
    file = write_config(tmp_path / "app.toml", url)
    async with served(file, outlives_database=True) as (_, api):
        (hint,) = hints(caplog)
        assert "run `vopros migrate`" in hint
        for _ in range(3):
            assert_problem(await api.register("ada"), 503, CODE)
        assert len(hints(caplog)) == 1


@pytest.mark.slow
async def test_commands_that_need_tables_say_what_to_run_in_one_line(
    databases: Databases, tmp_path: Path
) -> None:
    url = await databases.empty("postgresql")
    file = write_config(tmp_path / "app.toml", url)
    for command in (
        ("create-admin", "ada"),
        ("set-role", "ada", "user"),
        ("deactivate", "ada"),
        ("reset-password", "ada"),
        ("list",),
    ):
        refused = await asyncio.to_thread(
            vopros, "--config", file, "accounts", *command, stdin="a long password\n"
        )
        assert_refused(refused, "run `vopros migrate`")
