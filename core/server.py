"""Serving: uvicorn around an application opened before it and closed after it."""

import gc
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from core.app import create_app
from core.errors import StartRefused
from core.health import Health
from core.logs import configure_logging
from core.settings import LogSettings, ServerSettings, Settings

log = logging.getLogger(__name__)

_ENDING = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """Announces itself once it listens, and stops being ready once told to end."""

    def __init__(self, config: uvicorn.Config, health: Health) -> None:
        super().__init__(config)
        self._health = health

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()

    def _announce(self) -> None:
        for name, note in self._health.notes.items():
            log.info(f"{name}: {note}")
        listening = self.servers[0].sockets[0].getsockname()
        host = f"[{listening[0]}]" if ":" in listening[0] else listening[0]
        root = f"http://{host}:{listening[1]}{self.config.root_path}"
        log.info(f"Swagger: {root}/docs")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals end the serving and no more.

        uvicorn would raise them again at once, and the process would be gone before
        the application has been closed and every outcome stored.
        """
        before = {sig: signal.signal(sig, self.handle_exit) for sig in _ENDING}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._health.draining = True
        super().handle_exit(sig, frame)


async def serve(settings: Settings) -> None:
    """Serve until a signal ends it. Raises StartRefused."""
    configure_logging(settings.section(LogSettings))
    app = create_app(settings)
    address = settings.section(ServerSettings)
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as listener:
        # An address that cannot be had is known before anything else is opened.
        with _refusing(address):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address.host, address.port))
        # Not uvicorn's lifespan: a refused start is one line here, not a traceback.
        async with app.router.lifespan_context(app):
            # What lives as long as the process the collector need not look at.
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000, 20, 20)
            with _refusing(address):
                listener.listen()
            health = app.state.services.get(Health)
            await Server(uvicorn_config(app, settings), health).serve([listener])


@contextmanager
def _refusing(address: ServerSettings) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        problem = f"cannot listen on {address.host} port {address.port}"
        raise StartRefused(f"{problem}: {exc.strerror}") from exc


def uvicorn_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves the application; its lifespan is opened by the caller."""
    server = settings.section(ServerSettings)
    return uvicorn.Config(
        app,
        host=server.host,
        port=server.port,
        lifespan="off",
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(server.trusted_proxies),
        forwarded_allow_ips=list(server.trusted_proxies),
        timeout_graceful_shutdown=server.shutdown_seconds,
    )
