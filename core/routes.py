"""A route for the busiest operations: it calls what they depend on directly."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.types import Receive, Scope, Send


class _Plan(NamedTuple):
    """How the arguments of an operation are found."""

    found: tuple[tuple[str, Callable[..., Awaitable[Any]], str], ...]
    """Name, dependency, and what that calls the request."""
    request: str | None
    body: tuple[str, TypeAdapter[Any]] | None


class DirectRoute(APIRoute):
    """What the framework works out for every request is worked out once here.

    For operations that answer with a Response of their own and take nothing but the
    request, a JSON body and dependencies on the request alone; any other is served as
    by its base class. Signatures, documents and errors are the same. Not for a router
    that is included with dependencies of its own: nobody would ask those.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._plan = _plan(self)

    @property
    def is_direct(self) -> bool:
        """Whether it is one of those; its path has no parameters then."""
        return self._plan is not None

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        plan = self._plan
        if plan is None or scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        request = Request(scope, receive, send)
        arguments: dict[str, Any] = {}
        for name, dependency, parameter in plan.found:
            arguments[name] = await dependency(**{parameter: request})
        if plan.request is not None:
            arguments[plan.request] = request
        if plan.body is not None:
            name, adapter = plan.body
            arguments[name] = _read(adapter, await request.body())
        response: Response = await self.endpoint(**arguments)
        await response(scope, receive, send)


def _plan(route: APIRoute) -> _Plan | None:
    """None for an operation that needs more than is done here."""
    dependant = route.dependant
    answers = getattr(route.endpoint, "__annotations__", {}).get("return")
    is_direct = isinstance(answers, type) and issubclass(answers, Response)
    if not is_direct or route.param_convertors or _takes_more(dependant):
        return None
    found = []
    for below in dependant.dependencies:
        request = below.request_param_name or below.http_connection_param_name
        if below.dependencies or below.body_params or _takes_more(below):
            return None
        if below.name is None or below.call is None or request is None:
            return None
        found.append((below.name, below.call, request))
    body = None
    if dependant.body_params:
        (field,) = dependant.body_params
        kind: Any = field.field_info.annotation
        body = field.name, TypeAdapter(kind)
    return _Plan(tuple(found), dependant.request_param_name, body)


def _takes_more(dependant: Dependant) -> bool:
    return bool(
        dependant.path_params
        or dependant.query_params
        or dependant.header_params
        or dependant.cookie_params
        or dependant.websocket_param_name
        or dependant.background_tasks_param_name
        or dependant.response_param_name
        or dependant.security_scopes_param_name
        or len(dependant.body_params) > 1
    )


def _read(adapter: TypeAdapter[Any], body: bytes) -> Any:
    # That it is strict JSON has been seen before anything of it came here.
    if body.strip() in (b"", b"null"):
        raise RequestValidationError([{"type": "missing", "loc": ("body",)}])
    try:
        return adapter.validate_json(body)
    except ValidationError as exc:
        errors = [{**error, "loc": ("body", *error["loc"])} for error in exc.errors()]
        raise RequestValidationError(errors) from None
