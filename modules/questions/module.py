"""How questions plug into the application."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from core.module import Module, ModuleContext, Record
from modules.questions.settings import QuestionSettings


@asynccontextmanager
async def lifespan(context: ModuleContext) -> AsyncIterator[None]:
    """Offer `Questions` to the routes; store what is still to be stored at the end."""
    # Imported here, so that the command line's help stays fast.
    from modules.questions.service import Questions
    from providers.public import Chat

    settings = context.settings.section(QuestionSettings)
    questions = Questions(context.database, context.services.get(Chat), settings)
    context.services.add(Questions, questions)
    try:
        yield
    finally:
        await questions.drain()


async def every_question(
    context: ModuleContext, user_id: int
) -> AsyncGenerator[Record, None]:
    """All questions of a user as the routes show them, newest first."""
    from modules.questions.schemas import QuestionRead
    from modules.questions.service import Questions

    async for question in context.services.get(Questions).all_of(user_id):
        yield QuestionRead.model_validate(question).model_dump()


MODULE = Module(
    name="questions",
    requires=("users", "providers"),
    router="modules.questions.router",
    models="modules.questions.models",
    sections={"questions": QuestionSettings},
    lifespan=lifespan,
    personal_data={"questions": every_question},
)
