"""URLs as hosted services hand them out: translated, or refused in one line."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from core.db import Database, database_url
from core.errors import StartRefused
from core.migrate import upgrade
from core.module import in_tree_names, load_modules
from core.settings import DatabaseSettings
from tests.conftest import Databases, connected
from tests.support.certificates import Authority
from tests.support.config import write_config
from tests.support.postgres import Postgres
from tests.support.process import assert_refused, vopros

MODULES = load_modules(in_tree_names())
HOSTED = "postgresql://keeper:secret-word@db.example/vopros"


class Tls:
    """A PostgreSQL that speaks TLS, and the authorities to trust or not."""

    def __init__(self, folder: Path) -> None:
        self.trusted, self.other = folder / "trusted", folder / "other"
        for place in (self.trusted, self.other):
            place.mkdir()
            Authority(place).issue("DNS:localhost")
        self.postgres = Postgres(identity=self.trusted)

    def url(self, parameters: str, host: str = "localhost") -> str:
        query = parameters.replace("TRUSTED", str(self.trusted / "ca.pem"))
        query = query.replace("OTHER", str(self.other / "ca.pem"))
        return f"postgresql://postgres@{host}:{self.postgres.port}/postgres?{query}"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    found = Tls(tmp_path_factory.mktemp("tls"))
    yield found
    found.postgres.stop()


async def is_encrypted(database: Database) -> bool:
    query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    async with database.reading() as session:
        return bool(await session.scalar(text(query)))


@pytest.mark.parametrize(
    ("parameters", "encrypted"),
    [
        ("sslmode=disable", False),
        ("sslmode=prefer", True),
        ("sslmode=require", True),
        ("ssl=require", True),
        ("sslmode=require&sslnegotiation=postgres&channel_binding=prefer", True),
        ("sslmode=require&sslrootcert=TRUSTED", True),
        ("sslmode=verify-ca&sslrootcert=TRUSTED", True),
        ("sslmode=verify-full&sslrootcert=TRUSTED", True),
        ("sslmode=verify-full&sslrootcert=TRUSTED&sslnegotiation=postgres", True),
        ("sslmode=require&ssl_min_protocol_version=TLSv1.3", True),
    ],
)
async def test_sslmode_means_what_libpq_means_by_it(
    tls: Tls, parameters: str, encrypted: bool
) -> None:
    async with connected(tls.url(parameters)) as database:
        await database.connect_patiently()
        assert await is_encrypted(database) is encrypted


async def test_a_name_that_is_not_in_the_certificate_matters_to_verify_full_only(
    tls: Tls,
) -> None:
    lenient = tls.url("sslmode=verify-ca&sslrootcert=TRUSTED", host="127.0.0.1")
    async with connected(lenient) as database:
        await database.connect_patiently()
    strict = tls.url("sslmode=verify-full&sslrootcert=TRUSTED", host="127.0.0.1")
    async with connected(strict) as database:
        with pytest.raises(StartRefused, match="certificate"):
            await database.connect_patiently()


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_a_certificate_of_another_authority_is_refused_at_once(
    tls: Tls, mode: str
) -> None:
    url = tls.url(f"sslmode={mode}&sslrootcert=OTHER")
    async with connected(url) as database:
        with pytest.raises(StartRefused, match="the database's certificate"):
            await database.connect_patiently()


async def test_a_server_without_tls_is_told_at_once(databases: Databases) -> None:
    url = await databases.empty("postgresql")
    async with connected(f"{url}?sslmode=require") as database:
        with pytest.raises(StartRefused, match="does not accept TLS"):
            await database.connect_patiently()


async def test_migrations_take_the_same_parameters(tls: Tls) -> None:
    url = tls.url("sslmode=verify-full&sslrootcert=TRUSTED&application_name=ours")
    async with connected(url) as database:
        assert await upgrade(database, MODULES)
        async with database.migrating() as connection:
            shown = await connection.scalar(text("SHOW application_name"))
        assert shown == "ours"
        async with database.reading() as session:
            assert await session.scalar(text("SHOW application_name")) == "ours"


async def test_options_and_timeouts_reach_the_server(databases: Databases) -> None:
    url = await databases.empty("postgresql")
    query = "connect_timeout=7&options=-c%20work_mem%3D5MB&target_session_attrs=primary"
    url = url.replace("postgresql+asyncpg", "postgres")
    async with (
        connected(f"{url}?{query}") as database,
        database.reading() as session,
    ):
        assert await session.scalar(text("SHOW work_mem")) == "5MB"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"{HOSTED}?sslmode=sometimes", "sslmode must be one of"),
        (f"{HOSTED}?sslmode=require&channel_binding=require", "channel_binding"),
        (f"{HOSTED}?sslrootcert=/no/such/file&sslmode=verify-ca", "sslrootcert names"),
        (f"{HOSTED}?sslcert=/no/such/file&sslmode=require", "sslcert names"),
        (f"{HOSTED}?sslrootcert=ca.pem", "needs sslmode=require or stricter"),
        (f"{HOSTED}?connect_timeout=soon", "connect_timeout must be"),
        (f"{HOSTED}?target_session_attrs=best", "target_session_attrs must be"),
        (f"{HOSTED}?pgbouncer=true", "the parameter pgbouncer is not supported"),
        (f"{HOSTED}?host=/tmp", "belongs before the question mark"),
        (f"{HOSTED}?sslmode=require&sslmode=disable", "more than once"),
        (f"{HOSTED}?sslmode=require&ssl_min_protocol_version=SSLv3", "TLSv1.2 or"),
        (HOSTED.replace("secret-word", "secret@word"), "%40"),
        (HOSTED.replace("secret-word", "se/cret@word"), "%40"),
        ("postgresql://keeper:secret-word@db.example:port/x", "not a database URL"),
    ],
)
def test_what_cannot_be_honoured_is_one_line_of_config_check(
    tmp_path: Path, url: str, words: str
) -> None:
    with pytest.raises(StartRefused) as refused:
        database_url(DatabaseSettings.model_validate({"url": url}))
    assert words in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.slow
def test_config_check_and_serve_refuse_such_a_url_alike(tmp_path: Path) -> None:
    file = write_config(tmp_path / "app.toml", f"{HOSTED}?sslmode=sometimes")
    for command in (("config", "check"), ("serve",), ("migrate",)):
        refused = vopros("--config", file, *command)
        assert_refused(refused, "[database] url: sslmode must be one of", code=78)


def test_a_percent_encoded_password_is_taken(tmp_path: Path) -> None:
    url = HOSTED.replace("secret-word", "secret%40word%2F")
    read = database_url(DatabaseSettings.model_validate({"url": url}))
    assert read.password == "secret@word/"
    assert read.host == "db.example"
