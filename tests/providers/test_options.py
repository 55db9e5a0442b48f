"""What `[llm]` and `[providers.NAME]` say is what the model's server gets."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from core.errors import StartRefused
from core.settings import load_settings
from tests.conftest import served
from tests.support.api import assert_problem
from tests.support.certificates import Authority
from tests.support.config import write_config
from tests.support.proxy import proxy
from tests.support.upstream import KEY, Upstream, upstream_of_its_own

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
    "another_scheme": ('base_url = "ftp://model.example"', "base_url must be an http"),
    "no_host": ('base_url = "https:///v1"', "base_url must be an http"),
    "no_port": (f'base_url = "https://a:{SECRET}/v1"', "base_url must be an http"),
    "no_address": (f'base_url = "https://[{SECRET}/v1"', "base_url must be an http"),
    "a_password_in_the_url": (
        f'base_url = "https://user:{SECRET}@model.example/v1"',
        "base_url must not hold a password, a query or a fragment",
    ),
    "a_query": (
        f'base_url = "https://model.example/v1?key={SECRET}"',
        "base_url must not hold a password, a query or a fragment",
    ),
    "a_proxy_of_another_kind": (f'proxy = "ftp://{SECRET}@p:1"', "proxy must be"),
    "a_proxy_of_socks4": (f'proxy = "socks4://{SECRET}@p:1080"', "proxy must be"),
    "a_proxy_without_port": (f'proxy = "socks5://u:{SECRET}@p"', "proxy must be"),
    "a_proxy_that_is_none": (f'proxy = "http://[{SECRET}"', "proxy must be"),
    "a_proxy_of_odd_letters": (f'proxy = "http://u:{SECRET}@\u2100"', "proxy must be"),
    "an_empty_key": ('api_key = ""', "api_key and headers must be printable ASCII"),
    "a_key_of_two_lines": (
        f'api_key = "{SECRET}\\r\\nX: y"',
        "api_key and headers must be printable ASCII",
    ),
    "a_header_of_two_lines": (
        f'headers = {{ X-A = "{SECRET}\\n" }}',
        "api_key and headers must be printable ASCII",
    ),
    "a_header_that_is_no_name": (
        f'headers = {{ "X: {SECRET}" = "1" }}',
        "headers must have names that may be set",
    ),
    "a_header_of_framing": (
        'headers = { Content-Length = "5" }',
        "headers must have names that may be set",
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


async def test_an_http_proxy_is_really_used(
    tmp_path: Path, database_url: str, upstream: Upstream
) -> None:
    async with proxy(upstream.port, socks=False) as found:
        url = f"http://user:{SECRET}@127.0.0.1:{found.port}"
        await ask_far(proxied(tmp_path, database_url, "http://model.invalid/v1", url))
    assert found.targets == ["POST http://model.invalid/v1/chat/completions"]
    assert found.credentials == [f"user:{SECRET}"]


@pytest.mark.parametrize(
    ("scheme", "host", "seen"),
    [
        ("socks5h", "model.invalid", "model.invalid"),
        ("socks5", "localhost", "127.0.0.1"),
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
