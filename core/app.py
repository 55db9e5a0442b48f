"""Assembly: `create_app` builds everything from settings, with no globals."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, cast

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, ExceptionHandler

from core import docs, health, openapi, problems
from core.body import BodyGuard
from core.db import Database
from core.errors import DomainError, StartRefused
from core.export import Exports
from core.health import Health
from core.http import HeaderGuard, RequestStep, RootPath
from core.lock import server_lock
from core.migrate import is_behind, load_models, upgrade
from core.module import (
    Module,
    ModuleContext,
    describe_module,
    import_part,
    refuse_failure,
)
from core.resources import MethodGuard, Resources, by_specificity
from core.schema_check import SchemaCheck
from core.security import Authenticator, first_protected
from core.services import Services
from core.settings import (
    DatabaseSettings,
    OpenApiSettings,
    ServerSettings,
    Settings,
    is_loopback,
    unguarded,
)
from core.watchdog import watched_loop

log = logging.getLogger(__name__)

_CORS_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
# What of a response a page elsewhere may read, besides its body.
_CORS_EXPOSED = (
    *("Allow", "Content-Disposition", "Idempotency-Replayed", "Location"),
    *("RateLimit", "RateLimit-Policy", "Retry-After", "WWW-Authenticate"),
    "X-Request-ID",
)
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def create_app(settings: Settings) -> FastAPI:
    """Build the application; nothing is opened before its lifespan begins.

    Raises StartRefused for a configuration that cannot work.
    """
    server = settings.section(ServerSettings)
    context = new_context(settings)
    services = context.services

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with opened(context, settings.modules, serving=True):
            _refuse_unguarded(app, services)
            yield

    app = FastAPI(
        version=version("vopros"),
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # The service logs and measures itself; a configured SDK changes nothing here.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.services = services
    load_models(settings.modules)
    _mount(app, settings.modules)
    docs.install(app, serve=server.docs)
    _order(app)
    problems.install(app)
    _add_steps(app, settings)
    return app


def new_context(settings: Settings) -> ModuleContext:
    """What modules need to open, for the application or for a command.

    Raises StartRefused.
    """
    services = Services()
    database = Database(settings.section(DatabaseSettings))
    services.add(Database, database)
    schema = SchemaCheck(database, settings.modules)
    services.add(SchemaCheck, schema)
    database.check_schema(schema.is_current)
    services.add(Health, Health(database, schema))
    services.add(OpenApiSettings, settings.section(OpenApiSettings))
    context = ModuleContext(settings, database, services, lambda: datetime.now(UTC))
    services.add(Exports, Exports(context, settings.modules))
    return context


@asynccontextmanager
async def opened(
    context: ModuleContext, modules: Sequence[Module], *, serving: bool = False
) -> AsyncIterator[ModuleContext]:
    """Open modules in order, and close them in reverse.

    `serving` also takes the lock of a SQLite file, brings the database up to date, and
    watches over the event loop.
    """
    database = context.database
    context = replace(context, is_serving=serving)
    with ExitStack() as locks:
        try:
            if serving:
                if database.sqlite_path is not None:
                    locks.enter_context(server_lock(database.sqlite_path))
                await _prepare(context, modules)
            async with AsyncExitStack() as stack:
                if serving:
                    await stack.enter_async_context(watched_loop())
                for module in modules:
                    if module.lifespan is not None:
                        with refuse_failure(describe_module(module.name), "opened"):
                            opening = module.lifespan(context)
                            await stack.enter_async_context(opening)
                yield context
        finally:
            await database.close()


async def _prepare(context: ModuleContext, modules: Sequence[Module]) -> None:
    database = context.database
    try:
        await database.connect_patiently()
        if context.settings.migrates_on_start:
            if moved := await upgrade(database, modules):
                log.info("database.migrated", extra={"modules": moved})
        else:
            await is_behind(database, modules)
            # Says in the log what to do, before anybody asks.
            await context.services.get(SchemaCheck).state()
        await database.open_all()
    except DomainError as error:
        raise StartRefused(error.detail) from error


def _mount(app: FastAPI, modules: Sequence[Module]) -> None:
    tags = []
    for module in modules:
        if module.router is None:
            continue
        found = import_part(module, module.router, "router")
        # As they are: an included router is one more to be matched for every request.
        app.router.routes.extend(found.router.routes)
        tags += [openapi.tag_of(found, str(tag)) for tag in found.router.tags]
    app.include_router(health.router)
    tags.sort(key=lambda tag: tag["name"])
    app.openapi_tags = [*tags, openapi.tag_of(health, "health")]


def _order(app: FastAPI) -> None:
    """Try the routes with fixed paths first, and of those the busiest."""
    routes = by_specificity(app.router.routes)
    routes.sort(key=lambda route: not getattr(route, "is_direct", False))
    app.router.routes[:] = routes


def _add_steps(app: FastAPI, settings: Settings) -> None:
    server = settings.section(ServerSettings)
    allowed = server.allowed_hosts
    if not allowed and is_loopback(server.host):
        # A page elsewhere must not reach this server through a name of its own.
        allowed = (*_LOOPBACK_NAMES, server.host)
    resources = Resources(app.routes)
    steps: ASGIApp = ExceptionMiddleware(
        AsyncExitStackMiddleware(app.router),
        handlers=cast(dict[Any, ExceptionHandler], app.exception_handlers),
    )
    steps = BodyGuard(
        steps,
        resources=resources,
        longest_bytes=server.longest_body_bytes,
        seconds=server.body_seconds,
    )
    steps = MethodGuard(steps, resources=resources)
    steps = HeaderGuard(
        steps,
        allowed_hosts=allowed,
        longest_headers_bytes=server.longest_headers_bytes,
    )
    steps = RequestStep(steps)
    if server.cors_origins:
        # Around everything: without its headers a browser hides even a 500.
        steps = CORSMiddleware(
            steps,
            allow_origins=server.cors_origins,
            allow_methods=_CORS_METHODS,
            allow_headers=("*",),
            expose_headers=_CORS_EXPOSED,
        )
    if server.root_path:
        steps = RootPath(steps, root_path=server.root_path)
    # In the place of the framework's own: that has something around everything for
    # errors that nobody has told, for telemetry of those, and for the size of bodies,
    # and behind `RequestStep` and `BodyGuard` none of it has anything to do. Handlers
    # of errors that are added from now on are not asked.
    app.middleware_stack = steps


def _refuse_unguarded(app: FastAPI, services: Services) -> None:
    """Protected routes need someone who can tell callers apart."""
    if Authenticator not in services and (path := first_protected(app.routes)):
        raise StartRefused(unguarded(path))
