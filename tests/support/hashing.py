"""Counts the work of the libraries that hash passwords; they still do it."""

import threading
from typing import Any

import argon2
import bcrypt
import pytest


class Work:
    """How often passwords were hashed and verified since the last look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._counts = {"hash": 0, "verify": 0}
        self._lock = threading.Lock()
        self.last_hash = ""
        """The one that argon2 verified last."""
        self._count("hash", argon2.low_level, "hash_secret", monkeypatch)
        self._count("verify", argon2.low_level, "verify_secret", monkeypatch)
        # Only to verify: we make none.
        self._count("verify", bcrypt, "hashpw", monkeypatch)

    def _count(
        self, kind: str, library: Any, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        function = getattr(library, name)

        def counting(*arguments: Any, **named: Any) -> Any:
            with self._lock:
                self._counts[kind] += 1
                if name == "verify_secret":
                    self.last_hash = arguments[0].decode()
            return function(*arguments, **named)

        monkeypatch.setattr(library, name, counting)

    def since_last_look(self) -> tuple[int, int]:
        """Hashes made and passwords verified."""
        found = self._counts["hash"], self._counts["verify"]
        self._counts.update(hash=0, verify=0)
        return found
