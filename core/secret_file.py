"""Files that hold one random secret each: made once, never overwritten."""

import os
import secrets
import tempfile
from pathlib import Path

from core.errors import StartRefused

SECRET_BYTES = 32


def make_secret_file(path: Path) -> bool:
    """Write a random secret that only the owner can read; False if the file is there.

    Raises StartRefused when it cannot be written.
    """
    try:
        return not path.exists() and _make(path)
    except OSError as exc:
        raise StartRefused(
            f"{path}: the secret cannot be kept here: {exc.strerror}"
        ) from exc


def _make(path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written whole under another name first: a crash leaves no half of a secret.
    # Not named for the process: in a container its number is always the same.
    descriptor, draft = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{secrets.token_hex(SECRET_BYTES)}\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(draft)
    return True
