"""The resources of an application: one per path, with the methods that it supports."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastapi import params
from fastapi.routing import RouteContext, iter_route_contexts
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import NotAllowed
from core.problems import problem_response

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
_PARAMETER = re.compile(r"\{[^}]*\}")
_GROUP_NAME = re.compile(r"\?P<\w+>")


@dataclass(frozen=True)
class Resource:
    """A path, as OpenAPI writes it, and what may be done with it."""

    path: str
    pattern: re.Pattern[str]
    methods: frozenset[str]
    """Empty: any, as a mounted application decides itself."""
    form_methods: frozenset[str]
    """The methods whose body is a form; any other body is JSON."""


class Resources:
    """Finds the resource of a request: of two paths that match, the more specific.

    A router tries route by route, each with its method. So `DELETE /questions/me`
    would be served as `DELETE /questions/{question_id}`.
    """

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        found: dict[str, list[RouteContext]] = {}
        for route in iter_route_contexts(by_specificity(routes)):
            # Two routes of a path may call its parameters by different names.
            path = _PARAMETER.sub("{}", route.path or "")
            found.setdefault(path, []).append(route)
        made = [_resource(same) for same in found.values()]
        # Most requests are for these: none of their paths has to be matched.
        self._fixed = {r.path: r for r in made if r.methods and "{" not in r.path}
        self._others = [r for r in made if r.path not in self._fixed]

    def find(self, scope: Scope) -> Resource | None:
        """Return the resource that a request is for, None for an unknown path."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if fixed := self._fixed.get(path):
            return fixed
        return next((r for r in self._others if r.pattern.match(path)), None)

    def media_type(self, scope: Scope) -> str:
        """Return the media type that a request's body must have."""
        resource = self.find(scope)
        is_form = resource is not None and scope["method"] in resource.form_methods
        return FORM if is_form else JSON


def by_specificity(routes: Iterable[BaseRoute]) -> list[BaseRoute]:
    """Return routes so that of two which match a path the more specific comes first."""
    return sorted(routes, key=_generality)


def _generality(route: BaseRoute) -> tuple[bool, ...]:
    """For each segment of a route's path, from the left: does it have a parameter?"""
    path: str | None = getattr(route, "path", None)
    if path is None:
        return (True,)  # A router within: any of its paths may be general.
    return tuple(bool(_PARAMETER.search(segment)) for segment in path.split("/"))


def _resource(routes: Sequence[RouteContext]) -> Resource:
    patterns = {_GROUP_NAME.sub("", route.path_regex.pattern) for route in routes}
    forms = (route.methods or () for route in routes if _takes_form(route))
    return Resource(
        routes[0].path or "",
        re.compile("|".join(sorted(patterns))),
        frozenset().union(*(route.methods or () for route in routes)),
        frozenset().union(*forms),
    )


def _takes_form(route: RouteContext) -> bool:
    body = getattr(route, "body_field", None)
    return isinstance(getattr(body, "field_info", None), params.Form)


class MethodGuard:
    """Refuses a method that a resource does not support, before its body is read."""

    def __init__(self, app: ASGIApp, *, resources: Resources) -> None:
        self._app = app
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            resource = self._resources.find(scope)
            methods = resource.methods if resource else frozenset()
            if methods and scope["method"] not in methods:
                # For the access log, which names the template.
                scope["route"] = resource
                refused = NotAllowed(*methods)
                response = problem_response(refused, scope["state"]["request_id"])
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)
