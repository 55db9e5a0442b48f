"""What the tests of auth share."""

import pytest

from core.testing import Running
from modules.auth.service import Auth
from tests.support.hashing import Work


@pytest.fixture
def work(service: Running, monkeypatch: pytest.MonkeyPatch) -> Work:
    """What the running service's own hasher has to do."""
    return Work(service.service(Auth), monkeypatch)
