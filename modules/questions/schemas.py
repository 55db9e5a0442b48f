"""What the routes of questions take and give."""

from datetime import date, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, TypeAdapter

from core.problems import Problem, status_of
from core.text import ReadId, SafeText
from modules.questions.domain import ENDS, Question
from modules.questions.models import Status


class AskQuestion(BaseModel):
    """A question."""

    model_config = ConfigDict(extra="forbid")

    content: SafeText = Field(
        description=(
            "What you want to know. Not blank; by default at most 4,000 characters"
            " and 16,000 bytes of UTF-8."
        ),
        examples=["What is the capital of France?"],
    )


class UsageRead(BaseModel):
    """Tokens by the provider's own count; null is what it did not say."""

    model_config = ConfigDict(from_attributes=True)

    prompt_tokens: int | None = Field(examples=[14])
    completion_tokens: int | None = Field(examples=[8])


class AttemptRead(BaseModel):
    """One provider's turn."""

    model_config = ConfigDict(from_attributes=True)

    provider: str = Field(description="Its configured name.", examples=["main"])
    outcome: str = Field(
        description="`answered`, `cancelled`, or the `code` of what went wrong.",
        examples=["answered"],
    )
    milliseconds: int = Field(examples=[1360])


class QuestionRead(BaseModel):
    """A question and what became of it."""

    model_config = ConfigDict(from_attributes=True)

    id: ReadId = Field(examples=[42])
    user_id: ReadId = Field(examples=[7])
    content: str = Field(examples=["What is the capital of France?"])
    status: Status = Field(examples=[Status.ANSWERED])
    answer: str | None = Field(
        description="Of a question that is not `answered`: what came before the end.",
        examples=["The capital of France is Paris."],
    )
    provider: str | None = Field(
        description="The configured name of who answered.", examples=["main"]
    )
    model: str | None = Field(examples=["gpt-4o-mini"])
    usage: UsageRead | None
    finish_reason: str | None = Field(
        description="`length` and `filtered` mean that the answer is cut.",
        examples=["stop"],
    )
    error_code: str | None = Field(
        description="Why there is no answer: the `code` of the problem that was sent.",
        examples=[None],
    )
    attempts: list[AttemptRead] = Field(description="Who was asked, in order.")
    asked_at: datetime = Field(examples=["2026-11-23T09:30:00.120000Z"])
    answered_at: datetime | None = Field(examples=["2026-11-23T09:30:01.480000Z"])


_SHOWN = set(QuestionRead.model_fields)
_OURS = TypeAdapter(Question)


def as_json(question: Question) -> bytes:
    """A `QuestionRead` as it is sent: what we made ourselves is not validated."""
    return _OURS.dump_json(question, include=_SHOWN)


class QuestionListed(QuestionRead):
    """A question as an administrator sees it in a list."""

    username: str = Field(examples=["ada"])


class StreamMeta(BaseModel):
    """Data of the event `meta`, the first of a stream."""

    id: ReadId = Field(description="The question's.", examples=[42])


class StreamDelta(BaseModel):
    """Data of an event `delta`: the next piece of the answer."""

    text: str = Field(examples=["The capital of France"])


# The narrowest first: clients take the first that fits, and all of them have more.
class StreamEvent(RootModel[QuestionRead | Problem | StreamDelta | StreamMeta]):
    """Data of one server-sent event: of `done`, `error`, `delta` or `meta`."""


class StreamFrame(BaseModel):
    """One server-sent event as it is on the wire; `data` is a StreamEvent in JSON."""

    event: Literal["meta", "delta", "done", "error"] = Field(examples=["delta"])
    data: str = Field(examples=['{"text": "The capital of France"}'])


class LimitRead(BaseModel):
    """One limit, and what is left of it."""

    name: str = Field(
        description=(
            "`in_flight`, `per_minute`, `per_day`, `tokens_per_day`, or of all people"
            " together `service_per_day` or `service_tokens_per_day`."
        ),
        examples=["per_minute"],
    )
    most: int = Field(examples=[20])
    unit: str = Field(
        description="`requests`, `concurrent-requests` or `tokens`.",
        examples=["requests"],
    )
    remaining: int = Field(examples=[17])
    window_seconds: int | None = Field(
        description="Null for what goes on at a time.", examples=[60]
    )
    resets_in_seconds: int | None = Field(examples=[42])


class LimitsRead(BaseModel):
    """The limits that hold for you; none is an empty list."""

    limits: list[LimitRead]


class UsageCounted(BaseModel):
    """What is counted of somebody; it outlasts the questions."""

    model_config = ConfigDict(from_attributes=True)

    day: date
    questions: int
    tokens: int
    minute_ends_at: datetime
    minute_questions: int


_Responses = dict[int | str, dict[str, Any]]
_REPLAYED = {
    "Idempotency-Replayed": {
        "description": "`true` when this was answered before, and not asked again.",
        "schema": {"type": "string", "enum": ["true"]},
    }
}
REPLAY_HEADER: _Responses = {201: {"headers": _REPLAYED}}


def replayable(problems: _Responses) -> _Responses:
    """These problems, the stored ends of a question marked as what may be replayed."""
    statuses = {status_of(kind) for kind in ENDS.values()}
    return problems | {
        status: described | {"headers": described.get("headers", {}) | _REPLAYED}
        for status, described in problems.items()
        if status in statuses
    }


_STREAM = """\
event: meta
data: {"id": 42}

event: delta
data: {"text": "The capital of France"}

event: delta
data: {"text": " is Paris."}

event: done
data: {"id": 42, "status": "answered", "answer": "The capital of France is Paris."}

"""
STREAM_RESPONSE: _Responses = {
    200: {
        # OpenAPI 3.1 leaves open what the schema of a stream describes. Generators take
        # it for the data of an event, test tools for an event, the rest for the text.
        "model": StreamEvent | StreamFrame | str,
        "description": "Events `meta`, `delta` (any number), and `done` or `error`.",
        "headers": _REPLAYED,
        "content": {"text/event-stream": {"example": _STREAM}},
    }
}
