"""The two writes of a question's way as SQL, each for many questions at once.

A statement takes its rows as JSON and carries every rule, so what it does not return
was refused; whoever needs to know why asks afterwards. PostgreSQL does all of it in one
statement; SQLite, where nothing may write in a WITH, counts in a second one. Locks are
taken in one order everywhere: accounts by id, clients' keys, questions by id, usage by
account, the budget. So nothing here ever waits in a circle, nor with the deletion of an
account.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Executable, TextClause, text

from core.db import Statement, UtcDateTime
from core.locks import AdvisoryLock
from modules.questions.settings import QuestionSettings

NEW = {
    "user_id": "bigint",
    "content": "text",
    "idempotency_key": "text",
    "client_key": "text",
    "fingerprint": "text",
}
OUTCOME = {
    "question_id": "bigint",
    "user_id": "bigint",
    "status": "text",
    "attempts": "{json}",
    "answer": "text",
    "provider": "text",
    "model": "text",
    "prompt_tokens": "int",
    "completion_tokens": "int",
    "finish_reason": "text",
    "error_code": "text",
}

# More than anybody can ask, and small enough to be reckoned with.
_NO_LIMIT = 2**53
# Replicas take turns at the service's budget: each must see what the last one stored.
BUDGET = AdvisoryLock("questions.budget")
_MINUTE = 60

# What the two databases say differently.
_POSTGRESQL = {
    # All are arrays. That they might not be makes the planner expect one row and not a
    # hundred, and so look up each in an index, in a table that is still small as well:
    # a plan outlives that.
    "given": (
        "jsonb_array_elements(CAST(:rows AS jsonb)) WITH ORDINALITY AS given(value, n)"
        " WHERE jsonb_typeof(value) = 'array'"
    ),
    "field": "CAST(value->>{} AS {}) AS {}",
    "json": "json",
    # Whoever deletes an account waits for us, or we find it gone.
    "lock_accounts": "FOR KEY SHARE",
    "lock_questions": "FOR UPDATE OF questions",
    "lock_usage": "FOR UPDATE",
    # So said, each is found by its id, and not among all that are pending.
    "is_pending": "COALESCE(questions.status, '') = 'pending'",
    "least": "LEAST",
    "day_of": "CAST({} AT TIME ZONE 'UTC' AS date)",
    "now": "statement_timestamp()",
    "after": "statement_timestamp() + make_interval(secs => {:g})",
}
_SQLITE = {
    "given": "(SELECT value, key AS n FROM json_each(:rows))",
    "field": "CAST(json_extract(value, '$[{}]') AS {}) AS {}",
    "json": "text",
    # It has one writer.
    "lock_accounts": "",
    "lock_questions": "",
    "lock_usage": "",
    "is_pending": "questions.status = 'pending'",
    "least": "min",
    "day_of": "date({})",
    "now": "strftime('%Y-%m-%d %H:%M:%f000', 'now')",
    "after": "strftime('%Y-%m-%d %H:%M:%f000', 'now', '{:g} seconds')",
}

_AFFORDABLE = """
input AS (SELECT {new}, n FROM {given}),
asker AS (
    SELECT id FROM users
    WHERE is_active AND id IN (SELECT user_id FROM input)
    ORDER BY id {lock_accounts}
),
fresh AS (
    SELECT input.*, row_number() OVER (PARTITION BY input.user_id ORDER BY n) AS place
    FROM input JOIN asker ON asker.id = input.user_id
    WHERE input.client_key IS NULL OR NOT EXISTS (
        SELECT 1 FROM questions
        WHERE questions.user_id = input.user_id
        AND questions.client_key = input.client_key
    ) AND NOT EXISTS (
        SELECT 1 FROM input AS earlier
        WHERE earlier.user_id = input.user_id
        AND earlier.client_key = input.client_key AND earlier.n < input.n
    )
),
allowed AS (
    SELECT asker.id AS user_id, {allowance} AS questions
    FROM asker LEFT JOIN questions_usage AS used ON used.user_id = asker.id
),
affordable AS (
    SELECT fresh.*, row_number() OVER (ORDER BY n) AS place_among_all
    FROM fresh JOIN allowed ON allowed.user_id = fresh.user_id
    WHERE place <= allowed.questions
)
"""
_INSERT = """
INSERT INTO questions
    (user_id, content, idempotency_key, client_key, fingerprint, deadline_at)
SELECT user_id, content, idempotency_key, client_key, fingerprint, {deadline}
FROM affordable WHERE place_among_all <= {budget}
ORDER BY client_key, user_id, n
ON CONFLICT DO NOTHING
RETURNING idempotency_key, id, asked_at, user_id
"""
_COUNT = """
INSERT INTO questions_usage
    (user_id, day, questions, tokens, minute_ends_at, minute_questions)
SELECT user_id, MAX({asked_day}), count(*), 0, {after_a_minute}, count(*)
FROM {added} WHERE true GROUP BY user_id ORDER BY user_id
ON CONFLICT (user_id) DO UPDATE SET
    day = excluded.day,
    questions = excluded.questions + CASE
        WHEN questions_usage.day = excluded.day
        THEN questions_usage.questions ELSE 0 END,
    tokens = CASE
        WHEN questions_usage.day = excluded.day
        THEN questions_usage.tokens ELSE 0 END,
    minute_questions = excluded.minute_questions + CASE
        WHEN questions_usage.minute_ends_at > {now}
        THEN questions_usage.minute_questions ELSE 0 END,
    minute_ends_at = CASE
        WHEN questions_usage.minute_ends_at > {now}
        THEN questions_usage.minute_ends_at ELSE excluded.minute_ends_at END
"""
_COUNT_FOR_ALL = """
INSERT INTO questions_budget (day, questions, tokens)
SELECT {asked_day}, count(*), 0 FROM {added} WHERE true GROUP BY {asked_day}
ON CONFLICT (day) DO UPDATE SET
    questions = questions_budget.questions + excluded.questions
"""

_HELD = """
input AS (SELECT {outcome} FROM {given}),
asker AS (
    SELECT id FROM users WHERE id IN (SELECT user_id FROM input)
    ORDER BY id {lock_accounts}
),
held AS (
    SELECT input.* FROM input
    JOIN asker ON asker.id = input.user_id
    JOIN questions ON questions.id = input.question_id
    WHERE {is_pending}
    ORDER BY questions.id {lock_questions}
)
"""
_UPDATE = """
UPDATE questions SET
    status = held.status, attempts = held.attempts, answer = held.answer,
    provider = held.provider, model = held.model,
    prompt_tokens = held.prompt_tokens, completion_tokens = held.completion_tokens,
    finish_reason = held.finish_reason, error_code = held.error_code,
    answered_at = CASE WHEN held.status = 'answered' THEN {now} END
FROM held WHERE questions.id = held.question_id
RETURNING id, questions.answered_at, questions.user_id, questions.asked_at,
    questions.prompt_tokens, questions.completion_tokens
"""
_SPENT = """
spent AS (
    SELECT user_id, {asked_day} AS day, SUM(
        CAST(COALESCE(prompt_tokens, 0) AS bigint) + COALESCE(completion_tokens, 0)
    ) AS tokens
    FROM {settled}
    WHERE prompt_tokens > 0 OR completion_tokens > 0
    GROUP BY user_id, {asked_day}
),
purse AS (
    SELECT user_id FROM questions_usage WHERE user_id IN (SELECT user_id FROM spent)
    ORDER BY user_id {lock_usage}
)
"""
_SPEND = """
UPDATE questions_usage SET tokens = questions_usage.tokens + spent.tokens
FROM spent JOIN purse ON purse.user_id = spent.user_id
WHERE questions_usage.user_id = spent.user_id AND questions_usage.day = spent.day
"""
_SPEND_FOR_ALL = """
UPDATE questions_budget SET tokens = questions_budget.tokens + daily.tokens
FROM (SELECT day, SUM(tokens) AS tokens FROM spent GROUP BY day) AS daily
WHERE questions_budget.day = daily.day
"""


@dataclass(frozen=True)
class Statements:
    """What is executed, in this order, all of a write in one transaction."""

    lock: str
    """Makes replicas take turns, where limits need it; to be given `user_ids`."""
    add: Statement
    """Given `rows`, arrays in the order of `NEW`; returns the key, the id and the
    moment of each that it has stored."""
    count: tuple[Executable, ...]
    """Given the `ids` of what was stored."""
    settle: Statement
    """Given `rows`, arrays in the order of `OUTCOME`; returns the id and the moment of
    the answer of each that it has settled."""
    spend: tuple[Executable, ...]
    """Given the `ids` of what was settled."""


def statements(
    dialect: str, limits: QuestionSettings, deadline_seconds: float
) -> Statements:
    """The writes for a database and its limits."""
    is_postgresql = dialect == "postgresql"
    words = dict(_POSTGRESQL if is_postgresql else _SQLITE)
    stored = "(SELECT * FROM questions WHERE id IN (SELECT value FROM json_each(:ids)))"
    words |= {
        "new": _fields(NEW, words),
        "outcome": _fields(OUTCOME, words),
        "deadline": words["after"].format(deadline_seconds),
        "after_a_minute": words["after"].format(_MINUTE),
        "asked_day": words["day_of"].format("asked_at"),
        "today": words["day_of"].format(words["now"]),
        "added": "added" if is_postgresql else stored,
        "settled": "settled" if is_postgresql else stored,
    }
    words |= {"allowance": _allowance(limits, words), "budget": _budget(limits, words)}
    counting: Sequence[str] = [_COUNT]
    spending: Sequence[str] = [_SPEND]
    if limits.has_budget:
        counting, spending = [_COUNT, _COUNT_FOR_ALL], [_SPEND, _SPEND_FOR_ALL]
    add, settle = f"WITH {_AFFORDABLE}", f"WITH {_HELD}"
    if is_postgresql:
        add += (
            f", added AS ({_INSERT}) {_each('counted', counting)} SELECT * FROM added"
        )
        settle += f", settled AS ({_UPDATE}), {_SPENT} {_each('paid', spending)}"
        settle += " SELECT * FROM settled"
        counting = spending = []
    else:
        add, settle = add + _INSERT, settle + _UPDATE
    return Statements(
        lock=_lock(limits) if is_postgresql else "",
        add=Statement(_written(add, words).columns(asked_at=UtcDateTime), writes=True),
        count=tuple(_written(sql, words) for sql in counting),
        settle=Statement(
            _written(settle, words).columns(answered_at=UtcDateTime), writes=True
        ),
        spend=tuple(_written(f"WITH {_SPENT} {sql}", words) for sql in spending),
    )


def _written(sql: str, words: dict[str, str]) -> TextClause:
    return text(sql.format_map(words))


def _each(name: str, writes: Sequence[str]) -> str:
    """Writes that are done along with another one, after it."""
    return "".join(f", {name}_{n} AS ({sql})" for n, sql in enumerate(writes))


def _fields(kinds: dict[str, str], words: dict[str, str]) -> str:
    """Columns out of a JSON array, by their place in it."""
    field = words["field"]
    return ", ".join(
        field.format(place, kind.format_map(words), name)
        for place, (name, kind) in enumerate(kinds.items())
    )


def _allowance(limits: QuestionSettings, words: dict[str, str]) -> str:
    """How many questions somebody may ask at this moment."""
    terms = [f"{_NO_LIMIT}", f"{_NO_LIMIT}"]
    if limits.per_minute:
        minute = "used.minute_ends_at > {now} THEN used.minute_questions"
        terms.append(f"{limits.per_minute} - CASE WHEN {minute} ELSE 0 END")
    if limits.per_day:
        today = "used.day = {today} THEN used.questions"
        terms.append(f"{limits.per_day} - CASE WHEN {today} ELSE 0 END")
    if limits.tokens_per_day:
        spent = f"used.day = {{today}} AND used.tokens >= {limits.tokens_per_day}"
        terms.append(f"CASE WHEN {spent} THEN 0 ELSE {_NO_LIMIT} END")
    if limits.in_flight:
        pending = "questions.user_id = asker.id AND questions.status = 'pending'"
        going = f"SELECT count(*) FROM questions WHERE {pending}"
        terms.append(f"{limits.in_flight} - ({going})")
    return f"{words['least']}({', '.join(terms)})".format_map(words)


def _budget(limits: QuestionSettings, words: dict[str, str]) -> str:
    """How many questions all together may ask at this moment."""
    questions = limits.service_per_day or _NO_LIMIT
    tokens = limits.service_tokens_per_day or _NO_LIMIT
    if not limits.has_budget:
        return f"{questions}"
    left = f"CASE WHEN tokens >= {tokens} THEN 0 ELSE {questions} - questions END"
    today = f"SELECT {left} FROM questions_budget WHERE day = {words['today']}"
    return f"COALESCE(({today}), {questions})"


def _lock(limits: QuestionSettings) -> str:
    """What must come before a statement that is to see all that was asked so far."""
    if limits.has_budget:
        # It concerns everybody, so nobody need be locked besides.
        return BUDGET.take_for_transaction
    if not limits.has_limits:
        return ""
    return "SELECT id FROM users WHERE id IN ({user_ids}) ORDER BY id FOR NO KEY UPDATE"
