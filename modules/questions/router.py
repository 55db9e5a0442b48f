"""Ask, and see what became of what was asked. Each question stands alone."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from core.http import CurrentCaller
from core.pages import CursorText, Page, PageLimit
from core.problems import problem_responses
from core.security import AdminsOnly, CurrentAdmin, CurrentUser, log_admin_read
from core.services import service
from core.text import Id, Moment
from modules.questions.models import Status
from modules.questions.schemas import (
    STREAM_RESPONSE,
    AskQuestion,
    QuestionListed,
    QuestionRead,
)
from modules.questions.service import (
    Filters,
    NotStored,
    QuestionNotFound,
    Questions,
    QuestionWithdrawn,
    ServerShutdown,
)
from modules.questions.streaming import EventStream, LiveAnswer, begun
from providers.public import PROVIDER_ERRORS

router = APIRouter(prefix="/questions", tags=["questions"])
Asks = Annotated[Questions, Depends(service(Questions))]


@router.post(
    "",
    status_code=201,
    summary="Ask a question",
    responses=problem_responses(
        *PROVIDER_ERRORS, QuestionWithdrawn, NotStored, ServerShutdown
    ),
)
async def ask(
    body: AskQuestion, who: CurrentUser, caller: CurrentCaller, asks: Asks
) -> QuestionRead:
    """Ask a question and wait for its answer.

    The question is stored before the model is asked; a problem that comes after that
    carries its `question_id`. Hang up, and the model is no longer asked.
    """
    question = await asks.ask(who.user_id, body.content, caller.unless_gone)
    return QuestionRead.model_validate(question)


@router.post(
    "/stream",
    # FastAPI would look for it in the signature of the class, where it is not.
    status_code=200,
    summary="Ask a question and read the answer as it comes",
    response_class=EventStream,
    responses=problem_responses(
        *PROVIDER_ERRORS, QuestionWithdrawn, NotStored, ServerShutdown
    )
    | STREAM_RESPONSE,
)
async def ask_and_read(
    body: AskQuestion, who: CurrentUser, caller: CurrentCaller, asks: Asks
) -> Response:
    """Ask a question and read its answer piece by piece, as server-sent events.

    `meta` has the question's `id`; each `delta` the next `text`; then comes either
    `done`, the question as `POST /questions` answers it, or `error`, a problem. **A
    stream without `done` is incomplete**, whatever was read of it. Lines that begin
    with a colon are signs of life. What goes wrong before the first piece, and within
    10 seconds, is an ordinary 4xx or 5xx. Hang up, and the model is no longer asked; a
    stream cannot be resumed.
    """
    live = LiveAnswer()
    asking = asyncio.create_task(
        asks.ask(who.user_id, body.content, caller.unless_gone, live)
    )
    await begun(live, asking, asks.settings.stream_commit_seconds)
    return EventStream(
        live,
        asking,
        done=lambda question: QuestionRead.model_validate(question).model_dump_json(),
        silence_seconds=asks.settings.stream_silence_seconds,
    )


@router.get("/me", summary="See your last questions")
async def read_newest(who: CurrentUser, asks: Asks) -> list[QuestionRead]:
    """Your own last three, whatever became of them, newest first."""
    newest = await asks.newest(who.user_id)
    return [QuestionRead.model_validate(question) for question in newest]


@router.get(
    "/{question_id}",
    summary="See a question",
    responses=problem_responses(QuestionNotFound),
)
async def read(question_id: Id, who: CurrentUser, asks: Asks) -> QuestionRead:
    """One of your questions; for an administrator, anybody's."""
    owner = None if who.is_admin else who.user_id
    question = await asks.find(question_id, owner=owner)
    log_admin_read(who, "question", [question.user_id])
    return QuestionRead.model_validate(question)


@router.get("", summary="List questions", responses=problem_responses(AdminsOnly))
async def list_questions(
    who: CurrentAdmin,
    asks: Asks,
    limit: PageLimit = 50,
    cursor: CursorText = None,
    user_id: Annotated[Id | None, Query(description="Only of this user.")] = None,
    status: Annotated[Status | None, Query(description="Only in this state.")] = None,
    asked_from: Annotated[
        Moment | None, Query(description="Only asked at this moment or later.")
    ] = None,
    asked_before: Annotated[
        Moment | None, Query(description="Only asked before this moment.")
    ] = None,
) -> Page[QuestionListed]:
    """Everybody's questions with who asked them, newest first. For administrators."""
    filters = Filters(user_id, status, asked_from, asked_before)
    found, following = await asks.page(filters, cursor=cursor, limit=limit)
    log_admin_read(who, "questions", (question.user_id for question in found))
    items = [QuestionListed.model_validate(question) for question in found]
    return Page(items=items, next_cursor=following)
