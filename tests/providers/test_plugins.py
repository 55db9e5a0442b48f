"""Providers of strangers: loaded only when named, and trusted with nothing."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.errors import StartRefused
from core.health import Health
from core.settings import load_settings
from tests.conftest import Databases, served
from tests.support.api import Account, Api, assert_problem, events_of
from tests.support.config import write_config
from tests.support.process import assert_refused, serving, vopros
from tests.support.strange_models import install
from tests.support.upstream import KEY, Upstream

NAMED = {"VOPROS_LLM__PROVIDER": "guest"}
ORIGIN = "of strange-models 1.2.3"


def configured(folder: Path, database_url: str, kind: str, **tables: str) -> Path:
    # What fails in one test after the other is not to be left alone.
    table = f'type = "{kind}"\napi_key = "{KEY}"\nbreaker_calls = 0'
    return write_config(
        folder / "app.toml", database_url, providers__guest=table, **tables
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place where packages can be installed."""
    packages = tmp_path / "packages"
    packages.mkdir()
    monkeypatch.syspath_prepend(packages)
    return packages


async def test_a_strangers_plugin_answers_when_it_is_named(
    tmp_path: Path, folder: Path, database_url: str
) -> None:
    install(folder, "friendly")
    file = configured(tmp_path, database_url, "friendly")
    async with served(file, NAMED) as (_, api):
        answer = await api.ask(await api.account(), "Hello?")
    assert answer.status_code == 201, answer.text
    question = answer.json()
    assert question["answer"] == "A stranger's answer to: Hello?"
    assert (question["provider"], question["model"]) == ("guest", "strange-1")


async def test_a_plugin_that_is_not_named_is_never_imported(
    tmp_path: Path, folder: Path, database_url: str, upstream: Upstream
) -> None:
    witness = tmp_path / "imported"
    before = f"open({str(witness)!r}, 'w').close()\nraise RuntimeError"
    install(folder, "broken", before=before)
    install(folder, "broken", distribution="other-models", before=before)
    table = 'type = "broken"'
    file = write_config(
        tmp_path / "app.toml", database_url, upstream.base_url, providers__b=table
    )
    async with served(file) as (_, api):
        answer = await api.ask(await api.account(), "All well?")
    assert answer.status_code == 201, answer.text
    assert not witness.exists()
    assert not any(name.endswith("_broken") for name in sys.modules)


async def test_an_unknown_type_is_told_with_the_nearest_one(
    tmp_path: Path, folder: Path, database_url: str
) -> None:
    install(folder, "anthropic_like")
    line = refusal(configured(tmp_path, database_url, "openia"))
    assert "[providers.guest] type: there is no such type of provider" in line
    assert "did you mean 'openai'?" in line


HOOKIMPL = "@hookimpl\n"
RETURNS = "@hookimpl\ndef vopros_provider():\n    return "
BAD_HOOKS: dict[str, tuple[dict[str, str], str]] = {
    "broken_at_import": (
        {"before": f"raise RuntimeError('{KEY}')"},
        "cannot be loaded: RuntimeError",
    ),
    "ends_at_import": (
        {"before": "import sys; sys.exit(0)"},
        "cannot be loaded: SystemExit",
    ),
    "not_python": ({"before": "def :"}, "cannot be loaded: SyntaxError"),
    "misspelt": (
        {"hook": HOOKIMPL + "def vopros_provder():\n    return None"},
        "does not implement the hook as specified",
    ),
    "wrong_arguments": (
        {"hook": HOOKIMPL + "def vopros_provider(settings):\n    return None"},
        "does not implement the hook as specified",
    ),
    "no_hook": ({"hook": ""}, "does not return one ProviderType"),
    "returns_none": ({"hook": RETURNS + "None"}, "does not return one ProviderType"),
    "returns_text": ({"hook": RETURNS + "'x'"}, "does not return one ProviderType"),
    "returns_no_options": (
        {"hook": RETURNS + "ProviderType('{name}', dict, open_it)"},
        "does not return one ProviderType",
    ),
    "cannot_open": (
        {"hook": RETURNS + "ProviderType('{name}', Options, None)"},
        "does not return one ProviderType",
    ),
    "another_name": (
        {"hook": RETURNS + "ProviderType('openai', Options, open_it)"},
        "returns a type of another name",
    ),
    "hook_raises": (
        {"hook": HOOKIMPL + f"def vopros_provider():\n    raise KeyError('{KEY}')"},
        "failed: KeyError",
    ),
    "hook_ends": (
        {"hook": HOOKIMPL + "def vopros_provider():\n    raise SystemExit(0)"},
        "failed: SystemExit",
    ),
}


def refusal(file: Path) -> str:
    with pytest.raises(StartRefused) as refused:
        load_settings(file, NAMED)
    (line,) = str(refused.value).splitlines()
    assert KEY not in line
    return line


@pytest.mark.parametrize("name", BAD_HOOKS)
def test_F44_a_bad_plugin_refuses_the_start_by_name(
    tmp_path: Path, folder: Path, name: str
) -> None:
    source, told = BAD_HOOKS[name]
    install(folder, f"bad_{name}", **source)
    line = refusal(configured(tmp_path, "sqlite:///x.db", f"bad_{name}"))
    assert f"plugin 'bad_{name}' {ORIGIN} {told}" in line


def test_F44_one_name_of_two_packages_refuses_the_start(
    tmp_path: Path, folder: Path
) -> None:
    install(folder, "twice")
    install(folder, "twice", distribution="other-models", version="7")
    line = refusal(configured(tmp_path, "sqlite:///x.db", "twice"))
    assert "two packages bring the same provider" in line
    assert f"plugin 'twice' {ORIGIN}" in line
    assert "plugin 'twice' of other-models 7" in line


def test_F44_a_plugin_that_ends_the_process_is_told_in_one_line(
    tmp_path: Path, folder: Path
) -> None:
    install(folder, "quits", before="import os, sys; sys.exit(0)")
    file = configured(tmp_path, f"sqlite:///{tmp_path}/x.db", "quits")
    done = vopros("--config", file, "serve", env=NAMED | {"PYTHONPATH": str(folder)})
    told = f"plugin 'quits' {ORIGIN} cannot be loaded: SystemExit"
    assert_refused(done, told, code=78)


OPENS = """\
@asynccontextmanager
async def open_it(name, options):
    {body}

@hookimpl
def vopros_provider():
    return ProviderType("{{name}}", Options, open_it)
"""


@pytest.mark.parametrize("raised", ["ValueError(options.api_key)", "SystemExit(0)"])
async def test_F44_a_plugin_that_cannot_open_refuses_the_start(
    tmp_path: Path, folder: Path, database_url: str, raised: str
) -> None:
    kind = f"shut_{raised[:6].lower()}"
    body = f"raise {raised}\n    yield"
    install(folder, kind, hook=OPENS.format(body=body))
    with pytest.raises(StartRefused) as refused:
        async with served(configured(tmp_path, database_url, kind), NAMED):
            pass
    kind_raised = raised.partition("(")[0]
    told = f"plugin '{kind}' {ORIGIN} failed to open it: {kind_raised}"
    assert str(refused.value) == f"provider 'guest': {told}"


async def test_F44_auto_passes_over_a_plugin_that_cannot_open(
    tmp_path: Path, folder: Path, database_url: str
) -> None:
    body = "raise ValueError(options.api_key)\n    yield"
    install(folder, "jammed", hook=OPENS.format(body=body))
    auto = {"VOPROS_LLM__PROVIDER": "auto", "VOPROS_LLM__AUTO": "guest,main"}
    file = configured(tmp_path, database_url, "jammed")
    async with served(file, NAMED | auto) as (found, _):
        note = found.service(Health).notes["provider"]
    told = f"plugin 'jammed' {ORIGIN} failed to open it: ValueError"
    assert note == f"main, chosen by auto: guest: {told}"


async def test_F44_a_plugin_that_fails_to_close_spoils_no_shutdown(
    tmp_path: Path, folder: Path, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    body = "yield Chat('')\n    raise ValueError(options.api_key)"
    install(folder, "sticky", hook=OPENS.format(body=body))
    async with served(configured(tmp_path, database_url, "sticky"), NAMED) as (_, api):
        assert (await api.ask(await api.account(), "Well?")).status_code == 201
    (record,) = (r for r in caplog.records if r.message == "provider.not_closed")
    assert vars(record)["plugin"] == f"plugin 'sticky' {ORIGIN}"


BUG = (502, "provider_bug")
STREAMS: dict[str, tuple[str, tuple[int, str]]] = {
    "raises": ("raise ValueError(self.key)", BUG),
    "raises_late": ("yield Delta('a'); raise ValueError(self.key)", BUG),
    "times_out_by_itself": ("raise TimeoutError(self.key)", BUG),
    "ends_the_process": ("raise SystemExit(self.key)", BUG),
    "leaks_a_cancellation": ("import asyncio; raise asyncio.CancelledError", BUG),
    "yields_text": ("yield self.key", BUG),
    "yields_no_text": ("yield Delta(None)", BUG),
    "finishes_with_nothing": ("yield Delta('a'); yield Finish(None, None, None)", BUG),
    "counts_in_words": (
        "yield Delta('a'); yield Finish('m', 'stop', Usage('many', None))",
        BUG,
    ),
    "an_error_of_its_own": ("raise type('Mine' * 40, (ProviderError,), {})()", BUG),
    "an_error_with_words": (
        "raise ProviderFailed(self.key, hint=self.key)",
        (502, "provider_failed"),
    ),
    "an_endless_wait": (
        "raise ProviderOverloaded(retry_after_seconds=10**9)",
        (503, "provider_overloaded"),
    ),
    "does_not_finish": ("yield Delta('a')", (502, "provider_stream_broken")),
    "says_nothing": ("yield Finish('m', 'stop')", (502, "provider_bad_response")),
    "never_ends": (
        "while True: yield Delta('a' * 10_000)",
        (502, "answer_too_large"),
    ),
    "hangs": (
        "import asyncio; await asyncio.sleep(3600); yield Delta('a')",
        (504, "provider_timeout"),
    ),
}


@pytest.fixture
def chaotic(folder: Path) -> str:
    """One plugin that does whatever the question says, as code."""
    stream = """\
    async def stream(self, request):
        source = "async def act(self):\\n    " + request.content
        source += "\\n    yield None" if "yield" not in request.content else ""
        scope = dict(globals())
        exec(source, scope)
        events = scope["act"](self)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()
"""
    install(folder, "chaotic", stream=stream)
    return "chaotic"


FINE = "yield Delta('Still here.'); yield Finish('m', 'stop')"


async def assert_stored(
    api: Api, who: Account, problem: dict[str, Any], code: str
) -> None:
    """The question has failed as the problem says, and neither says more than that."""
    assert problem["code"] == code
    assert problem["detail"] == problem["title"]
    assert problem.get("retry_after", 1) <= 60
    assert {a["provider"] for a in problem["attempts"]} == {"guest"}
    assert problem["attempts"][-1]["outcome"] == code
    stored = await api.get(f"/questions/{problem['question_id']}", who)
    question = stored.json()
    assert (question["status"], question["error_code"]) == ("failed", code)
    assert KEY not in json.dumps(problem) + stored.text


@pytest.mark.slow
async def test_F44_a_plugin_that_misbehaves_is_a_bad_gateway_and_nothing_else(
    tmp_path: Path,
    database_url: str,
    chaotic: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = configured(tmp_path, database_url, chaotic, llm="deadline_seconds = 1")
    async with served(file, NAMED) as (_, api):
        ada = await api.account()
        for code, (status, told) in STREAMS.values():
            answer = await api.ask(ada, code)
            await assert_stored(api, ada, assert_problem(answer, status, told), told)
            assert int(answer.headers.get("retry-after", 1)) <= 60
        assert (await api.ask(ada, FINE)).json()["answer"] == "Still here."
    failed = [vars(r) for r in caplog.records if r.message == "provider.failed"]
    bugs = [fields for fields in failed if fields["code"] == "provider_bug"]
    assert bugs
    assert {bug["plugin"] for bug in bugs} == {f"plugin 'chaotic' {ORIGIN}"}


SAY_SOMETHING_FIRST = (
    "raises_late",
    "finishes_with_nothing",
    "counts_in_words",
    "does_not_finish",
    "never_ends",
)


@pytest.mark.slow
async def test_F44_a_plugin_that_misbehaves_while_it_is_read_is_told_all_the_same(
    tmp_path: Path, database_url: str, chaotic: str
) -> None:
    file = configured(tmp_path, database_url, chaotic, llm="deadline_seconds = 1")
    async with served(file, NAMED) as (_, api):
        ada = await api.account()
        for name, (code, (status, told)) in STREAMS.items():
            answer = await read_along(api, ada, code)
            if name in SAY_SOMETHING_FIRST:
                events = events_of(answer.text)
                assert [kind for kind, _ in events[:2]] == ["meta", "delta"], name
                kind, problem = events[-1]
                assert (kind, problem["status"]) == ("error", status), name
            else:
                problem = assert_problem(answer, status, told)
            await assert_stored(api, ada, problem, told)
        events = await api.read(ada, FINE)
        assert (events[-1][0], events[-1][1]["answer"]) == ("done", "Still here.")


async def read_along(api: Api, who: Account, content: str) -> httpx.Response:
    """Ask for a stream and read it to its end."""
    return await api.http.post(
        "/questions/stream", json={"content": content}, headers=who.auth
    )


@pytest.mark.slow
async def test_F44_a_plugin_that_blocks_delays_everybody_and_harms_nobody(
    tmp_path: Path,
    folder: Path,
    databases: Databases,
    database_kind: str,
    chaotic: str,
) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    blocks = f"open({str(pipe)!r}).read(); {FINE}"
    file = configured(tmp_path, await databases.migrated(database_kind), chaotic)
    environ = NAMED | {"PYTHONPATH": str(folder)}
    with serving("--config", file, env=environ) as child:
        api = Api(child.url)
        ada, eve = await api.account(), await api.account()
        asking = [asyncio.create_task(api.ask(ada, blocks))]
        # It opens when the plugin opens its end, to wait there with the whole loop.
        release = await asyncio.to_thread(open, pipe, "wb")
        with release:
            asking.append(asyncio.create_task(api.ask(eve, FINE)))
            assert not (await asyncio.wait(asking, timeout=0.2))[0]
        for answer in await asyncio.gather(*asking):
            assert answer.status_code == 201, answer.text
            assert answer.json()["answer"] == "Still here."
        assert child.process.poll() is None
        await api.close()


async def test_what_a_plugin_says_of_its_answer_is_made_to_fit(
    tmp_path: Path, database_url: str, chaotic: str
) -> None:
    odd: list[tuple[str, dict[str, Any]]] = [
        ("Finish('m\\0' * 500, 'stop')", {"model": ("m\ufffd" * 500)[:200]}),
        ("Finish('m', 'because ' * 50)", {"finish_reason": "other"}),
        (
            "Finish('m', 'stop', Usage(12.7, -3))",
            {"usage": {"prompt_tokens": 12, "completion_tokens": 0}},
        ),
    ]
    async with served(configured(tmp_path, database_url, chaotic), NAMED) as (_, api):
        ada = await api.account()
        for finish, told in odd:
            answer = await api.ask(ada, f"yield Delta('a'); yield {finish}")
            assert answer.status_code == 201, answer.text
            question = answer.json()
            assert told.items() <= question.items()
            assert (await api.newest(ada))[0] == question
