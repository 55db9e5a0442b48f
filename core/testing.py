"""The harness for tests of modules, those outside this tree too.

It serves a real application on a free port of loopback, in the loop of the test.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from fastapi import FastAPI

from core.app import create_app
from core.health import Health
from core.security import Authenticator, InvalidToken, Principal
from core.server import Server, uvicorn_config
from core.services import Services
from core.settings import Settings, load_settings


@dataclass(frozen=True)
class Running:
    """A served application."""

    url: str
    app: FastAPI
    settings: Settings

    def service(self, kind: type[Any]) -> Any:
        """One of the application's services."""
        return self.app.state.services.get(kind)


class _QuietServer(Server):
    """Leaves the process's signals alone."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def running(
    file: Path,
    environ: Mapping[str, str] | None = None,
    authenticator: Authenticator | None = None,
) -> AsyncIterator[Running]:
    """Serve what a configuration file describes; raises what refuses the start.

    `authenticator` is for modules under test when none that is enabled brings one.
    """
    settings = load_settings(file, environ or {}, {("server", "port"): "0"})
    app = create_app(settings)
    if authenticator is not None:
        services: Services = app.state.services
        services.add(Authenticator, authenticator)
    async with app.router.lifespan_context(app):
        server = _QuietServer(
            uvicorn_config(app, settings), app.state.services.get(Health)
        )
        serving = asyncio.create_task(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.005)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        try:
            yield Running(f"http://{host}:{port}", app, settings)
        finally:
            server.should_exit = True
            await serving


class NamedCallers:
    """An `Authenticator` for modules under test: the token is the user's number.

    `7` is user 7, `7:admin` an administrator; anything else is refused.
    """

    token_url = "/token"

    async def authenticate(self, token: str) -> Principal:
        """Raises InvalidToken."""
        number, _, role = token.partition(":")
        if not number.isdigit():
            raise InvalidToken
        return Principal(int(number), f"user-{number}", role or "user", UUID(int=0))
