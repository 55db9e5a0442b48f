"""What every test can ask for: both databases, a model to misbehave, a served API."""

import logging
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from core.db import Database
from core.migrate import upgrade
from core.settings import DatabaseSettings, load_settings
from core.testing import Running, running
from modules.auth.accounts import Accounts
from tests.support.api import CANARY, PASSWORD, Account, Api
from tests.support.config import write_config
from tests.support.gigachat import TOKEN
from tests.support.postgres import Postgres
from tests.support.upstream import KEY, Upstream, upstream_of_its_own

DATABASES = ("sqlite", "postgresql")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run soaks at full length")


@pytest.fixture(scope="session")
def is_soak(request: pytest.FixtureRequest) -> bool:
    """Whether a test that is marked `soak` runs at its full length."""
    return bool(request.config.getoption("soak"))


class Databases:
    """Fresh, migrated databases of either kind, copied from one template each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._postgres: Postgres | None = None
        self._templates: dict[str, str] = {}
        self._made = 0

    @property
    def postgres(self) -> Postgres:
        if self._postgres is None:
            self._postgres = Postgres()
        return self._postgres

    async def empty(self, kind: str) -> str:
        """The URL of a database with nothing in it."""
        if kind == "postgresql":
            return self.postgres.url(await self.postgres.create_database())
        self._made += 1
        return f"sqlite+aiosqlite:///{self._folder}/{self._made}/vopros.db"

    async def migrated(self, kind: str) -> str:
        """The URL of a database at the newest revision."""
        if kind not in self._templates:
            self._templates[kind] = await self.empty(kind)
            await _migrate(self._folder, self._templates[kind])
        template = self._templates[kind]
        if kind == "postgresql":
            name = template.rpartition("/")[2]
            return self.postgres.url(await self.postgres.create_database(name))
        fresh = await self.empty(kind)
        source, target = (Path(u.partition(":///")[2]) for u in (template, fresh))
        target.parent.mkdir(parents=True)
        shutil.copy(source, target)
        return fresh

    def close(self) -> None:
        if self._postgres is not None:
            self._postgres.stop()


async def _migrate(folder: Path, url: str) -> None:
    settings = load_settings(write_config(folder / "template.toml", url), {})
    database = Database(settings.section(DatabaseSettings))
    if database.sqlite_path is not None:
        database.sqlite_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        await upgrade(database, settings.modules)
    finally:
        await database.close()


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    found = Databases(tmp_path_factory.mktemp("databases"))
    yield found
    found.close()


@pytest.fixture(scope="session", params=DATABASES)
def database_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@asynccontextmanager
async def connected(url: str, **settings: Any) -> AsyncIterator[Database]:
    """A database, outside any application."""
    database = Database(DatabaseSettings.model_validate({"url": url, **settings}))
    if database.sqlite_path is not None:
        database.sqlite_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield database
    finally:
        await database.close()


@pytest.fixture
async def database(databases: Databases, database_kind: str) -> AsyncIterator[Database]:
    """One with nothing in it, of either kind in turn."""
    async with connected(await databases.empty(database_kind)) as found:
        yield found


@pytest.fixture(scope="module")
async def database_url(databases: Databases, database_kind: str) -> str:
    """A migrated database of this test file's own, of either kind in turn."""
    return await databases.migrated(database_kind)


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    """The language model of this test file."""
    async with upstream_of_its_own() as fake:
        yield fake


@pytest.fixture(scope="module")
async def service(
    tmp_path_factory: pytest.TempPathFactory,
    database_url: str,
    upstream: Upstream,
    secrets_stay_inside: "Recorder",
) -> AsyncIterator[Running]:
    """The API, served, with the fake model behind it."""
    file = tmp_path_factory.mktemp("service") / "app.toml"
    write_config(file, database_url, upstream.base_url)
    async with running(file) as found:
        yield found
        await assert_no_secret_in(found)


@pytest.fixture
async def api(service: Running) -> AsyncIterator[Api]:
    client = Api(service.url)
    yield client
    await client.close()


@pytest.fixture
async def ada(api: Api) -> Account:
    """Somebody new."""
    return await api.account()


@pytest.fixture
async def admin(service: Running, api: Api) -> Account:
    """A new administrator."""
    return await make_admin(service, api)


@pytest.fixture(scope="module")
async def somebody(service: Running) -> Account:
    """One account for a whole file, whose tests must leave it as it is."""
    client = Api(service.url)
    account = await client.account()
    await client.close()
    return account


@pytest.fixture(scope="module")
async def some_admin(service: Running) -> Account:
    """One administrator for a whole file."""
    client = Api(service.url)
    account = await make_admin(service, client)
    await client.close()
    return account


async def make_admin(service: Running, api: Api) -> Account:
    """An administrator, made as the command line makes one."""
    import uuid

    name = f"a{uuid.uuid4().hex[:12]}"
    user = await service.service(Accounts).create_admin(name, PASSWORD)
    return await api.signed_in(user.id, name)


# Canaries: a key, a token, a password and refused input, nowhere but where they belong.

CANARIES = (KEY, TOKEN, PASSWORD, CANARY)


class Recorder(logging.Handler):
    """Everything that was logged, as every formatter could show it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "httpx":
            return  # The tests' own client tells what it sends.
        self.lines.append(f"{self.format(record)} {record.__dict__!r}")


@pytest.fixture(scope="session", autouse=True)
def secrets_stay_inside() -> Iterator[Recorder]:
    recorder = Recorder()
    root = logging.getLogger()
    root.addHandler(recorder)
    root.setLevel(logging.INFO)
    yield recorder
    for line in recorder.lines:
        assert not any(canary in line for canary in CANARIES), line


@pytest.fixture(autouse=True)
def output_holds_no_secret(
    request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> Iterator[None]:
    yield
    captured = capfd.readouterr()
    for canary in CANARIES:
        assert canary not in captured.out
        assert canary not in captured.err


async def assert_no_secret_in(service: Running) -> None:
    async with Api(service.url).http as client:
        document = await client.get("/openapi.json")
        # A service may be told to show none; a broken one is no such thing.
        assert document.status_code in (200, 404), document.text
        assert_no_canary(document.text)
    async with service.service(Database).reading() as session:
        for table in ("users", "auth_credentials", "auth_sessions", "questions"):
            rows = (await session.execute(text(f"SELECT * FROM {table}"))).all()
            assert_no_canary(repr(rows))


def assert_no_canary(text: str) -> None:
    """Neither the provider's key nor anybody's password is in it."""
    for canary in CANARIES:
        assert canary not in text


@asynccontextmanager
async def served(
    file: Path,
    environ: Mapping[str, str] | None = None,
    *,
    outlives_database: bool = False,
) -> AsyncIterator[tuple[Running, Api]]:
    """A service of a configuration of the test's own, and a client."""
    async with running(file, environ) as found:
        client = Api(found.url)
        try:
            yield found, client
            if not outlives_database:
                await assert_no_secret_in(found)
        finally:
            await client.close()
