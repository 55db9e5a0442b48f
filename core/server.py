"""Serving: uvicorn around an application opened before it and closed after it."""

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from core.app import create_app
from core.errors import StartRefused
from core.health import Health
from core.logs import configure_logging
from core.settings import LogSettings, ServerSettings, Settings
from core.workers import Worker, Workers

log = logging.getLogger(__name__)

_ENDING = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """Announces itself once it listens, and stops being ready once told to end."""

    def __init__(
        self, config: uvicorn.Config, health: Health, worker: Worker | None = None
    ) -> None:
        super().__init__(config)
        self._health = health
        self._worker = worker

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.started:
            return
        if self._worker is None or self._worker.is_first:
            self._announce()
        if self._worker is not None:
            self._worker.serves()
            parent = self._worker.parent
            asyncio.get_running_loop().add_reader(parent, self._orphaned, parent)

    def _orphaned(self, parent: socket.socket) -> None:
        """Nobody is left who would end or replace this process."""
        asyncio.get_running_loop().remove_reader(parent)
        self.handle_exit(signal.SIGTERM, None)

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
            signal.signal(signal.SIGINT, before[signal.SIGINT])
            # Told twice, by a parent and by whoever ends its group, it closes as well.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._health.draining = True
        super().handle_exit(sig, frame)


def serve(settings: Settings, run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    """Serve until a signal ends it, each process in a loop of `run`'s.

    Raises StartRefused.
    """
    configure_logging(settings.section(LogSettings))
    address = settings.section(ServerSettings)
    if address.workers > 1 and not hasattr(os, "fork"):
        raise StartRefused("[server] workers: this system can have only one")
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as listener:
        # An address that cannot be had is known before anything else is opened.
        with _refusing(address):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address.host, address.port))
        if address.workers == 1:
            run(_serve(settings, listener))
            return

        def work(worker: Worker) -> None:
            run(_serve(settings, listener, worker))

        Workers(address.workers, listener, work).run()


async def _serve(
    settings: Settings, listener: socket.socket, worker: Worker | None = None
) -> None:
    """One process's serving, from the opening of the application to its close."""
    app = create_app(settings)
    # Not uvicorn's lifespan: a refused start is one line here, not a traceback.
    async with app.router.lifespan_context(app):
        # What lives as long as the process the collector need not look at.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        with _refusing(settings.section(ServerSettings)):
            listener.listen()
        health = app.state.services.get(Health)
        server = Server(uvicorn_config(app, settings), health, worker)
        await server.serve([listener])


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
