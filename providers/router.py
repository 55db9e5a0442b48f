"""See the language models' state, without their keys."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from core.security import CurrentAdmin
from core.services import service
from providers.backend import Backend
from providers.breaker import State
from providers.failover import FailoverChat

router = APIRouter(prefix="/providers", tags=["providers"])


class ProviderRead(BaseModel):
    """One provider that may answer, as this process sees it."""

    name: str = Field(examples=["main"])
    type: str = Field(examples=["openai"])
    model: str | None = Field(examples=["gpt-4o-mini"])
    state: State = Field(
        description=(
            "`closed`: it is asked. `open`: it failed too often and is left alone."
            " `cooling`: it asked for a pause. `half_open`: one question tries it out."
        ),
        examples=[State.CLOSED],
    )
    open_until: datetime | None = Field(
        description="When it may be asked again.", examples=[None]
    )
    last_error: str | None = Field(
        description="The `code` of its last failure since the start.",
        examples=["provider_timeout"],
    )
    in_flight: int = Field(description="Questions it has right now.", examples=[3])


@router.get("", summary="See the providers' state")
async def list_providers(
    who: CurrentAdmin, chat: Annotated[FailoverChat, Depends(service(FailoverChat))]
) -> list[ProviderRead]:
    """Who answers, in the order in which they are asked. For administrators.

    Each process of the service counts for itself.
    """
    return list(_read(chat.backends))


def _read(backends: tuple[Backend, ...]) -> Iterator[ProviderRead]:
    for backend in backends:
        wait = backend.breaker.wait_seconds
        yield ProviderRead(
            name=backend.name,
            type=backend.options.type,
            model=backend.options.model_shown,
            state=backend.breaker.state,
            open_until=datetime.now(UTC) + timedelta(seconds=wait) if wait else None,
            last_error=backend.last_error,
            in_flight=backend.bulkhead.in_flight,
        )
