"""Rehearsing an outage with `echo`: what a real one would look like to everybody."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from providers.echo import EchoOptions, open_echo
from providers.public import OffersModels
from tests.conftest import Databases, served
from tests.support.api import Api, assert_problem
from tests.support.config import write_config
from tests.support.process import assert_refused, vopros

FIRST = {"VOPROS_LLM__PROVIDER": "first"}
HEALTHY = {"VOPROS_LLM__FALLBACK": "healthy"}


def config(folder: Path, url: str, first: str) -> Path:
    """One echo that rehearses what `first` says, and one that does not."""
    return write_config(
        folder / "app.toml",
        url,
        providers__first=f'type = "echo"\n{first}',
        providers__healthy='type = "echo"',
    )


@pytest.fixture
async def url(databases: Databases) -> str:
    return await databases.migrated("sqlite")


@asynccontextmanager
async def rehearsing(
    folder: Path, url: str, first: str, **environ: str
) -> AsyncIterator[Api]:
    async with served(config(folder, url, first), FIRST | environ) as (_, api):
        yield api


def outcomes(question: dict[str, Any]) -> list[tuple[str, str]]:
    return [(tried["provider"], tried["outcome"]) for tried in question["attempts"]]


async def test_without_options_it_answers_at_once(tmp_path: Path, url: str) -> None:
    async with rehearsing(tmp_path, url, "") as api:
        ada = await api.account()
        answer = await api.ask(ada, " Spaces  and\nlines are kept. ")
        assert answer.status_code == 201
        question = answer.json()
        assert question["answer"].startswith("This is a demonstration: ")
        assert question["answer"].endswith("You asked:  Spaces  and\nlines are kept. ")
        assert outcomes(question) == [("first", "answered")]


async def test_a_stall_ends_in_a_timeout_and_the_healthy_one_answers(
    tmp_path: Path, url: str
) -> None:
    first = "stall_seconds = 60\nfirst_token_seconds = 0.2"
    async with rehearsing(tmp_path, url, first, **HEALTHY) as api:
        answer = await api.ask(await api.account(), "Anyone?")
        question = answer.json()
        assert answer.status_code == 201
        tried = [("first", "provider_timeout"), ("healthy", "answered")]
        assert outcomes(question) == tried
        assert 200 <= question["attempts"][0]["milliseconds"] < 60_000
        assert question["provider"] == "healthy"


async def test_a_trickle_is_streamed_word_by_word(tmp_path: Path, url: str) -> None:
    async with rehearsing(tmp_path, url, "trickle_seconds = 0.02") as api:
        started = time.monotonic()
        async with api.reading(await api.account(), "One two three?") as events:
            told = await events.rest()
        pieces = [data["text"] for name, data in told if name == "delta"]
        assert pieces[-3:] == ["One ", "two ", "three?"]
        assert time.monotonic() - started >= 0.02 * (len(pieces) - 1)
        name, question = told[-1]
        assert name == "done"
        assert question["answer"] == "".join(pieces)


async def test_a_trickle_that_pauses_for_too_long_is_a_timeout(
    tmp_path: Path, url: str
) -> None:
    first = "trickle_seconds = 60\nidle_seconds = 0.2"
    async with rehearsing(tmp_path, url, first, **HEALTHY) as api:
        ada = await api.account()
        async with api.reading(ada, "Go on?") as events:
            told = await events.rest()
        assert [name for name, _ in told] == ["meta", "delta", "error"]
        assert told[-1][1]["code"] == "provider_timeout"
        (question,) = await api.newest(ada)
        assert (question["status"], question["answer"]) == ("failed", "This ")
        assert outcomes(question) == [("first", "provider_timeout")]


FAILURES = {
    "provider_unreachable": 502,
    "provider_timeout": 504,
    "provider_rate_limited": 503,
    "provider_rejected": 422,
}


@pytest.mark.slow
@pytest.mark.parametrize("code", FAILURES)
async def test_it_fails_as_it_is_told_to(code: str, tmp_path: Path, url: str) -> None:
    async with rehearsing(tmp_path, url, f'fail_with = "{code}"') as api:
        ada = await api.account()
        assert_problem(await api.ask(ada, "Well?"), FAILURES[code], code)
        (question,) = await api.newest(ada)
        assert (question["status"], question["answer"]) == ("failed", None)


async def test_U33_the_healthy_one_answers_when_the_first_fails(
    tmp_path: Path, url: str
) -> None:
    first = 'fail_with = "provider_failed"\nfail_after_words = 3'
    async with rehearsing(tmp_path, url, first, **HEALTHY) as api:
        ada = await api.account()
        answer = await api.ask(ada, "Anyone?")
        assert answer.status_code == 201, answer.text
        question = answer.json()
        assert question["provider"] == "healthy"
        assert outcomes(question)[0] == ("first", "provider_failed")
        assert outcomes(question)[-1] == ("healthy", "answered")
        # Nothing of what the first had said is in it.
        assert question["answer"].count("This is a") == 1
        assert await api.newest(ada) == [question]


async def test_U33_a_failure_after_words_that_were_read_ends_the_stream(
    tmp_path: Path, url: str
) -> None:
    first = 'fail_with = "provider_stream_broken"\nfail_after_words = 3'
    async with rehearsing(tmp_path, url, first, **HEALTHY) as api:
        async with api.reading(await api.account(), "Anyone?") as events:
            told = await events.rest()
        pieces = [data["text"] for name, data in told if name == "delta"]
        assert "".join(pieces) == "This is a "
        name, problem = told[-1]
        assert (name, problem["code"]) == ("error", "provider_stream_broken")
        assert outcomes(problem) == [("first", "provider_stream_broken")]


async def test_U31_its_failures_open_the_breaker(tmp_path: Path, url: str) -> None:
    first = 'fail_with = "provider_timeout"\nbreaker_calls = 3'
    async with rehearsing(tmp_path, url, first) as api:
        ada = await api.account()
        for _ in range(3):
            assert_problem(await api.ask(ada, "Well?"), 504, "provider_timeout")
        last = await api.ask(ada, "And now?")
        assert_problem(last, 503, "provider_unavailable")
        assert int(last.headers["retry-after"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            'fail_with = "provider_unreachabel"',
            "fail_with: there is no such failure"
            " (did you mean 'provider_unreachable'?)",
        ),
        ('fail_with = "busy"', "fail_with: there is no such failure"),
        ("stall_seconds = -1", "stall_seconds: "),
        ("trickle_seconds = 3601", "trickle_seconds: "),
        ("fail_after_words = -1", "fail_after_words: "),
        ("stall = 1", "stall: there is no such key (did you mean 'stall_seconds'?)"),
    ],
)
def test_what_cannot_be_rehearsed_is_told_with_its_key(
    line: str, told: str, tmp_path: Path
) -> None:
    file = config(tmp_path, f"sqlite+aiosqlite:///{tmp_path}/vopros.db", line)
    done = vopros("--config", file, "config", "check", env=FIRST)
    assert_refused(done, f"[providers.first] {told}", code=78)


async def test_it_tells_its_own_name() -> None:
    async with open_echo("first", EchoOptions(type="echo")) as echo:
        assert isinstance(echo, OffersModels)
        assert await echo.models() == ("echo (a demonstration, not a language model)",)
