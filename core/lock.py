"""One server to a SQLite file: a lock beside it that dies with its holder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import StartRefused

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def server_lock(database: Path) -> Iterator[None]:
    """Hold the lock of `database`. Raises StartRefused with the holder's process id.

    The kernel drops it when the process ends, even on `kill -9`. The file stays: a
    deleted one could be locked twice, by its old and by its new self.
    """
    path = database.with_name(f"{database.name}.server")
    descriptor = _open(path)
    try:
        _lock(descriptor, database)
        # Made here and not by SQLite: what people ask is nobody else's business.
        os.close(_open(database))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """Open a file, made if need be for this account alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StartRefused(f"cannot write {path}: {exc.strerror}") from exc


def _lock(descriptor: int, database: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace") or "unknown"
        message = f"{database} is in use by another server (process {holder})"
        raise StartRefused(message) from None
