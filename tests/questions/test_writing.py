"""Both writes against a plain model: whatever comes together, each as if it were alone.

Batches of questions and of outcomes, with people who are gone, keys that were sent
before, limits, rows that no table takes, waiters who leave, days that pass, and
connections that die before a batch is written or after.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from core.db import Database, DatabaseUnavailable
from modules.questions.models import BudgetRow, QuestionRow, Status, UsageRow
from modules.questions.settings import QuestionSettings
from modules.questions.writing import Added, NewQuestion, Outcome, Settled, Writing
from providers.public import Attempt
from tests.conftest import Databases, connected
from tests.support.dying import MARK, Death, Moment, mortal, mortal_writer

PEOPLE = 3
LONG_AGO = "2000-01-01 00:00:00.000000"
YESTERDAY = {
    "sqlite": (
        "UPDATE questions_usage SET day = date(day, '-1 day')",
        "UPDATE questions"
        " SET asked_at = strftime('%Y-%m-%d %H:%M:%f000', asked_at, '-1 day')",
        # In two steps, or two days would be the same one for a moment.
        "UPDATE questions_budget SET day = date(day, '-1001 days')",
        "UPDATE questions_budget SET day = date(day, '+1000 days')",
    ),
    "postgresql": (
        "UPDATE questions_usage SET day = day - 1",
        "UPDATE questions SET asked_at = asked_at - interval '1 day'",
        "UPDATE questions_budget SET day = day - 1001",
        "UPDATE questions_budget SET day = day + 1000",
    ),
}


@dataclass(frozen=True)
class Mortal:
    """A database whose connections can be made to die."""

    database: Database
    death: Death


@pytest.fixture(scope="module")
async def store(databases: Databases, database_kind: str) -> AsyncIterator[Mortal]:
    url = await databases.migrated(database_kind)
    if database_kind == "sqlite":
        async with connected(url) as database:
            with mortal_writer(database) as death:
                yield Mortal(database, death)
    else:
        async with mortal(url) as (wire, death), connected(wire) as database:
            yield Mortal(database, death)


# What an example consists of.


class Item(NamedTuple):
    """A question or an outcome, and how it comes."""

    number: int
    """Whose question, or of which one the outcome is."""
    how: str
    client_key: str | None = None
    fingerprint: str = "f"
    tokens: tuple[int | None, int | None] = (None, None)


class Dying(NamedTuple):
    """When connections die, and how many of them."""

    moment: Moment
    times: int


class Step(NamedTuple):
    """What happens: a batch, or something to one person or question."""

    what: str
    items: tuple[Item, ...] = ()
    dying: Dying | None = None
    number: int = 0


HOW = st.sampled_from(
    ["well"] * 6 + ["poisoned", "cancelled in line", "cancelled when sent"]
)
DYING = st.sampled_from(
    [None] * 5 + [Dying("before", 1), Dying("before", 2), Dying("after", 1)]
)
TOKENS = st.one_of(st.none(), st.integers(0, 3))
QUESTIONS = st.lists(
    st.builds(
        Item,
        st.integers(0, PEOPLE - 1),
        HOW,
        st.sampled_from([None, None, None, "k", "l"]),
        st.sampled_from(["f", "g"]),
    ),
    min_size=1,
    max_size=9,
).map(tuple)
OUTCOMES = st.lists(
    st.builds(Item, st.integers(0, 30), HOW, tokens=st.tuples(TOKENS, TOKENS)),
    min_size=1,
    max_size=7,
).map(tuple)
ADD = st.builds(Step, st.just("add"), QUESTIONS, DYING)
SETTLE = st.builds(Step, st.just("settle"), OUTCOMES, DYING)
EVENT = st.builds(
    Step,
    st.sampled_from(["deactivate", "leave", "erase", "next minute", "next day"]),
    number=st.integers(0, 30),
)
STEPS = st.lists(st.one_of(ADD, ADD, SETTLE, EVENT), max_size=7).map(
    lambda steps: [Step("add", (Item(0, "well"),)), *steps]
)
ASK = Step("add", (Item(0, "well"),))
PAY = Step("settle", (Item(0, "well", tokens=(1, 2)),))
NEXT_DAY, NEXT_MINUTE = Step("next day"), Step("next minute")
FEW = st.integers(1, 4)
LIMITS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        (
            "per_minute",
            "in_flight",
            "per_day",
            "tokens_per_day",
            "service_per_day",
            "service_tokens_per_day",
        ),
        FEW,
    ),
)


# The model: one after the other, in plain words.


@dataclass
class Count:
    """What somebody has used; days are counted from today, backwards."""

    day: int = 0
    questions: int = 0
    tokens: int = 0
    minute_questions: int = 0
    is_minute_over: bool = True


@dataclass
class Person:
    id: int
    is_there: bool = True
    is_active: bool = True
    count: Count | None = None


@dataclass
class Stored:
    new: NewQuestion
    person: Person
    day: int = 0
    end: Outcome | None = None
    id: int = 0

    @property
    def is_there(self) -> bool:
        return self.person.is_there and not self.is_erased

    is_erased: bool = False


@dataclass
class Model:
    limits: QuestionSettings
    people: list[Person]
    stored: list[Stored] = field(default_factory=list)
    budget: dict[int, Count] = field(default_factory=dict)

    def add(self, new: NewQuestion, person: Person, how: str) -> object:
        """What the one who asks is told: the row, None, or the kind of an error."""
        is_repeated = new.client_key is not None and any(
            other.is_there
            and (other.person, other.new.client_key) == (person, new.client_key)
            for other in self.stored
        )
        if not (person.is_there and person.is_active) or is_repeated:
            return None
        if not self._may_ask(person):
            return None
        if how == "poisoned":
            return IntegrityError
        stored = Stored(new, person)
        self.stored.append(stored)
        count = person.count = person.count or Count()
        if count.day:
            count.day = count.questions = count.tokens = 0
        if count.is_minute_over:
            count.is_minute_over, count.minute_questions = False, 0
        count.questions += 1
        count.minute_questions += 1
        if self.limits.has_budget:
            self.budget.setdefault(0, Count()).questions += 1
        return stored

    def _may_ask(self, person: Person) -> bool:
        limits, count = self.limits, person.count or Count()
        today = Count() if count.day else count
        minute = 0 if count.is_minute_over else count.minute_questions
        pending = sum(
            stored.is_there and stored.person is person and stored.end is None
            for stored in self.stored
        )
        all_today = self.budget.get(0, Count())
        return all(
            used < (most or used + 1)
            for used, most in (
                (minute, limits.per_minute),
                (pending, limits.in_flight),
                (today.questions, limits.per_day),
                (today.tokens, limits.tokens_per_day),
                (all_today.questions, limits.service_per_day),
                (all_today.tokens, limits.service_tokens_per_day),
            )
        )

    def settle(self, stored: Stored, outcome: Outcome, how: str) -> object:
        """What whoever settles it is told: the row, None, or the kind of an error."""
        if not stored.is_there or stored.end is not None:
            return None
        if how == "poisoned":
            return IntegrityError
        stored.end = outcome
        tokens = (outcome.prompt_tokens or 0) + (outcome.completion_tokens or 0)
        count = stored.person.count
        assert count is not None
        if count.day == stored.day:
            count.tokens += tokens
        if stored.day in self.budget:
            self.budget[stored.day].tokens += tokens
        return stored

    def next_day(self) -> None:
        for count in filter(None, (person.count for person in self.people)):
            count.day -= 1
        for stored in self.stored:
            stored.day -= 1
        self.budget = {day - 1: count for day, count in self.budget.items()}


# The players: the same steps on a real database.


class Play:
    """One example on a real database, with its model beside it."""

    def __init__(self, store: Mortal, limits: QuestionSettings, ids: list[int]) -> None:
        self._store = store
        self._database = store.database
        self._writing = Writing(store.database, limits, 60)
        self.model = Model(limits, [Person(id) for id in ids])

    async def add(self, step: Step) -> None:
        news = [self._new(item) for item in step.items]
        waiting = [self._writing.adding.submit(new) for new in news]
        told = await self._told(step, waiting)
        for item, new, outcome in zip(step.items, news, told, strict=True):
            if _is_lost(item, step, outcome):
                continue
            person = self.model.people[item.number]
            expected = self.model.add(new, person, item.how)
            if isinstance(expected, Stored) and item.how == "well":
                assert isinstance(outcome, Added), (item, outcome)
                expected.id = outcome.id
            else:
                _assert_told(item, expected, outcome)

    def _new(self, item: Item) -> NewQuestion:
        person, key = self.model.people[item.number], item.client_key
        # The table takes no empty content.
        content = "" if item.how == "poisoned" else f"Why {uuid.uuid4().hex}?"
        fingerprint = None if key is None else item.fingerprint
        return NewQuestion(person.id, content, _mark(), key, fingerprint)

    async def settle(self, step: Step) -> None:
        # Of every question there is one outcome, at most.
        stored = self.model.stored
        chosen = {item.number % len(stored): item for item in step.items}
        items = tuple(chosen.values())
        outcomes = [
            self._outcome(await self._id(stored[number]), stored[number], item)
            for number, item in chosen.items()
        ]
        waiting = [self._writing.settling.submit(outcome) for outcome in outcomes]
        told = await self._told(step._replace(items=items), waiting)
        for number, item, outcome, had in zip(
            chosen, items, outcomes, told, strict=True
        ):
            if _is_lost(item, step, had):
                continue
            expected = self.model.settle(stored[number], outcome, item.how)
            if isinstance(expected, Stored) and item.how == "well":
                # One that is stored when its connection dies is pending no more.
                is_dead = step.dying is not None and step.dying.moment == "after"
                assert isinstance(had, Settled) or (is_dead and had is None), (
                    item,
                    had,
                )
            else:
                _assert_told(item, expected, had)

    def _outcome(self, id: int, stored: Stored, item: Item) -> Outcome:
        prompt, completion = item.tokens
        return Outcome(
            id,
            stored.person.id,
            Status.ANSWERED,
            attempts=(Attempt("main", "answered", 1),),
            # What is answered has an answer.
            answer=None if item.how == "poisoned" else f"Because {uuid.uuid4().hex}.",
            provider=_mark(),
            prompt_tokens=prompt,
            completion_tokens=completion,
        )

    async def _told(
        self, step: Step, waiting: Sequence[asyncio.Future[Any]]
    ) -> list[Any]:
        """What each is told, who may leave before the batch is sent, or after."""
        death, dying = self._store.death, step.dying
        death.moment, death.times = dying or ("before", 0)
        for how in ("cancelled in line", "cancelled when sent"):
            for item, future in zip(step.items, waiting, strict=True):
                if item.how == how:
                    assert future.cancel()
            # One turn of the loop, and the batch is on its way.
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            told = await asyncio.gather(*waiting, return_exceptions=True)
            await self._writing.drain()
        death.times = 0
        return told

    async def _id(self, stored: Stored) -> int:
        """Whoever left when it was sent was not told."""
        if not stored.id:
            mine = QuestionRow.idempotency_key == stored.new.idempotency_key
            async with self._database.reading() as session:
                stored.id = (
                    await session.scalar(select(QuestionRow.id).where(mine)) or 0
                )
        return stored.id

    async def happen(self, step: Step) -> None:
        model = self.model
        person = model.people[step.number % PEOPLE]
        stored = model.stored[step.number % len(model.stored)] if model.stored else None
        if step.what == "deactivate":
            person.is_active = False
            await self._do(f"UPDATE users SET is_active = false WHERE id = {person.id}")
        elif step.what == "leave":
            person.is_there, person.count = False, None
            await self._do(f"DELETE FROM users WHERE id = {person.id}")
        elif step.what == "erase" and stored is not None:
            stored.is_erased = True
            await self._do(f"DELETE FROM questions WHERE id = {await self._id(stored)}")
        elif step.what == "next minute":
            for count in filter(None, (person.count for person in model.people)):
                count.is_minute_over = True
            await self._do(f"UPDATE questions_usage SET minute_ends_at = '{LONG_AGO}'")
        elif step.what == "next day":
            model.next_day()
            await self._do(*YESTERDAY[self._database.dialect])

    async def _do(self, *statements: str) -> None:
        async with self._database.transaction() as session:
            for statement in statements:
                await session.execute(text(statement))

    async def compare(self, today: date) -> None:
        """Everything that is stored is what the model says."""
        model, ids = self.model, [person.id for person in self.model.people]
        async with self._database.reading() as session:
            mine = QuestionRow.user_id.in_(ids)
            rows = (await session.scalars(select(QuestionRow).where(mine))).all()
            counts = (
                await session.scalars(select(UsageRow).where(UsageRow.user_id.in_(ids)))
            ).all()
            budgets = (await session.scalars(select(BudgetRow))).all()
        there = [stored for stored in model.stored if stored.is_there]
        expected = {stored.new.idempotency_key: _row_of(stored) for stored in there}
        assert {row.idempotency_key: _seen(row) for row in rows} == expected
        by_key = {row.idempotency_key: row for row in rows}
        for stored in there:
            assert stored.id in (0, by_key[stored.new.idempotency_key].id)
        for person in model.people:
            # Whoever sends no keys is stored in the order of asking.
            keyless = [
                by_key[stored.new.idempotency_key].id
                for stored in there
                if stored.person is person and stored.new.client_key is None
            ]
            assert keyless == sorted(keyless)
        assert {row.user_id: _count(row, today) for row in counts} == {
            person.id: (
                count.day,
                count.questions,
                count.tokens,
                count.minute_questions,
            )
            for person in model.people
            if (count := person.count) is not None
        }
        assert {
            (row.day - today).days: (row.questions, row.tokens) for row in budgets
        } == {
            day: (count.questions, count.tokens) for day, count in model.budget.items()
        }


def _mark() -> str:
    return f"{MARK}{uuid.uuid4().hex}"


def _is_lost(item: Item, step: Step, outcome: object) -> bool:
    """Whether nothing can have been done for it."""
    if item.how == "cancelled in line":
        assert isinstance(outcome, asyncio.CancelledError)
        return True
    if step.dying != Dying("before", 2):
        return False
    if item.how != "cancelled when sent":
        assert isinstance(outcome, DatabaseUnavailable), (item, outcome)
    return True


def _assert_told(item: Item, expected: object, outcome: object) -> None:
    if item.how == "cancelled when sent":
        assert isinstance(outcome, asyncio.CancelledError)
    elif expected is None:
        assert outcome is None, (item, outcome)
    else:
        assert isinstance(expected, type)
        assert isinstance(outcome, expected), (item, outcome)


def _row_of(stored: Stored) -> tuple[object, ...]:
    new, end = stored.new, stored.end
    told = (new.user_id, new.content, new.client_key, new.fingerprint)
    if end is None:
        return (*told, Status.PENDING, None, None, None, None)
    tokens = (end.prompt_tokens, end.completion_tokens)
    return (*told, end.status, end.answer, end.provider, *tokens)


def _seen(row: QuestionRow) -> tuple[object, ...]:
    told = (row.user_id, row.content, row.client_key, row.fingerprint)
    tokens = (row.prompt_tokens, row.completion_tokens)
    assert (row.answered_at is None) == (row.status == Status.PENDING)
    return (*told, row.status, row.answer, row.provider, *tokens)


def _count(row: UsageRow, today: date) -> tuple[int, int, int, int]:
    return ((row.day - today).days, row.questions, row.tokens, row.minute_questions)


async def make_people(database: Database, count: int) -> list[int]:
    """Somebody new, so many times."""
    names = [f"n{uuid.uuid4().hex[:12]}" for _ in range(count)]
    values = ", ".join(f"('{name}', '{name}')" for name in names)
    async with database.transaction() as session:
        inserted = await session.scalars(
            text(
                f"INSERT INTO users (username, username_key) VALUES {values}"
                " RETURNING id"
            )
        )
        return list(inserted)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(limits=LIMITS, steps=STEPS)
# What chance seldom brings about: that the day changes between two steps that belong
# together, or a minute.
@pytest.mark.slow
@example(limits={"service_per_day": 4}, steps=[ASK, NEXT_DAY, ASK, PAY])
@example(limits={"per_day": 1}, steps=[ASK, ASK, NEXT_DAY, ASK, ASK])
@example(limits={"tokens_per_day": 3}, steps=[ASK, PAY, ASK, NEXT_DAY, ASK])
@example(limits={"per_minute": 1}, steps=[ASK, ASK, NEXT_MINUTE, ASK, ASK])
async def test_F12_A19_A20_whatever_comes_together_each_is_as_if_alone(
    store: Mortal, limits: dict[str, int], steps: list[Step]
) -> None:
    today = datetime.now(UTC).date()
    async with store.database.transaction() as session:
        await session.execute(text("DELETE FROM questions_budget"))
    people = await make_people(store.database, PEOPLE)
    play = Play(store, QuestionSettings.model_validate(limits), people)
    for step in steps:
        if step.what == "add":
            await play.add(step)
        elif step.what == "settle":
            if play.model.stored:
                await play.settle(step)
        else:
            await play.happen(step)
    # An example that saw midnight shows nothing.
    if today == datetime.now(UTC).date():
        await play.compare(today)
