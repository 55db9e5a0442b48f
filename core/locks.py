"""Advisory locks of PostgreSQL: each has a name, and a number derived from it.

Two locks with one number are one lock: work that has nothing to do with each other
would wait. So no number is written down anywhere, and no other file takes such a lock.
"""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class AdvisoryLock:
    """A lock of the whole database, for all processes that use it.

    A module puts its own name in front: `<module>.<purpose>`.
    """

    name: str

    @property
    def key(self) -> int:
        """The number that PostgreSQL knows it by: a signed bigint, always the same."""
        digest = hashlib.sha256(f"vopros:{self.name}".encode()).digest()
        return int.from_bytes(digest[:8], signed=True)

    @property
    def try_for_session(self) -> str:
        """SQL that takes the lock unless it is held; kept until the connection ends."""
        return f"SELECT pg_try_advisory_lock({self.key})"

    @property
    def take_for_transaction(self) -> str:
        """SQL that waits for the lock; kept until the transaction ends."""
        return f"SELECT pg_advisory_xact_lock({self.key})"


MIGRATION = AdvisoryLock("migration")
"""Held by the one process that changes the schema."""
