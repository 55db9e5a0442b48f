"""What `[llm]` and `[providers.NAME]` say is what the model's server gets."""

import asyncio
import re
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from core.errors import StartRefused
from core.settings import load_settings
from tests.conftest import served
from tests.support.api import assert_problem
from tests.support.certificates import Authority
from tests.support.config import write_config
from tests.support.proxy import proxy
from tests.support.upstream import KEY, Received, Upstream, upstream_of_its_own

SECRET = "canary-of-an-option-93b1"


async def test_every_option_of_a_request_arrives(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> None:
    file = write_config(
        tmp_path / "app.toml",
        database_url,
        upstream.base_url,
        llm='system_prompt = "Be brief."\ntemperature = 0.5\nmax_tokens = 77',
        providers__main='headers = { X-Team = "red", user-agent = "vopros-test" }',
    )
    upstream.requests.clear()
    async with served(file) as (_, api):
        await api.ask(await api.account(), "What arrives?")
    (received,) = upstream.requests
    assert received.head.startswith("POST /v1/chat/completions HTTP/1.1")
    assert received.json == {
        "model": "fake",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What arrives?"},
        ],
        "temperature": 0.5,
        "max_tokens": 77,
    }
    assert received.header("authorization") == f"Bearer {KEY}"
    assert received.header("x-team") == "red"
    assert received.header("user-agent") == "vopros-test"
    assert received.header("accept-encoding") == "identity"
    assert received.header("content-type") == "application/json"


@pytest.mark.slow
async def test_what_is_not_configured_is_not_sent(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> None:
    file = write_config(tmp_path / "app.toml", database_url, f"{upstream.base_url}/")
    upstream.requests.clear()
    async with served(file) as (_, api):
        await api.ask(await api.account(), "What arrives?")
    (received,) = upstream.requests
    assert received.head.startswith("POST /v1/chat/completions HTTP/1.1")
    assert received.json.keys() == {"model", "messages"}


@pytest.mark.slow
async def test_a_configured_header_takes_the_place_of_ours(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> None:
    header = 'headers = { AUTHORIZATION = "Token of-another-kind" }'
    file = write_config(
        tmp_path / "app.toml", database_url, upstream.base_url, providers__main=header
    )
    upstream.requests.clear()
    async with served(file) as (_, api):
        await api.ask(await api.account(), "Which one?")
    (received,) = upstream.requests
    sent = [n for n in received.head.split("\r\n") if n.lower().startswith("author")]
    assert [line.partition(": ")[2] for line in sent] == ["Token of-another-kind"]


BAD_OPTIONS: dict[str, tuple[str, str]] = {
    "a_key_in_clear": (
        f'base_url = "http://model.example/v1"\napi_key = "{SECRET}"',
        "base_url must be https:// where a key is sent",
    ),
    "a_secret_header_in_clear": (
        f'base_url = "http://10.0.0.1/v1"\nheaders = {{ X-Key = "{SECRET}" }}',
        "base_url must be https:// where a key is sent",
    ),
    "another_scheme": ('base_url = "ftp://model.example"', "base_url: must be an http"),
    "no_host": ('base_url = "https:///v1"', "base_url: must be an http"),
    "no_port": (f'base_url = "https://a:{SECRET}/v1"', "base_url: must be an http"),
    "no_address": (f'base_url = "https://[{SECRET}/v1"', "base_url: must be an http"),
    "a_password_in_the_url": (
        f'base_url = "https://user:{SECRET}@model.example/v1"',
        "base_url: must not hold a password, a query or a fragment",
    ),
    "a_query": (
        f'base_url = "https://model.example/v1?key={SECRET}"',
        "base_url: must not hold a password, a query or a fragment",
    ),
    "a_proxy_of_another_kind": (f'proxy = "ftp://{SECRET}@p:1"', "proxy: must be"),
    "a_proxy_of_socks4": (f'proxy = "socks4://{SECRET}@p:1080"', "proxy: must be"),
    "a_proxy_without_port": (f'proxy = "socks5://u:{SECRET}@p"', "proxy: must be"),
    "a_proxy_that_is_none": (f'proxy = "http://[{SECRET}"', "proxy: must be"),
    "a_proxy_of_odd_letters": (f'proxy = "http://u:{SECRET}@\u2100"', "proxy: must be"),
    "an_empty_key": ('api_key = ""', "api_key: must be printable ASCII"),
    "a_key_of_two_lines": (
        f'api_key = "{SECRET}\\r\\nX: y"',
        "api_key: must be printable ASCII",
    ),
    "a_header_of_two_lines": (
        f'headers = {{ X-A = "{SECRET}\\n" }}',
        "headers: must be printable ASCII",
    ),
    "a_header_that_is_no_name": (
        f'headers = {{ "X: {SECRET}" = "1" }}',
        "headers: must have names that may be set",
    ),
    "a_header_of_framing": (
        'headers = { Content-Length = "5" }',
        "headers: must have names that may be set",
    ),
    "a_query_of_two_lines": (
        f'query = {{ key = "{SECRET}\\n" }}',
        "query: must be printable ASCII",
    ),
    "a_secret_query_in_clear": (
        f'base_url = "http://model.example/v1"\nquery = {{ key = "{SECRET}" }}',
        "base_url must be https:// where a key is sent",
    ),
    "a_space_before_the_url": ('base_url = " https://a.example"', "base_url: must be"),
    "a_space_before_the_proxy": (f'proxy = " http://u:{SECRET}@p:1"', "proxy: must be"),
    "an_auth_header_that_is_no_name": (
        'auth_header = "X Key"',
        "auth_header: must be a header's name that may be set",
    ),
    "an_auth_header_of_framing": (
        'auth_header = "Transfer-Encoding"',
        "auth_header: must be a header's name that may be set",
    ),
    "a_scheme_of_two_words": ('auth_scheme = "Api Key"', "auth_scheme"),
    "a_body_with_other_messages": (
        "body = { messages = [] }",
        "body: must not set messages",
    ),
    "a_body_of_another_way": (
        "body = { stream = false, model = 'x', stream_options = {}, top_p = 1 }",
        "body: must not set model, stream, stream_options",
    ),
    "a_body_with_a_date": (
        "body = { metadata = { day = 2026-01-02 } }",
        "body: must hold what JSON can",
    ),
    "a_body_without_end": ("body = { top_p = inf }", "body: must hold what JSON can"),
    "a_ca_file_that_is_missing": (
        f'ca_file = "/{SECRET}/ca.pem"',
        "ca_file: there is no such file",
    ),
    "F45_a_negative_time": ("connect_seconds = -1", "connect_seconds"),
    "F45_no_time": ("first_token_seconds = 0", "first_token_seconds"),
    "an_unknown_key": ('modle = "m"', "did you mean 'model'?"),
}


@pytest.mark.parametrize(("lines", "told"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_a_bad_option_refuses_the_start(tmp_path: Path, lines: str, told: str) -> None:
    base_url = "" if "base_url" in lines else 'base_url = "https://model.example/v1"\n'
    table = f'type = "openai"\nmodel = "m"\n{base_url}{lines}'
    file = write_config(tmp_path / "app.toml", "sqlite:///x.db", providers__bad=table)
    with pytest.raises(StartRefused) as refused:
        load_settings(file, {"VOPROS_LLM__PROVIDER": "bad"})
    (line,) = str(refused.value).splitlines()
    assert "[providers.bad]" in line
    assert told in line
    assert SECRET not in line


def test_all_that_is_wrong_is_told_even_when_the_key_is_not_set(tmp_path: Path) -> None:
    table = (
        'type = "openai"\nmodel = "m"\napi_key = "${NOT_SET_ANYWHERE}"\n'
        f'base_url = "ftp://{SECRET}"\nproxy = "ftp://{SECRET}"\n'
        f'ca_file = "/{SECRET}"\nauth_header = "{SECRET}:"\nheaders = {{ "a b" = "" }}'
    )
    file = write_config(tmp_path / "app.toml", "sqlite:///x.db", providers__bad=table)
    with pytest.raises(StartRefused) as refused:
        load_settings(file, {"VOPROS_LLM__PROVIDER": "bad"})
    told = re.findall(r"\[providers\.bad\] (\w+): ", str(refused.value))
    assert told == ["api_key", "base_url", "headers", "proxy", "ca_file", "auth_header"]
    assert SECRET not in str(refused.value)


async def received_with(
    folder: Path,
    database_url: str,
    upstream: Upstream,
    options: str,
    *,
    streamed: bool = False,
) -> Received:
    """What arrives when a question is asked with these options."""
    file = write_config(
        folder / "app.toml", database_url, upstream.base_url, providers__main=options
    )
    upstream.requests.clear()
    async with served(file) as (_, api):
        ada = await api.account()
        if streamed:
            assert (await api.read(ada, "What arrives?"))[-1].name == "done"
        else:
            assert (await api.ask(ada, "What arrives?")).status_code == 201
    (received,) = upstream.requests
    return received


AUTHS: dict[str, tuple[str, str, str]] = {
    "a_header_of_its_own": ('auth_header = "api-key"', "api-key", KEY),
    "and_a_scheme": (
        'auth_header = "X-Auth"\nauth_scheme = "Token"',
        "x-auth",
        f"Token {KEY}",
    ),
    "another_scheme": ('auth_scheme = "Api-Key"', "authorization", f"Api-Key {KEY}"),
    "the_usual_one": (
        'auth_header = "AUTHORIZATION"',
        "authorization",
        f"Bearer {KEY}",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("options", "name", "value"), AUTHS.values(), ids=AUTHS.keys())
async def test_the_key_goes_where_it_is_wanted_and_nowhere_else(
    tmp_path: Path,
    database_url: str,
    upstream: Upstream,
    options: str,
    name: str,
    value: str,
) -> None:
    received = await received_with(tmp_path, database_url, upstream, options)
    assert received.header(name) == value
    assert received.head.count(KEY) == 1


@pytest.mark.slow
async def test_query_parameters_are_sent_with_every_request(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> None:
    options = f'query = {{ api-version = "v1", key = "{SECRET} &=#/" }}'
    received = await received_with(tmp_path, database_url, upstream, options)
    line, _, _ = received.head.partition("\r\n")
    target = urlsplit(line.split(" ")[1])
    assert target.path == "/v1/chat/completions"
    sent = parse_qs(target.query, strict_parsing=True)
    assert sent == {"api-version": ["v1"], "key": [f"{SECRET} &=#/"]}


async def test_body_parameters_are_added_to_every_question(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> None:
    options = "body = { top_p = 0.5, reasoning = { effort = 'low' }, stop = ['.'] }"
    received = await received_with(tmp_path, database_url, upstream, options)
    assert received.json == {
        "model": "fake",
        "messages": [{"role": "user", "content": "What arrives?"}],
        "top_p": 0.5,
        "reasoning": {"effort": "low"},
        "stop": ["."],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ("", {"stream": True, "stream_options": {"include_usage": True}}),
        ("stream_options = false", {"stream": True}),
    ],
    ids=["as_it_stands", "switched_off"],
)
async def test_usage_is_asked_for_unless_that_is_switched_off(
    tmp_path: Path,
    database_url: str,
    upstream: Upstream,
    options: str,
    sent: dict[str, Any],
) -> None:
    received = await received_with(
        tmp_path, database_url, upstream, options, streamed=True
    )
    asked = {"model", "messages"}
    assert {k: v for k, v in received.json.items() if k not in asked} == sent


def authorities(folder: Path) -> tuple[Authority, Authority]:
    (folder / "system").mkdir()
    (folder / "private").mkdir()
    return Authority(folder / "system"), Authority(folder / "private")


async def ask_over_tls(
    folder: Path, database_url: str, options: str, tls: ssl.SSLContext
) -> httpx.Response:
    async with upstream_of_its_own(tls) as upstream:
        file = write_config(
            folder / "app.toml",
            database_url,
            upstream.base_url,
            providers__main=options,
        )
        async with served(file) as (_, api):
            return await api.ask(await api.account(), "Who are you?")


@pytest.mark.slow
async def test_a_ca_file_is_trusted_besides_the_system(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, private = authorities(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(system.file))
    ca_file = f'ca_file = "{private.file}"'
    for authority, options, status in (
        (private, ca_file, 201),
        (system, ca_file, 201),
        (private, "", 502),
    ):
        tls = authority.issue("IP:127.0.0.1")
        answer = await ask_over_tls(tmp_path, database_url, options, tls)
        assert answer.status_code == status, answer.text
    assert_problem(answer, 502, "provider_tls")


@pytest.mark.slow
async def test_a_ca_file_does_not_excuse_another_name(
    tmp_path: Path, database_url: str
) -> None:
    _, private = authorities(tmp_path)
    options = f'ca_file = "{private.file}"'
    tls = private.issue("DNS:model.example")
    answer = await ask_over_tls(tmp_path, database_url, options, tls)
    assert_problem(answer, 502, "provider_tls")


@pytest.mark.parametrize("content", ["", f"{SECRET}\n", "-----BEGIN CERTIFICATE-----"])
async def test_a_ca_file_without_certificates_refuses_the_start(
    tmp_path: Path, database_url: str, content: str
) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text(content)
    file = write_config(
        tmp_path / "app.toml", database_url, providers__main=f'ca_file = "{ca_file}"'
    )
    with pytest.raises(StartRefused) as refused:
        async with served(file):
            raise AssertionError("it started")
    said = "provider 'main': ca_file holds no certificates in PEM"
    assert str(refused.value) == said


def test_a_name_that_cannot_be_stored_refuses_the_start(tmp_path: Path) -> None:
    tables = {f'providers__"{"n" * 101}"': 'type = "echo"'}
    file = write_config(tmp_path / "app.toml", "sqlite:///x.db", **tables)
    with pytest.raises(StartRefused) as refused:
        load_settings(file, {"VOPROS_LLM__PROVIDER": "n" * 101})
    assert "at most 100 printable characters" in str(refused.value)


def proxied(tmp_path: Path, database_url: str, base_url: str, url: str) -> Path:
    table = f'type = "openai"\nmodel = "m"\nbase_url = "{base_url}"\nproxy = "{url}"'
    return write_config(tmp_path / "app.toml", database_url, providers__far=table)


async def ask_far(file: Path, status: int = 201) -> Any:
    async with served(file, {"VOPROS_LLM__PROVIDER": "far"}) as (_, api):
        answer = await api.ask(await api.account(), "How far?")
        assert answer.status_code == status, answer.text
        return answer


@pytest.mark.parametrize("scheme", ["http", "HTTP"])
async def test_an_http_proxy_is_really_used(
    tmp_path: Path, database_url: str, upstream: Upstream, scheme: str
) -> None:
    async with proxy(upstream.port, socks=False) as found:
        url = f"{scheme}://user:{SECRET}@127.0.0.1:{found.port}"
        await ask_far(proxied(tmp_path, database_url, "http://model.invalid/v1", url))
    assert found.targets == ["POST http://model.invalid/v1/chat/completions"]
    assert found.credentials == [f"user:{SECRET}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "host", "seen"),
    [
        ("socks5h", "model.invalid", "model.invalid"),
        ("socks5", "localhost", "127.0.0.1"),
        ("SOCKS5H", "model.invalid", "model.invalid"),
    ],
)
async def test_a_socks_proxy_is_really_used(
    tmp_path: Path,
    database_url: str,
    upstream: Upstream,
    scheme: str,
    host: str,
    seen: str,
) -> None:
    async with proxy(upstream.port, socks=True) as found:
        url = f"{scheme}://user:{SECRET}@127.0.0.1:{found.port}"
        await ask_far(proxied(tmp_path, database_url, f"http://{host}:4321/v1", url))
    assert found.targets == [f"{seen}:4321"]
    assert found.credentials == [f"user:{SECRET}"]


@pytest.mark.slow
@pytest.mark.parametrize("socks", [False, True], ids=["http", "socks5h"])
@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "not_trusted"])
async def test_U21_certificates_are_checked_through_a_proxy_too(
    tmp_path: Path,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    socks: bool,
    trusted: bool,
) -> None:
    ours = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(ours.file))
    name = "DNS:model.example" if trusted else "DNS:other.example"
    async with (
        upstream_of_its_own(ours.issue(name)) as upstream,
        proxy(upstream.port, socks=socks) as found,
    ):
        scheme = "socks5h" if socks else "http"
        url = f"{scheme}://127.0.0.1:{found.port}"
        file = proxied(tmp_path, database_url, "https://model.example/v1", url)
        answer = await ask_far(file, 201 if trusted else 502)
        if not trusted:
            assert_problem(answer, 502, "provider_tls")
            assert upstream.requests == []
    target = "model.example:443"
    assert found.targets == [target if socks else f"CONNECT {target}"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "socks5", "socks5h"])
@pytest.mark.parametrize("host", ["https://model.invalid", "http://model.invalid"])
async def test_a_proxy_that_is_not_there_is_unreachable(
    tmp_path: Path, database_url: str, scheme: str, host: str
) -> None:
    url = f"{scheme}://user:{SECRET}@127.0.0.1:9"
    file = proxied(tmp_path, database_url, f"{host}/v1", url)
    answer = await ask_far(file, 502)
    assert_problem(answer, 502, "provider_unreachable")
    assert SECRET not in answer.text


async def test_a_proxy_that_refuses_us_is_unreachable(
    tmp_path: Path, database_url: str
) -> None:
    async def refuse(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        file = proxied(tmp_path, database_url, "https://model.invalid/v1", url)
        answer = await ask_far(file, 502)
    assert_problem(answer, 502, "provider_unreachable")
