"""The database: what differs between the two, and where transactions are visible.

Services write `async with db.transaction() as session:`; nothing else commits. SQLite
is one writer connection that begins with BEGIN IMMEDIATE, so that a read-modify-write
is never lost, beside a few readers; PostgreSQL is one pool.
"""

import asyncio
import json
import os
import random
import re
import sqlite3
import ssl
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import asyncpg
from sqlalchemy import (
    BigInteger,
    ClauseElement,
    ColumnElement,
    DateTime,
    Dialect,
    Executable,
    Integer,
    MetaData,
    SQLColumnExpression,
    bindparam,
    event,
    func,
    select,
    text,
)
from sqlalchemy import exc as sa_exc
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator
from sqlalchemy.util import greenlet_spawn

from core.errors import DomainError, StartRefused, Unavailable
from core.module import ROOT
from core.postgres_url import UnsupportedParameter, connect_arguments
from core.settings import DatabaseSettings

T = TypeVar("T")

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Every module's tables; names of constraints are the same on both databases."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


BigId = BigInteger().with_variant(Integer, "sqlite")
"""A bigint on PostgreSQL; on SQLite the INTEGER that alone can be a generated key."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware moment in UTC on both databases; a naive one is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(
        self, value: datetime | None, dialect: Dialect
    ) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment needs its time zone")
        return value.astimezone(UTC)

    def process_result_value(
        self, value: datetime | None, dialect: Dialect
    ) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value


class db_now(FunctionElement[datetime]):
    """The database's clock, to the microsecond (SQLite's own: the millisecond)."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(db_now)
def _now(element: Any, compiler: Any, **options: Any) -> str:
    return "statement_timestamp()"


@compiles(db_now, "sqlite")
def _sqlite_now(element: Any, compiler: Any, **options: Any) -> str:
    # Six digits, as SQLAlchemy writes them, so that text compares as time does.
    return "(strftime('%Y-%m-%d %H:%M:%f000', 'now'))"


class db_after(FunctionElement[datetime]):
    """The database's clock, so many seconds from now; or ago, if they are negative."""

    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, seconds: ColumnElement[Any] | float) -> None:
        super().__init__(seconds)


@compiles(db_after)
def _after(element: Any, compiler: Any, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"(statement_timestamp() + make_interval(secs => {seconds}))"


@compiles(db_after, "sqlite")
def _sqlite_after(element: Any, compiler: Any, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"(strftime('%Y-%m-%d %H:%M:%f000', 'now', ({seconds}) || ' seconds'))"


def among(
    column: SQLColumnExpression[Any], ids: Iterable[int], dialect: str
) -> ColumnElement[bool]:
    """`column` is one of `ids`; one prepared statement however many there are."""
    if dialect == "postgresql":
        return column == func.any(bindparam(None, list(ids), type_=ARRAY(BigInteger)))
    value = func.json_each(json.dumps(list(ids))).table_valued("value")
    return column.in_(select(value.c.value))


def only(column: SQLColumnExpression[Any], value: Any) -> ColumnElement[bool]:
    """`column` is `value`, and an order may begin with it all the same.

    Of `==` PostgreSQL knows that ordering by it is vain. It might then walk an index of
    the rest of the order, through everybody's rows, to find the few of one.
    """
    return column == _alone(value)


class _alone(FunctionElement[Any]):
    inherit_cache = True


@compiles(_alone)
def _one_of(element: Any, compiler: Any, **options: Any) -> str:
    return f"ANY (ARRAY[{compiler.process(element.clauses, **options)}])"


@compiles(_alone, "sqlite")
def _sqlite_one_of(element: Any, compiler: Any, **options: Any) -> str:
    value: str = compiler.process(element.clauses, **options)
    return value


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached at the moment."""


class DatabaseReadOnly(DatabaseUnavailable):
    """The database cannot be written to at the moment."""


class DatabaseNotMigrated(Unavailable):
    """The database schema is not the one that this server needs."""


class Busy(Unavailable):
    """Too much is going on at the moment."""

    retry_after_seconds = 1


class StorageFull(Unavailable):
    """There is no room left to store anything."""

    retry_after_seconds = 60


PLANNING = {"enable_seqscan": "off", "enable_bitmapscan": "off", "jit": "off"}
"""What PostgreSQL must not do. There is an index for all that is asked often, in the
order in which it is wanted. A plan is kept for a while and knows no values: made while
a table was small, or for somebody who has little, it must not read a whole table, nor
all that somebody has. What is asked seldom may walk an index to its end instead."""
_LONGEST_REST_SECONDS = 5.0
_BUSY_STATES = {"55P03", "57014", "40001", "40P01"}
_GONE_STATES = {"53300", "25006", "57P01", "57P02", "57P03"}
# Classes of states: data that does not fit, a broken constraint, a wrong statement.
_OUR_MISTAKES = ("22", "23", "42")
# A statement that was written for another schema: a relation, column, function or type
# that is not there, a new column without a default, a new rule.
_SCHEMA_STATES = {
    *("3F000", "42P01", "42P10", "42703", "42704", "42804", "42883"),
    *("23502", "23514"),
}
_SCHEMA_CODES = {sqlite3.SQLITE_CONSTRAINT_NOTNULL, sqlite3.SQLITE_CONSTRAINT_CHECK}
_SCHEMA_WORDS = re.compile(
    "no such (table|column|index)|has no column named|has \\d+ columns but"
)
_BUSY_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_UNAVAILABLE_CODES = {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
}
# No waiting helps: somebody has to change the configuration or the database.
_HOPELESS = {
    "28000": "the database does not let this user in",
    "28P01": "the database refuses the user name or the password",
    "3D000": "there is no such database",
}


def translate(exc: BaseException) -> DomainError | None:
    """Say in our words what a driver raised; None for what is our own mistake."""
    if isinstance(exc, sa_exc.TimeoutError) or _is_stale_plan(exc):
        return Busy()
    if isinstance(exc, sa_exc.DBAPIError):
        return _translate_driver(exc)
    # What fails while connecting arrives bare, and so does all that asyncpg is asked
    # directly, not as an SQLAlchemyError.
    if isinstance(exc, asyncpg.PostgresError):
        return _translate_state(_sqlstate(exc))
    if isinstance(exc, (OSError, asyncpg.InterfaceError)):
        return DatabaseUnavailable()
    return None


def _is_stale_plan(exc: BaseException) -> bool:
    """Whether a column was altered since PostgreSQL planned the statement.

    Every connection plans it anew the next time.
    """
    raised = getattr(exc, "orig", None)
    known = asyncpg.InvalidCachedStatementError
    return isinstance(exc, known) or isinstance(getattr(raised, "__cause__", 0), known)


def _may_miss_schema(exc: BaseException) -> bool:
    """Whether it is what a statement raises that meets another schema than its own."""
    if _sqlstate(exc) in _SCHEMA_STATES:
        return True
    raised = getattr(exc, "orig", exc)
    if isinstance(raised, sqlite3.IntegrityError):
        return raised.sqlite_errorcode in _SCHEMA_CODES
    if isinstance(raised, sqlite3.OperationalError):
        return _SCHEMA_WORDS.search(str(raised)) is not None
    return False


@contextmanager
def unique(error: type[DomainError]) -> Iterator[None]:
    """Raise `error` where a value is taken already, and nothing but that."""
    try:
        yield
    except sa_exc.IntegrityError as exc:
        code = getattr(exc.orig, "sqlite_errorcode", None)
        if _sqlstate(exc) != "23505" and code != sqlite3.SQLITE_CONSTRAINT_UNIQUE:
            raise
        raise error from exc


def _translate_state(state: str) -> DomainError | None:
    if state in _BUSY_STATES:
        return Busy()
    if state == "53100":
        return StorageFull()
    return None if state.startswith(_OUR_MISTAKES) else DatabaseUnavailable()


def _sqlstate(exc: BaseException | None) -> str:
    """PostgreSQL's code, whether or not SQLAlchemy has wrapped the error (2.1 does)."""
    return getattr(getattr(exc, "orig", exc), "sqlstate", None) or ""


def _translate_driver(exc: sa_exc.DBAPIError) -> DomainError | None:
    state = _sqlstate(exc)
    # The low byte: what is above it says more exactly, but means the same to a caller.
    code = (getattr(exc.orig, "sqlite_errorcode", None) or 0) & 0xFF
    if state in _BUSY_STATES or code in _BUSY_CODES:
        return Busy()
    if code == sqlite3.SQLITE_FULL or state == "53100":
        return StorageFull()
    if code in _UNAVAILABLE_CODES:
        return DatabaseUnavailable()
    if exc.connection_invalidated or state in _GONE_STATES or state in _HOPELESS:
        return DatabaseUnavailable()
    if isinstance(exc.orig, OSError) or state.startswith("08"):
        return DatabaseUnavailable()
    return None


class Statement:
    """A statement for `Database.fetch`, written once for the driver."""

    def __init__(self, element: Executable, *, writes: bool = False) -> None:
        self.element = element
        self.writes = writes
        self._text = ""
        self._names: Sequence[str] = ()

    async def run(
        self,
        driver: Any,
        dialect: Dialect,
        parameters: Mapping[str, Any],
        lock: str,
    ) -> Sequence[Any]:
        """Its rows on a PostgreSQL connection."""
        if not self._text:
            compiled: Any = cast(ClauseElement, self.element).compile(dialect=dialect)
            self._text, self._names = str(compiled), compiled.positiontup or ()
        given = [parameters[name] for name in self._names]
        if not lock:
            return list(await driver.fetch(self._text, *given))
        await driver.execute(f"BEGIN; {lock}")
        found = await driver.fetch(self._text, *given)
        await driver.execute("COMMIT")
        return list(found)


class _Translation:
    """Raises our errors in the place of the driver's, at the end of a block.

    A class, since a generator costs more on the busiest paths.
    """

    def __init__(self, fits_schema: Callable[[], Awaitable[bool]]) -> None:
        """`fits_schema` is asked about a statement that may have met another schema."""
        self._fits_schema = fits_schema

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not isinstance(exc, Exception):
            return
        if _may_miss_schema(exc) and not await self._fits_schema():
            raise DatabaseNotMigrated from exc
        if isinstance(exc, sa_exc.IntegrityError):
            return
        if isinstance(exc, asyncpg.IntegrityConstraintViolationError):
            raise sa_exc.IntegrityError(None, None, exc, hide_parameters=True) from exc
        if (domain := translate(exc)) is not None:
            raise domain from exc


async def _unchecked() -> bool:
    return True


_PLAIN = _Translation(_unchecked)


class Database:
    """The application's database: `transaction()` to write, `reading()` to read."""

    def __init__(self, settings: DatabaseSettings) -> None:
        """Raises StartRefused when the URL is not one of a database we can use."""
        self.settings = settings
        self.url = database_url(settings)
        self.dialect = self.url.get_backend_name()
        if self.dialect == "sqlite":
            self._writer = _sqlite_engine(self.url, 1, settings, "BEGIN IMMEDIATE")
            self._reader = _sqlite_engine(
                self.url, settings.pool_size, settings, "BEGIN"
            )
            self._prober = _sqlite_engine(self.url, 1, settings, "BEGIN")
        else:
            self._writer = _postgresql_engine(self.url, settings.pool_size, settings)
            self._prober = _postgresql_engine(self.url, 1, settings)
            # No BEGIN and no ROLLBACK around a lone SELECT.
            self._reader = self._writer.execution_options(isolation_level="AUTOCOMMIT")
        self._translated = _PLAIN
        self._writing = async_sessionmaker(self._writer, expire_on_commit=False)
        self._reading = async_sessionmaker(self._reader, expire_on_commit=False)

    def check_schema(self, fits: Callable[[], Awaitable[bool]]) -> None:
        """Ask `fits` before an unknown table or column is called a mistake of ours.

        While it returns False, such a statement raises DatabaseNotMigrated.
        """
        self._translated = _Translation(fits)

    @property
    def sqlite_path(self) -> Path | None:
        """The file, with links resolved; None on PostgreSQL."""
        if self.dialect != "sqlite":
            return None
        return sqlite_file(self.url)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """A session whose work is committed at the end of the block, or not at all.

        Raises DatabaseUnavailable, Busy or StorageFull in the place of the driver's
        errors; IntegrityError passes, because only the caller knows what it means.
        """
        async with self._translated, self._writing() as session, session.begin():
            yield session

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[AsyncConnection]:
        """A connection for one statement that writes and is a transaction by itself.

        On PostgreSQL that saves two round trips. Raises as `transaction` does.
        """
        one = self.work() if self.dialect == "sqlite" else self.query()
        async with one as connection:
            yield connection

    @asynccontextmanager
    async def work(self) -> AsyncIterator[AsyncConnection]:
        """The same for several statements, committed together at the block's end."""
        async with self._translated, self._writer.begin() as connection:
            yield connection

    @asynccontextmanager
    async def query(self) -> AsyncIterator[AsyncConnection]:
        """A connection for one statement that reads, where a session costs too much."""
        async with self._translated, self._reader.connect() as connection:
            yield connection

    async def fetch(
        self, statement: "Statement", parameters: Mapping[str, Any], *, lock: str = ""
    ) -> Sequence[Any]:
        """The rows of one statement, which is a transaction by itself.

        `lock` is SQL that must come first in that transaction, on PostgreSQL only. For
        the busiest paths: there this asks asyncpg, at a third of what SQLAlchemy's way
        there takes. Raises as `transaction` does.
        """
        if self.dialect == "sqlite":
            one = self.statement() if statement.writes else self.query()
            async with one as connection:
                return (await connection.execute(statement.element, parameters)).all()
        return await self._with_driver(
            lambda driver: statement.run(driver, self._writer.dialect, parameters, lock)
        )

    async def _with_driver(self, work: Callable[[Any], Awaitable[T]]) -> T:
        async with self._translated:
            lent = await greenlet_spawn(self._writer.sync_engine.raw_connection)
            try:
                done = await work(lent.driver_connection)
            except BaseException:
                # In the middle of whatever it was.
                await greenlet_spawn(lent.invalidate)
                raise
            # Nothing is open on it, and the pool has room: there is nothing to await.
            lent.close()
            return done

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A session that only reads. Raises as `transaction` does."""
        async with self._translated, self._reading() as session:
            yield session

    async def connect_patiently(self) -> None:
        """Wait for a database that is still starting, `start_seconds` at most.

        Raises StartRefused with the reason, at once when no waiting would help.
        """
        seconds = self.settings.start_seconds
        deadline = asyncio.get_running_loop().time() + seconds
        pause = 0.2
        path = self.sqlite_path
        # SQLite itself says so at the first write, not at BEGIN IMMEDIATE.
        if path is not None and path.exists() and not os.access(path, os.W_OK):
            raise StartRefused(f"{path}: this file is read-only")
        while True:
            try:
                async with self.reading() as session:
                    await session.execute(text("SELECT 1"))
                return
            except Unavailable as exc:
                if reason := self._hopeless(exc):
                    raise StartRefused(reason) from exc
                if asyncio.get_running_loop().time() + pause > deadline:
                    problem = f"the database did not answer in {seconds:g} s"
                    raise StartRefused(problem) from exc
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(2 * pause, 5)

    async def open_all(self) -> None:
        """Open every connection of the pool, so that no question has to wait for one.

        As many as there are to be had: a server can begin with fewer.
        """
        async with AsyncExitStack() as stack:
            with suppress(Unavailable):
                for _ in range(self.settings.pool_size):
                    await stack.enter_async_context(self.query())

    def _hopeless(self, exc: Unavailable) -> str | None:
        """Why trying again is in vain; None when it may help."""
        if self.dialect != "sqlite":
            cause = exc.__cause__
            if isinstance(cause, ssl.SSLCertVerificationError):
                return f"the database's certificate: {cause.verify_message}"
            # asyncpg has no class of its own for it.
            if isinstance(cause, ConnectionError) and "SSL" in str(cause):
                return "the database does not accept TLS, which sslmode asks for"
            return _HOPELESS.get(_sqlstate(cause))
        if isinstance(exc, Busy):
            return None
        return f"{self.sqlite_path}: {getattr(exc.__cause__, 'orig', exc)}"

    @asynccontextmanager
    async def probing(self) -> AsyncIterator[AsyncConnection]:
        """A connection that no request takes: being busy is not being down."""
        async with _PLAIN, self._prober.connect() as connection:
            yield connection

    async def is_read_only(self) -> bool:
        """Ask whether nothing can be written now: a standby, or a write-protected file.

        Raises DatabaseUnavailable or Busy.
        """
        async with self.probing() as connection:
            if self.dialect == "postgresql":
                shown = await connection.scalar(text("SHOW transaction_read_only"))
                return bool(shown == "on")
            await connection.execute(text("SELECT 1"))
        path = self.sqlite_path
        return path is not None and path.exists() and not os.access(path, os.W_OK)

    @asynccontextmanager
    async def migrating(self) -> AsyncIterator[AsyncConnection]:
        """A connection of its own for schema changes; the caller commits.

        On SQLite foreign keys are off, or rebuilding a table would cascade into
        deleting the rows that refer to it.
        """
        engine = (
            _sqlite_engine(self.url, 1, self.settings, "BEGIN IMMEDIATE", keys=False)
            if self.dialect == "sqlite"
            else _postgresql_engine(self.url, 1, self.settings, is_patient=True)
        )
        try:
            async with _PLAIN, engine.connect() as connection:
                yield connection
        finally:
            await engine.dispose()

    async def close(self) -> None:
        """Close every connection."""
        for engine in (self._writer, self._reader, self._prober):
            await engine.dispose()


def database_url(settings: DatabaseSettings) -> URL:
    """Read the URL and name its async driver. Raises StartRefused, showing no value.

    A relative path of SQLite's begins at the project's root, wherever a command is
    typed: it must always be the same database.
    """
    written = settings.url.get_secret_value()
    # What is before the last one would be taken for the name of a host, and be shown.
    ahead = written.partition("?")[0]
    if ahead.count("@") > 1 and not ahead.startswith("sqlite"):
        problem = "a password's @ must be written %40, or be in password_file"
        raise StartRefused(f"[database] url: {problem}")
    try:
        url = make_url(re.sub("^postgres(?=[:+])", "postgresql", written))
    except (ArgumentError, ValueError):
        raise StartRefused("[database] url: this is not a database URL") from None
    drivers = {"postgresql": "asyncpg", "sqlite": "aiosqlite"}
    backend, _, driver = url.drivername.partition("+")
    if drivers.get(backend) is None or driver not in ("", drivers[backend]):
        known = " or ".join(f"{name}+{drivers[name]}" for name in drivers)
        raise StartRefused(f"[database] url: must begin with {known}")
    path = url.database or ":memory:"
    if backend == "sqlite" and path.startswith((":memory:", "file:")):
        raise StartRefused("[database] url: SQLite needs the path of a file")
    if settings.password is not None:
        url = url.set(password=settings.password.get_secret_value())
    if backend == "sqlite":
        url = url.set(database=str(ROOT / path))
    else:
        try:
            connect_arguments(url)
        except UnsupportedParameter as exc:
            raise StartRefused(f"[database] url: {exc}") from None
    return url.set(drivername=f"{backend}+{drivers[backend]}")


def sqlite_file(url: URL) -> Path:
    """The file of a SQLite database, with links resolved."""
    return Path(url.database or "").resolve()


def _sqlite_engine(
    url: URL,
    pool_size: int,
    settings: DatabaseSettings,
    begin: str,
    *,
    keys: bool = True,
) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=settings.pool_wait_seconds,
        hide_parameters=True,
        # The driver's own transactions lose updates: we say BEGIN ourselves.
        connect_args={"isolation_level": None},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(settings.lock_seconds * 1000)}")
        cursor.execute("PRAGMA journal_mode = WAL")
        # An acknowledged question survives the loss of power.
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute(f"PRAGMA foreign_keys = {'ON' if keys else 'OFF'}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def start(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _postgresql_engine(
    url: URL, pool_size: int, settings: DatabaseSettings, *, is_patient: bool = False
) -> AsyncEngine:
    # A migration may take as long as it takes.
    command_seconds = None if is_patient else settings.command_seconds
    limits = {
        "application_name": "vopros",
        "lock_timeout": f"{int(settings.lock_seconds * 1000)}ms",
        "idle_in_transaction_session_timeout": "15s",
    }
    if command_seconds is not None:
        limits["statement_timeout"] = f"{int(command_seconds * 1000)}ms"
    if not is_patient:
        limits |= PLANNING
    url, given = connect_arguments(url)
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=settings.pool_wait_seconds,
        pool_recycle=1800,
        # The connection used last has every statement prepared; others may rest.
        pool_use_lifo=True,
        hide_parameters=True,
        connect_args={
            "timeout": settings.connect_seconds,
            "command_timeout": command_seconds,
            **given,
            "server_settings": limits | given["server_settings"],
        },
    )
    _check_before_use(engine)
    return engine


def _check_before_use(engine: AsyncEngine) -> None:
    """Never hand out a connection that has died while nobody used it.

    A server that stops closes its connections, which is seen without asking. Only one
    that has rested for a while is asked: that costs more than a small query does.
    """

    @event.listens_for(engine.sync_engine, "checkin")
    def note(connection: Any, record: Any) -> None:
        record.info["rests_since"] = time.monotonic()

    @event.listens_for(engine.sync_engine, "checkout")
    def check(connection: Any, record: Any, proxy: Any) -> None:
        rests_since = record.info.get("rests_since")
        if rests_since is None:
            return
        is_dead = connection.driver_connection.is_closed()
        if not is_dead and time.monotonic() - rests_since > _LONGEST_REST_SECONDS:
            try:
                connection.ping()
            except Exception:
                # However it fails, nobody gets it: there are others, or a new one.
                is_dead = True
        if is_dead:
            raise sa_exc.DisconnectionError
