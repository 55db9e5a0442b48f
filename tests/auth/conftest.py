"""What the tests of auth share."""

import pytest

from core.testing import Running
from tests.support.hashing import Work


@pytest.fixture
def work(service: Running, monkeypatch: pytest.MonkeyPatch) -> Work:
    """What the running service has to do to hash and verify passwords."""
    return Work(monkeypatch)
