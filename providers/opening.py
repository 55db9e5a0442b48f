"""Opening the providers of a plan: all that are named, or the first that `auto` can."""

import logging
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from core.errors import StartRefused
from providers.backend import Backend
from providers.public import ChatModel, ProviderNotUsable
from providers.registry import Configured, Plan

log = logging.getLogger(__name__)


async def open_plan(plan: Plan, stack: AsyncExitStack) -> tuple[list[Backend], str]:
    """Return the opened providers in order, and who answers and why in one line.

    Raises StartRefused when one that is named cannot be opened, or `auto` finds none.
    """
    if plan.is_auto:
        first, note = await _open_first(plan, stack)
    else:
        named = plan.candidates[0]
        first = await _open_named(named, stack)
        note = f"{_called(named)}, as configured"
    # Whom `auto` has settled on may stand among the fallbacks as well.
    others = [one for one in plan.fallback if one.name != first.name]
    reserve = [await _open_named(configured, stack) for configured in others]
    note += "".join(f"; then {_called(configured)}" for configured in others)
    return [first, *reserve], note


async def _open_named(configured: Configured, stack: AsyncExitStack) -> Backend:
    try:
        return await open_backend(configured, stack)
    except ProviderNotUsable as exc:
        raise StartRefused(f"provider {configured.name!r}: {exc}") from exc


async def _open_first(plan: Plan, stack: AsyncExitStack) -> tuple[Backend, str]:
    passed_over = list(plan.passed_over)
    for configured in plan.candidates:
        try:
            backend = await open_backend(configured, stack)
        except ProviderNotUsable as exc:
            passed_over.append(f"{configured.name}: {exc}")
            continue
        reasons = "; ".join(passed_over) or "the first of llm.auto, and usable"
        return backend, f"{_called(configured)}, chosen by auto: {reasons}"
    raise StartRefused(f"auto found no usable provider: {'; '.join(passed_over)}")


def _called(configured: Configured) -> str:
    kind = configured.demonstrates
    return f"{configured.name} ({kind})" if kind else configured.name


async def open_backend(configured: Configured, stack: AsyncExitStack) -> Backend:
    """Open one provider until the stack ends. Raises ProviderNotUsable."""
    name = configured.name
    try:
        opened = configured.type.open(name, configured.options)
        model = await opened.__aenter__()
    except ProviderNotUsable:
        raise
    except (Exception, SystemExit) as exc:
        # By its type alone: what a plugin raises may hold its key.
        problem = f"{configured.origin} failed to open it: {type(exc).__name__}"
        raise ProviderNotUsable(problem) from None
    stack.push_async_callback(_close, configured, opened)
    return Backend(name, model, configured.options, plugin=configured.origin)


async def _close(
    configured: Configured, opened: AbstractAsyncContextManager[ChatModel]
) -> None:
    try:
        await opened.__aexit__(None, None, None)
    except (Exception, SystemExit) as exc:
        fields = {
            "provider": configured.name,
            "plugin": configured.origin,
            "raised": type(exc).__name__,
        }
        log.error("provider.not_closed", extra=fields)
