"""How questions plug into the application."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from core.module import Module, ModuleContext, Record
from modules.questions.settings import QuestionSettings

_REAPED_EVERY_SECONDS = 20
_FORGOTTEN_EVERY_SECONDS = 10 * 60
_REMOVED_EVERY_SECONDS = 60 * 60


@asynccontextmanager
async def lifespan(context: ModuleContext) -> AsyncIterator[None]:
    """Offer `Asking` and `Questions`; see all that was asked to its end."""
    # Imported here, so that the command line's help stays fast.
    from core.db import DatabaseNotMigrated
    from core.periodic import repeating
    from modules.questions.asking import Asking
    from modules.questions.limits import Limits
    from modules.questions.service import Questions
    from modules.questions.upkeep import Upkeep
    from modules.users.public import Users
    from providers.public import Chat

    database = context.database
    settings = context.settings.section(QuestionSettings)
    limits = Limits(database, settings)
    asking = Asking(database, context.services.get(Chat), limits, settings)
    context.services.add(Limits, limits)
    context.services.add(Asking, asking)
    context.services.add(Questions, Questions(database, asking, settings))
    upkeep = Upkeep(database, settings)
    context.services.add(Upkeep, upkeep)
    context.services.get(Users).when_deleted(asking.withdraw_all)

    async with AsyncExitStack() as stack:
        stack.push_async_callback(asking.drain)
        if context.is_serving:
            if database.sqlite_path is not None:
                # Whatever is pending was left by a server that is no more.
                with suppress(DatabaseNotMigrated):
                    await upkeep.interrupt_all()
            # Apart: one that fails again and again must not hinder the other.
            for what, work, seconds in (
                (
                    "questions.interrupt",
                    upkeep.interrupt_overdue,
                    _REAPED_EVERY_SECONDS,
                ),
                ("questions.forget_keys", upkeep.forget_keys, _FORGOTTEN_EVERY_SECONDS),
                ("questions.remove_old", upkeep.remove_old, _REMOVED_EVERY_SECONDS),
            ):
                await stack.enter_async_context(repeating(what, work, seconds=seconds))
        yield


async def every_question(
    context: ModuleContext, user_id: int
) -> AsyncGenerator[Record, None]:
    """All questions of a user as the routes show them, newest first."""
    from modules.questions.schemas import QuestionRead
    from modules.questions.service import Questions

    async for question in context.services.get(Questions).all_of(user_id):
        yield QuestionRead.model_validate(question).model_dump()


async def every_count(
    context: ModuleContext, user_id: int
) -> AsyncGenerator[Record, None]:
    """What is counted of a user; nothing of who has never asked."""
    from modules.questions.limits import Limits
    from modules.questions.schemas import UsageCounted

    counted = await context.services.get(Limits).counted(user_id)
    if counted is not None:
        yield UsageCounted.model_validate(counted).model_dump()


MODULE = Module(
    name="questions",
    requires=("users", "providers"),
    router="modules.questions.router",
    models="modules.questions.models",
    sections={"questions": QuestionSettings},
    lifespan=lifespan,
    personal_data={"questions": every_question, "question_usage": every_count},
)
