"""Ask, and see what became of what was asked. Each question stands alone."""

import asyncio
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from core.errors import Internal
from core.http import Caller
from core.pages import CursorText, Page, PageLimit
from core.problems import REPLAYED, problem_responses
from core.routes import DirectRoute
from core.security import CurrentAdmin, CurrentUser, log_admin_read
from core.services import service
from core.text import Id, Moment
from modules.questions.asking import Asking
from modules.questions.domain import (
    Abandoned,
    IdempotencyKeyReused,
    NotStored,
    OwnerLost,
    QuestionNotFound,
    QuestionWithdrawn,
    RequestInProgress,
    ServerShutdown,
)
from modules.questions.keys import DESCRIBED, InvalidIdempotencyKey, idempotency_key
from modules.questions.limits import LIMIT_ERRORS, Limits
from modules.questions.models import Status
from modules.questions.schemas import (
    REPLAY_HEADER,
    STREAM_RESPONSE,
    AskQuestion,
    LimitsRead,
    QuestionListed,
    QuestionRead,
    as_json,
    replayable,
)
from modules.questions.service import Filters, Questions
from modules.questions.streaming import EventStream, LiveAnswer, begun
from providers.public import PROVIDER_ERRORS

router = APIRouter(prefix="/questions", tags=["questions"], route_class=DirectRoute)
Asks = Annotated[Asking, Depends(service(Asking))]
Stored = Annotated[Questions, Depends(service(Questions))]
_ASKING_ERRORS = (
    *PROVIDER_ERRORS,
    *LIMIT_ERRORS,
    Abandoned,
    IdempotencyKeyReused,
    Internal,
    InvalidIdempotencyKey,
    NotStored,
    OwnerLost,
    QuestionWithdrawn,
    RequestInProgress,
    ServerShutdown,
)
_ASKING_PROBLEMS = replayable(problem_responses(*_ASKING_ERRORS))


@router.post(
    "",
    status_code=201,
    summary="Ask a question",
    response_model=QuestionRead,
    responses=_ASKING_PROBLEMS | REPLAY_HEADER,
    openapi_extra=DESCRIBED,
)
async def ask_question(
    body: AskQuestion,
    who: CurrentUser,
    request: Request,
    asks: Asks,
) -> Response:
    """Ask a question and wait for its answer.

    The question is stored before the model is asked; a problem that comes after that
    carries its `question_id`. Hang up, and the model is no longer asked.

    With an `Idempotency-Key` of your own making it is safe to send the same request
    again, for 24 hours at least: nothing is asked twice, and what came of it, a problem
    too, is told once more with `Idempotency-Replayed: true`.
    """
    asked = await asks.ask(
        who.user_id,
        body.content,
        Caller(request).unless_gone,
        key=idempotency_key(request),
        route="POST /questions",
    )
    headers = REPLAYED if asked.is_replayed else None
    return Response(as_json(asked.question), 201, headers, "application/json")


@router.post(
    "/stream",
    # FastAPI would look for it in the signature of the class, where it is not.
    status_code=200,
    summary="Ask a question and read the answer as it comes",
    response_class=EventStream,
    responses=_ASKING_PROBLEMS | STREAM_RESPONSE,
    openapi_extra=DESCRIBED,
)
async def stream_answer(
    body: AskQuestion,
    who: CurrentUser,
    request: Request,
    asks: Asks,
    stored: Stored,
) -> Response:
    """Ask a question and read its answer piece by piece, as server-sent events.

    `meta` has the question's `id`; each `delta` the next `text`; then comes either
    `done`, the question as `POST /questions` answers it, or `error`, a problem. **A
    stream without `done` is incomplete**, whatever was read of it. Lines that begin
    with a colon are signs of life. What goes wrong before the first piece, and within
    10 seconds, is an ordinary 4xx or 5xx. Hang up, and the model is no longer asked; a
    stream cannot be resumed.

    With an `Idempotency-Key`, a question that was answered before is told once more, in
    one piece; one that was not is an ordinary problem.
    """
    live, key = LiveAnswer(), idempotency_key(request)
    asking = asyncio.create_task(
        asks.ask(
            who.user_id,
            body.content,
            Caller(request).unless_gone,
            reader=live,
            key=key,
            route="POST /questions/stream",
        )
    )
    await begun(live, asking, stored.settings.stream_commit_seconds)
    return EventStream(
        live,
        asking,
        done=as_json,
        silence_seconds=stored.settings.stream_silence_seconds,
    )


@router.get("/me", summary="See your last questions")
async def list_my_questions(who: CurrentUser, stored: Stored) -> list[QuestionRead]:
    """Your own last three, whatever became of them, newest first."""
    newest = await stored.newest(who.user_id)
    return [QuestionRead.model_validate(question) for question in newest]


@router.get("/limits", summary="See what you may still ask")
async def get_limits(
    who: CurrentUser, limits: Annotated[Limits, Depends(service(Limits))]
) -> LimitsRead:
    """Every limit that is set, and what is left of it; a day begins at midnight in UTC.

    Deleting questions gives nothing back.
    """
    found = await limits.of(who.user_id)
    return LimitsRead.model_validate({"limits": [asdict(limit) for limit in found]})


@router.get(
    "/{question_id}",
    summary="See a question",
    responses=problem_responses(QuestionNotFound),
)
async def get_question(
    question_id: Id, who: CurrentUser, stored: Stored
) -> QuestionRead:
    """One of your questions; for an administrator, anybody's."""
    owner = None if who.is_admin else who.user_id
    question = await stored.find(question_id, owner=owner)
    log_admin_read(who, "question", [question.user_id])
    return QuestionRead.model_validate(question)


@router.delete(
    "/{question_id}",
    status_code=204,
    summary="Erase a question",
    responses=problem_responses(QuestionNotFound),
)
async def delete_question(question_id: Id, who: CurrentUser, stored: Stored) -> None:
    """Erase one of your own questions with its answer.

    One that is still being answered is cancelled first. What it has used of your
    limits is not given back.
    """
    await stored.delete(question_id, owner=who.user_id)


@router.get("", summary="List questions")
async def list_questions(
    who: CurrentAdmin,
    stored: Stored,
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
    found, following = await stored.page(filters, cursor=cursor, limit=limit)
    log_admin_read(who, "questions", (question.user_id for question in found))
    items = [QuestionListed.model_validate(question) for question in found]
    return Page(items=items, next_cursor=following)
