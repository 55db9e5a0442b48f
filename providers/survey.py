"""Whether each configured provider is there: asked for its models, which is free."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from core.module import Survey
from core.settings import Settings
from providers.opening import open_backend
from providers.public import (
    ChatModel,
    OffersModels,
    ProviderAuth,
    ProviderBadResponse,
    ProviderBug,
    ProviderError,
    ProviderFailed,
    ProviderMisconfigured,
    ProviderNotUsable,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderTls,
    ProviderUnreachable,
)
from providers.registry import configure, make_plan
from providers.settings import ProviderTables

ASK_SECONDS = 5.0
# A local model is loaded from the disk, and gives up by itself before this.
_OPEN_SECONDS = 35.0
_HEADINGS = ("name", "type", "model", "reachable", "ms", "trouble")
_NOT_THERE = (ProviderUnreachable, ProviderTls, ProviderTimeout, ProviderBug)
_TROUBLES: dict[type[ProviderError], str] = {
    ProviderUnreachable: "cannot be reached",
    ProviderTls: "no TLS that can be trusted: its certificate, or no TLS at all",
    ProviderTimeout: f"timeout: no answer in {ASK_SECONDS:g} s",
    ProviderAuth: "key not accepted",
    ProviderMisconfigured: "no list of models there: is base_url right?",
    ProviderRateLimited: "asked too often at the moment",
    ProviderOverloaded: "overloaded at the moment",
    ProviderFailed: "reports a failure of its own",
    ProviderBadResponse: "what it sends is no list of models",
    ProviderBug: "its plugin failed",
}


@dataclass(frozen=True)
class Sight:
    """What was seen of one provider."""

    name: str
    type: str
    model: str
    is_open: bool = False
    is_reachable: bool | None = None
    """None when nothing was sent."""
    is_refused: bool = False
    """It does not accept our key."""
    milliseconds: int | None = None
    trouble: str = "-"

    @property
    def is_usable(self) -> bool:
        """As far as we know."""
        return self.is_open and self.is_reachable is not False and not self.is_refused

    @property
    def row(self) -> tuple[str, ...]:
        words = {True: "yes", False: "no", None: "not asked"}
        took = "-" if self.milliseconds is None else str(self.milliseconds)
        reachable = words[self.is_reachable]
        return (self.name, self.type, self.model, reachable, took, self.trouble)


async def survey(settings: Settings) -> Survey:
    """Ask all at the same time, each within a few seconds."""
    names = settings.section(ProviderTables).root
    sights = await asyncio.gather(*(_look(settings, name) for name in names))
    in_use = _in_use(settings, {sight.name: sight for sight in sights})
    rows = [sight.row for sight in dict.fromkeys([*in_use, *sights])]
    failures = tuple(
        f"provider {sight.name!r} is in use: {sight.trouble}"
        for sight in in_use
        if not sight.is_usable
    )
    return Survey((_HEADINGS, *rows), failures)


def _in_use(settings: Settings, seen: Mapping[str, Sight]) -> list[Sight]:
    """Who would be asked, in order; `auto` takes the first that can be opened."""
    plan, _ = make_plan(settings)
    first = [seen[candidate.name] for candidate in plan.candidates]
    if plan.is_auto:
        first = [sight for sight in first if sight.is_open][:1] or first[-1:]
    reserve = [seen[configured.name] for configured in plan.fallback]
    return list(dict.fromkeys([*first, *reserve]))


async def _look(settings: Settings, name: str) -> Sight:
    configured, findings = configure(settings, name)
    if configured is None:
        given = settings.section(ProviderTables).root[name]
        kind, model = (str(given.get(key, "-")) for key in ("type", "model"))
        return Sight(name, kind, model, trouble=findings[0].problem)
    options = configured.options
    sight = Sight(name, options.type, options.model_shown or "-")
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                backend = await open_backend(configured, stack)
        except TimeoutError:
            return replace(sight, trouble="timeout: it could not be opened")
        except ProviderNotUsable as exc:
            return replace(sight, trouble=str(exc))
        return await _ask(replace(sight, is_open=True), backend.model)


async def _ask(sight: Sight, model: ChatModel) -> Sight:
    if not isinstance(model, OffersModels):
        return replace(sight, trouble="cannot be asked for free")
    began = time.perf_counter()
    try:
        offered = await _models(model)
    except ProviderError as error:
        return _in_trouble(sight, error)
    took = round((time.perf_counter() - began) * 1000)
    is_offered = sight.model == "-" or not offered or _offers(offered, sight.model)
    trouble = "-" if is_offered else "model not offered"
    return replace(sight, is_reachable=True, milliseconds=took, trouble=trouble)


async def _models(model: OffersModels) -> tuple[str, ...]:
    """The names it offers. Raises a ProviderError, whatever a plugin does."""
    try:
        async with asyncio.timeout(ASK_SECONDS):
            return tuple(map(str, await model.models()))
    except ProviderError:
        raise
    except TimeoutError:
        raise ProviderTimeout from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ProviderBug from None
    except (Exception, SystemExit):
        # Not chained: what a plugin raises may hold its key.
        raise ProviderBug from None


def _in_trouble(sight: Sight, error: ProviderError) -> Sight:
    kinds = (kind for kind in _TROUBLES if isinstance(error, kind))
    trouble = _TROUBLES[next(kinds, ProviderBadResponse)]
    if isinstance(error, ProviderFailed) and isinstance(error.upstream_status, int):
        trouble = f"{trouble} (HTTP {error.upstream_status})"
    return replace(
        sight,
        is_reachable=not isinstance(error, _NOT_THERE),
        is_refused=isinstance(error, ProviderAuth),
        trouble=trouble,
    )


def _offers(offered: tuple[str, ...], model: str) -> bool:
    """Whether the model is in the list, under one of the names that it goes by."""
    # Some put a folder before their names, and a tag that nobody has to say after.
    return any(
        model in (name, name.rpartition("/")[2], name.removesuffix(":latest"))
        for name in offered
    )
