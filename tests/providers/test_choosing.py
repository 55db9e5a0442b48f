"""Which provider answers: the one word, `auto`, and the fallbacks."""

import asyncio
import json
from pathlib import Path

import pytest

from core.errors import StartRefused
from core.testing import Running
from providers.failover import FailoverChat
from tests.conftest import make_admin, served
from tests.support.api import Api, assert_problem
from tests.support.config import write_config
from tests.support.upstream import (
    KEY,
    Received,
    Upstream,
    Wire,
    completion,
    upstream_of_its_own,
)

BY_WORD = "VOPROS_LLM__PROVIDER"
ECHO = 'type = "echo"'
BY_KEY = (
    'type = "openai"\nbase_url = "{url}"\nmodel = "gpt-x"\n'
    'api_key = "${{OPENAI_API_KEY}}"'
)


def speaking(upstream: Upstream) -> str:
    """A table of a second backend."""
    return f'type = "openai"\nbase_url = "{upstream.base_url}"\nmodel = "second-model"'


def without_certificates(folder: Path) -> str:
    """A table that is right, but cannot be opened."""
    file = folder / "ca.pem"
    file.write_text("no certificate\n")
    return (
        f'type = "openai"\nbase_url = "https://model.invalid"\nmodel = "m"\n'
        f'ca_file = "{file}"'
    )


async def answered_by(api: Api) -> str:
    answer = await api.ask(await api.account(), "Who answers?")
    assert answer.status_code == 201, answer.text
    provider: str = answer.json()["provider"]
    return provider


async def provider_note(found: Running) -> str:
    """Who answers, and why, as an administrator reads it."""
    api = Api(found.url)
    admin = await make_admin(found, api)
    ready = await api.get("/health/ready", admin)
    await api.close()
    assert ready.status_code == 200, ready.text
    note: str = ready.json()["notes"]["provider"]
    return note


@pytest.mark.slow
async def test_one_word_switches_the_provider(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> None:
    async with upstream_of_its_own() as second:
        tables = {"providers__second": speaking(second)}
        file = tmp_path / "app.toml"
        write_config(file, database_url, upstream.base_url, **tables)
        upstream.requests.clear()
        async with served(file) as (found, api):
            assert await answered_by(api) == "main"
            assert await provider_note(found) == "main, as configured"
        assert (len(upstream.requests), len(second.requests)) == (1, 0)

        written = file.read_text()
        file.write_text(written.replace('provider = "main"', 'provider = "second"'))
        async with served(file) as (_, api):
            assert await answered_by(api) == "second"
        assert (len(upstream.requests), len(second.requests)) == (1, 1)
        assert second.requests[0].json["model"] == "second-model"

        async with served(file, {BY_WORD: "main"}) as (_, api):
            assert await answered_by(api) == "main"
        assert (len(upstream.requests), len(second.requests)) == (2, 1)


async def test_auto_takes_the_first_whose_key_is_set(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> None:
    tables = {
        "llm": 'auto = ["keyed", "echo"]',
        "providers__keyed": BY_KEY.format(url=upstream.base_url),
        "providers__echo": ECHO,
    }
    file = write_config(tmp_path / "app.toml", database_url, **tables)
    environ = {BY_WORD: "auto", "OPENAI_API_KEY": KEY}
    async with served(file, environ) as (found, api):
        assert await answered_by(api) == "keyed"
        assert "keyed, chosen by auto" in await provider_note(found)
    assert upstream.requests[-1].header("authorization") == f"Bearer {KEY}"


async def test_auto_passes_over_what_cannot_be_used_and_says_why(
    tmp_path: Path, database_url: str, database_kind: str
) -> None:
    tables = {
        "llm": 'auto = ["keyed", "missing", "untrusted", "echo"]',
        "providers__keyed": BY_KEY.format(url="https://model.invalid"),
        "providers__untrusted": without_certificates(tmp_path),
        "providers__echo": ECHO,
    }
    file = write_config(tmp_path / "app.toml", database_url, **tables)
    auto = {BY_WORD: "auto", "OPENAI_API_KEY": ""}
    if database_kind == "postgresql":
        # Not the embedded server: it must not pass a demonstration for a model.
        with pytest.raises(StartRefused) as refused:
            async with served(file, auto):
                pass
        assert "llm.allow_demo" in str(refused.value)
        assert "OPENAI_API_KEY is not set" in str(refused.value)
        auto["VOPROS_LLM__ALLOW_DEMO"] = "true"
    async with served(file, auto) as (found, api):
        note = await provider_note(found)
        answer = await api.ask(await api.account(), "Is this real?")
    assert note.startswith(
        "echo (a demonstration without a language model), chosen by auto: "
    )
    assert "keyed: the variable OPENAI_API_KEY is not set" in note
    assert "missing: there is no [providers.missing]" in note
    assert "untrusted: ca_file holds no certificates in PEM" in note
    question = answer.json()
    assert question["provider"] == "echo"
    assert "demonstration" in question["model"]
    for word in ("demonstration", "OPENAI_API_KEY", "llm.provider", "Is this real?"):
        assert word in question["answer"]


async def test_auto_refuses_to_start_with_nothing_usable(
    tmp_path: Path, database_url: str
) -> None:
    table = without_certificates(tmp_path)
    tables = {"llm": 'auto = ["untrusted"]', "providers__untrusted": table}
    file = write_config(tmp_path / "app.toml", database_url, **tables)
    with pytest.raises(StartRefused) as refused:
        async with served(file, {BY_WORD: "auto", "VOPROS_LLM__ALLOW_DEMO": "true"}):
            pass
    told = "auto found no usable provider: untrusted: ca_file holds no certificates"
    assert told in str(refused.value)


async def test_what_is_named_must_be_usable(tmp_path: Path, database_url: str) -> None:
    tables = {"providers__untrusted": without_certificates(tmp_path)}
    file = write_config(tmp_path / "app.toml", database_url, **tables)
    with pytest.raises(StartRefused) as refused:
        async with served(file, {BY_WORD: "untrusted"}):
            pass
    told = "provider 'untrusted': ca_file holds no certificates in PEM"
    assert str(refused.value) == told


class Backends:
    """Three backends in a row, each with the status that it answers with."""

    def __init__(self, *statuses: str) -> None:
        self._statuses = statuses
        self.asked: list[str] = []

    async def __call__(self, wire: Wire, received: Received) -> None:
        model = received.json["model"]
        self.asked.append(model)
        order = ["fake", "b", "c"]
        status = self._statuses[order.index(model)]
        body = completion("Answered.", model=model) if status == "200 OK" else {}
        await wire.respond(body, status=status)


def three(tmp_path: Path, database_url: str, upstream: Upstream) -> Path:
    def table(model: str) -> str:
        url = json.dumps(upstream.base_url)
        return f'type = "openai"\nbase_url = {url}\nmodel = "{model}"'

    return write_config(
        tmp_path / "app.toml",
        database_url,
        upstream.base_url,
        llm='fallback = ["second", "third"]\ndeadline_seconds = 1',
        providers__main="first_token_seconds = 0.2",
        providers__second=table("b"),
        providers__third=table("c"),
    )


BROKEN, FINE = "500 Internal Server Error", "200 OK"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statuses", "asked", "outcome"),
    [
        ([FINE, FINE, FINE], ["fake"], "main"),
        ([BROKEN, FINE, FINE], ["fake", "b"], "second"),
        (["401 Unauthorized", "429 Slow down", FINE], ["fake", "b", "c"], "third"),
        ([BROKEN, BROKEN, "404 Not Found"], ["fake", "b", "c"], None),
    ],
    ids=["healthy", "first_down", "two_down", "all_down"],
)
async def test_U33_fallbacks_are_asked_in_their_order(
    tmp_path: Path,
    database_url: str,
    upstream: Upstream,
    statuses: list[str],
    asked: list[str],
    outcome: str | None,
) -> None:
    backends = Backends(*statuses)
    file = three(tmp_path, database_url, upstream)
    async with served(file) as (_, api), upstream.behaving(backends):
        answer = await api.ask(await api.account(), "Who is there?")
    assert backends.asked == asked
    if outcome is None:
        assert_problem(answer, 502, "provider_misconfigured")
    else:
        assert (answer.status_code, answer.json()["provider"]) == (201, outcome)
        assert answer.json()["model"] == asked[-1]


@pytest.mark.slow
async def test_a_question_that_is_refused_is_not_asked_elsewhere(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> None:
    backends = Backends("400 Bad Request", FINE, FINE)
    file = three(tmp_path, database_url, upstream)
    async with served(file) as (_, api), upstream.behaving(backends):
        answer = await api.ask(await api.account(), "Too long?")
    assert_problem(answer, 422, "provider_rejected")
    assert backends.asked == ["fake"]


@pytest.mark.slow
async def test_a_silent_backend_leaves_time_for_the_next(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> None:
    async def first_is_silent(wire: Wire, received: Received) -> None:
        if received.json["model"] == "fake":
            await wire.closed_by_client()
        else:
            await wire.respond(completion())

    file = three(tmp_path, database_url, upstream)
    async with served(file) as (_, api), upstream.behaving(first_is_silent):
        assert await answered_by(api) == "second"


@pytest.mark.slow
async def test_fallbacks_share_one_deadline(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> None:
    async def all_are_silent(wire: Wire, received: Received) -> None:
        await wire.closed_by_client()

    file = three(tmp_path, database_url, upstream)
    async with served(file) as (_, api), upstream.behaving(all_are_silent):
        ada = await api.account()
        started = asyncio.get_running_loop().time()
        assert_problem(await api.ask(ada, "Anybody?"), 504, "provider_timeout")
        assert asyncio.get_running_loop().time() - started < 20


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mian", "did you mean 'main'?"),
        ("", "there are: main"),
    ],
)
async def test_F45_an_unknown_provider_refuses_the_start(
    tmp_path: Path, database_url: str, name: str, told: str
) -> None:
    file = write_config(
        tmp_path / "app.toml", database_url, llm=f"fallback = [{json.dumps(name)}]"
    )
    with pytest.raises(StartRefused) as refused:
        async with served(file):
            pass
    (line,) = str(refused.value).splitlines()
    assert "[llm] fallback: this names no table under [providers]" in line
    assert told in line


@pytest.mark.parametrize(
    "llm",
    ['fallback = ["spare", "main"]', 'fallback = ["spare", "spare"]'],
    ids=["provider", "fallback"],
)
async def test_F45_a_provider_that_is_named_twice_refuses_the_start(
    tmp_path: Path, database_url: str, llm: str
) -> None:
    """It would have its places, its tries and its breaker twice."""
    file = write_config(
        tmp_path / "app.toml", database_url, llm=llm, providers__spare=ECHO
    )
    with pytest.raises(StartRefused) as refused:
        async with served(file):
            pass
    (line,) = str(refused.value).splitlines()
    assert "[llm] fallback: this names a provider that is asked already" in line


async def test_U33_whom_auto_has_chosen_is_no_fallback_of_its_own(
    tmp_path: Path, database_url: str
) -> None:
    file = write_config(
        tmp_path / "app.toml",
        database_url,
        llm='auto = ["echo"]\nallow_demo = true\nfallback = ["echo", "main"]',
        providers__echo=ECHO,
    )
    async with served(file, {BY_WORD: "auto"}) as (found, _):
        chat = found.service(FailoverChat)
        assert [backend.name for backend in chat.backends] == ["echo", "main"]
