"""The services of one application, found by the type that they promise to be."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import HTTPConnection

S = TypeVar("S")


class Services:
    """A typed registry; it belongs to one application, so two of them share nothing."""

    def __init__(self) -> None:
        self._by_kind: dict[type, Any] = {}

    def add(self, kind: type[S], service: S) -> None:
        """Offer `service` as the one `kind`; a second of the same kind is a mistake."""
        if kind in self._by_kind:
            raise LookupError(f"there is a {kind.__name__} already")
        self._by_kind[kind] = service

    def get(self, kind: type[S]) -> S:
        """Return the one `kind`; LookupError when no module brought it."""
        try:
            found: S = self._by_kind[kind]
        except KeyError:
            raise LookupError(f"no module brings a {kind.__name__}") from None
        return found

    def __contains__(self, kind: type) -> bool:
        return kind in self._by_kind


def service(kind: type[S]) -> Callable[[HTTPConnection], Awaitable[S]]:
    """A FastAPI dependency: `Annotated[Users, Depends(service(Users))]`."""

    # async, though nothing is awaited: FastAPI calls any other in a thread.
    async def find(connection: HTTPConnection) -> S:
        services: Services = connection.app.state.services
        return services.get(kind)

    return find
