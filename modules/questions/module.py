"""How questions plug into the application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from core.module import Module, ModuleContext
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


MODULE = Module(
    name="questions",
    requires=("users", "providers"),
    router="modules.questions.router",
    models="modules.questions.models",
    sections={"questions": QuestionSettings},
    lifespan=lifespan,
)
