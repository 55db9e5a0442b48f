"""How the providers plug into the application: by the same socket as any module."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

from core.errors import StartRefused
from core.layers import Finding
from core.module import Module, ModuleContext, Survey
from core.settings import Settings
from providers.settings import LlmSettings, ProviderTables


def check(settings: Settings) -> Iterator[Finding]:
    """Refuse what `[llm]` cannot reach."""
    from providers.registry import make_plan

    yield from make_plan(settings)[1]


def inspect(settings: Settings) -> Iterator[Finding]:
    """Look at every table, also at those that nobody uses."""
    from providers.registry import unused

    return unused(settings)


async def survey(settings: Settings) -> Survey:
    """Ask every provider for its models."""
    from providers.survey import survey

    return await survey(settings)


@asynccontextmanager
async def lifespan(context: ModuleContext) -> AsyncIterator[None]:
    """Open the providers of the plan and offer them as `Chat`."""
    # Imported here, so that the command line's help stays fast.
    from core.health import Health
    from providers.failover import FailoverChat
    from providers.opening import open_plan
    from providers.public import Chat
    from providers.registry import make_plan

    plan, findings = make_plan(context.settings)
    if findings:
        raise StartRefused("\n".join(str(finding) for finding in findings))
    async with AsyncExitStack() as stack:
        backends, note = await open_plan(plan, stack)
        context.services.get(Health).notes["provider"] = note
        settings = context.settings.section(LlmSettings)
        chat = FailoverChat(backends, settings)
        context.services.add(Chat, chat)
        context.services.add(FailoverChat, chat)
        yield


MODULE = Module(
    name="providers",
    router="providers.router",
    commands="providers.commands",
    sections={"llm": LlmSettings, "providers": ProviderTables},
    check=check,
    inspect=inspect,
    survey=survey,
    lifespan=lifespan,
)
