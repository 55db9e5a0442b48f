"""Counts what the password hasher of a running service does; it still does it."""

from typing import Any

import pytest

from modules.auth.service import Auth


class Work:
    """How often passwords were hashed and verified since the last look."""

    def __init__(self, auth: Auth, monkeypatch: pytest.MonkeyPatch) -> None:
        self._counts = {"hash": 0, "verify": 0}
        hasher = auth._passwords._argon2
        for name in self._counts:
            counting = self._counting(name, getattr(hasher, name))
            monkeypatch.setattr(hasher, name, counting)

    def _counting(self, name: str, method: Any) -> Any:
        def counting(*arguments: Any) -> Any:
            self._counts[name] += 1
            return method(*arguments)

        return counting

    def since_last_look(self) -> tuple[int, int]:
        """Hashes made and passwords verified."""
        found = self._counts["hash"], self._counts["verify"]
        self._counts.update(hash=0, verify=0)
        return found
