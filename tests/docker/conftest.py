"""One engine for all tests that are marked `docker`."""

import signal
from collections.abc import Iterator

import pytest

from tests.docker.engine import Engine, NoEngine, running_engine


@pytest.fixture(scope="session")
def engine(pytestconfig: pytest.Config) -> Iterator[Engine]:
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(line, flush=True)

    # Whoever ends this means the engine, too: as after Ctrl-C, fixtures clean up.
    usual = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with running_engine(say) as found:
            yield found
    except NoEngine as cause:
        pytest.exit(f"docker-check: {cause}", returncode=1)
    finally:
        signal.signal(signal.SIGTERM, usual)
