"""Getting to the model's server at all: names, ports, certificates, proxies."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import served
from tests.support.certificates import Authority
from tests.support.config import write_config
from tests.support.faults import assert_failed
from tests.support.upstream import upstream_of_its_own


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


NOWHERE = {
    "U01_refuses": ("http://127.0.0.1:{port}/v1", "provider_unreachable"),
    "U01_no_such_name": ("https://no-such-host.invalid/v1", "provider_unreachable"),
    "U01_no_name_at_all": (f"https://{'a' * 64}.invalid/v1", "provider_misconfigured"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("place", "code"), NOWHERE.values(), ids=NOWHERE.keys())
async def test_a_backend_that_is_not_there_is_a_bad_gateway(
    tmp_path: Path, database_url: str, place: str, code: str
) -> None:
    url = place.format(port=closed_port())
    file = write_config(tmp_path / "app.toml", database_url, url)
    async with served(file) as (_, api):
        ada = await api.account()
        answer = await api.ask(ada, "Is anybody there?")
        await assert_failed(api, ada, answer, 502, code)


def self_signed(ours: Authority, other: Authority) -> ssl.SSLContext:
    return other.issue("IP:127.0.0.1")


def expired(ours: Authority, other: Authority) -> ssl.SSLContext:
    return ours.issue("IP:127.0.0.1", days=-1)


def of_another_host(ours: Authority, other: Authority) -> ssl.SSLContext:
    return ours.issue("DNS:model.example,IP:127.0.0.2")


def authorities(folder: Path) -> tuple[Authority, Authority]:
    (folder / "ours").mkdir()
    (folder / "other").mkdir()
    return Authority(folder / "ours"), Authority(folder / "other")


@pytest.mark.parametrize("make", [self_signed, expired, of_another_host])
async def test_U21_a_certificate_that_cannot_be_trusted_gets_no_key(
    tmp_path: Path,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Authority, Authority], ssl.SSLContext],
) -> None:
    ours, other = authorities(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(ours.file))
    async with upstream_of_its_own(make(ours, other)) as upstream:
        file = write_config(tmp_path / "app.toml", database_url, upstream.base_url)
        async with served(file) as (_, api):
            ada = await api.account()
            answer = await api.ask(ada, "Who are you?")
            await assert_failed(api, ada, answer, 502, "provider_tls")
        assert upstream.requests == []


PROTOCOL_VERSION_ALERT = bytes.fromhex("15 0301 0002 02 46")


@pytest.mark.slow
@pytest.mark.parametrize(
    "greeting", [PROTOCOL_VERSION_ALERT, b"HTTP/1.1 400 Bad Request\r\n\r\n"]
)
async def test_U21_a_server_of_tls_1_0_or_of_none_gets_no_key(
    tmp_path: Path, database_url: str, greeting: bytes
) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(greeting)
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        file = write_config(tmp_path / "app.toml", database_url, url)
        async with served(file) as (_, api):
            ada = await api.account()
            answer = await api.ask(ada, "How old are you?")
            await assert_failed(api, ada, answer, 502, "provider_tls")


async def test_U21_a_certificate_that_is_trusted_is_enough(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = authorities(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(ours.file))
    async with upstream_of_its_own(ours.issue("IP:127.0.0.1")) as upstream:
        file = write_config(tmp_path / "app.toml", database_url, upstream.base_url)
        async with served(file) as (_, api):
            answer = await api.ask(await api.account(), "Who are you?")
            assert answer.status_code == 201, answer.text


async def test_U39_proxies_and_passwords_of_the_environment_are_ignored(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password something\n")
    netrc.chmod(0o600)
    nowhere = f"http://127.0.0.1:{closed_port()}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, nowhere)
        monkeypatch.setenv(name.lower(), nowhere)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NETRC", str(netrc))
    async with upstream_of_its_own() as upstream:
        keyless = f'type = "openai"\nmodel = "m"\nbase_url = "{upstream.base_url}"'
        file = write_config(
            tmp_path / "app.toml", database_url, providers__keyless=keyless
        )
        async with served(file, {"VOPROS_LLM__PROVIDER": "keyless"}) as (_, api):
            answer = await api.ask(await api.account(), "Straight there?")
            assert answer.status_code == 201, answer.text
        assert upstream.requests[0].header("authorization") is None
