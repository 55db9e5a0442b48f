"""Configuration: which layer wins, and how what is wrong is told."""

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr

from core.db import Database
from core.errors import StartRefused
from core.layers import DEFAULT_FILE, ConfigurationRefused
from core.module import ROOT, load_modules
from core.settings import (
    CORE_SECTIONS,
    DatabaseSettings,
    LogSettings,
    ModulesSettings,
    ServerSettings,
    Settings,
    load_settings,
)
from modules.auth.secret import is_guessable, weakness
from modules.auth.settings import AuthSettings
from providers.echo import EchoOptions
from providers.local import LocalOptions
from providers.openai_chat import OpenAIOptions
from providers.public import ProviderOptions
from providers.settings import LlmSettings
from tests.support.config import SECRET
from tests.support.process import assert_refused, serving, vopros

CANARY = "canary-51c2e0f7"
ECHO = '[llm]\nprovider = "echo"\n[providers.echo]\ntype = "echo"\n'


def load(
    text: str, tmp_path: Path, env: Mapping[str, str] | None = None, **server: str
) -> Settings:
    file = tmp_path / "app.toml"
    file.write_text(text, encoding="utf-8")
    overrides: dict[tuple[str, ...], str] = {
        ("server", key): value for key, value in server.items()
    }
    return load_settings(file, env or {}, overrides)


def refusal(
    text: str, tmp_path: Path, env: Mapping[str, str] | None = None
) -> list[str]:
    """The lines that refuse it, without their numbers; none of them shows a value."""
    with pytest.raises(StartRefused) as raised:
        load(text, tmp_path, env)
    assert CANARY not in str(raised.value)
    told = str(raised.value).replace(f"{tmp_path}/", "")
    return re.sub(r"^app\.toml:\d+: ", "app.toml: ", told, flags=re.M).splitlines()


# Precedence.


def test_the_command_line_beats_the_environment_beats_the_file_beats_the_default(
    tmp_path: Path,
) -> None:
    def port(text: str, env: dict[str, str], **server: str) -> int:
        return load(ECHO + text, tmp_path, env, **server).section(ServerSettings).port

    written, environ = "[server]\nport = 1111", {"VOPROS_SERVER__PORT": "2222"}
    assert port("", {}) == 8000
    assert port(written, {}) == 1111
    assert port(written, environ) == 2222
    assert port("", environ) == 2222
    assert port(written, environ, port="3333") == 3333


def test_the_file_is_named_by_the_command_line_then_by_the_environment(
    tmp_path: Path,
) -> None:
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text(f"{ECHO}[server]\nport = 1")
    other.write_text(f"{ECHO}[server]\nport = 2")
    env = {"VOPROS_CONFIG": str(other)}
    assert load_settings(None, env).section(ServerSettings).port == 2
    assert load_settings(one, env).section(ServerSettings).port == 1
    assert load_settings(None, {}).raw.file.endswith("config/app.toml")


@pytest.mark.parametrize(
    "given", ["users, auth", '["users", "auth"]', "users,auth,", ' ["users","auth"] ']
)
def test_a_list_comes_from_the_environment_as_words_or_as_json(
    given: str, tmp_path: Path
) -> None:
    settings = load(ECHO, tmp_path, {"VOPROS_MODULES__ENABLED": given})
    assert settings.section(ModulesSettings).enabled == ("users", "auth")


def test_booleans_numbers_and_deep_tables_come_from_the_environment(
    tmp_path: Path,
) -> None:
    env = {
        "VOPROS_SERVER__DOCS": "false",
        "VOPROS_SERVER__BODY_SECONDS": "1.5",
        "VOPROS_LLM__PROVIDER": "main",
        "VOPROS_PROVIDERS__MAIN__TYPE": "echo",
    }
    settings = load(ECHO, tmp_path, env)
    assert settings.section(ServerSettings).docs is False
    assert settings.section(ServerSettings).body_seconds == 1.5
    assert settings.section(LlmSettings).provider == "main"


# The shipped file.


def sections() -> dict[str, type[BaseModel]]:
    """Every table that has defaults."""
    found: dict[str, type[BaseModel]] = dict(CORE_SECTIONS)
    for module in load_modules(["questions", "auth"]):
        found.update(module.sections)
    del found["providers"]
    return found | {
        "providers.openai": OpenAIOptions,
        "providers.local": LocalOptions,
        "providers.echo": EchoOptions,
    }


def test_the_shipped_file_says_every_default_as_it_is() -> None:
    shipped = tomllib.loads(DEFAULT_FILE.read_text(encoding="utf-8"))
    providers = shipped.pop("providers")
    tables = shipped | {f"providers.{name}": t for name, t in providers.items()}
    assert tables.keys() == sections().keys()
    for name, kind in sections().items():
        if name.startswith("providers."):
            continue
        defaults = kind()
        for key, value in tables[name].items():
            default = getattr(defaults, key)
            if isinstance(default, SecretStr):
                default = default.get_secret_value()
            if isinstance(default, tuple):
                default = list(default)
            assert value == default, f"[{name}] {key}"


REPEATED = ("providers.local", "providers.echo")


def test_the_shipped_file_mentions_every_setting() -> None:
    text = DEFAULT_FILE.read_text(encoding="utf-8")
    parts = re.split(r"^\[([a-z.]+)\]$", text, flags=re.MULTILINE)
    tables = dict(zip(parts[1::2], parts[2::2], strict=True))
    for name, kind in sections().items():
        # What every provider has is said once.
        common = ProviderOptions.model_fields if name in REPEATED else {}
        for key in kind.model_fields.keys() - (common.keys() - {"type"}):
            mention = re.compile(rf"^(# )?{key} +=|^(# )?{key} =", re.MULTILINE)
            assert mention.search(tables[name]), f"[{name}] {key}"


def test_the_examples_in_the_shipped_file_can_be_used() -> None:
    """Every setting in a comment, uncommented, is a setting that there is."""
    text = DEFAULT_FILE.read_text(encoding="utf-8")
    used = re.sub(r"^# ([a-z_]+ += )", r"\1", text, flags=re.MULTILINE)
    assert used != text
    file_tables = tomllib.loads(used)
    providers = file_tables.pop("providers")
    tables = file_tables | {f"providers.{name}": t for name, t in providers.items()}
    for name, kind in sections().items():
        assert tables[name].keys() <= kind.model_fields.keys(), name


def test_the_shipped_file_starts_as_it_is() -> None:
    settings = load_settings(None, {})
    assert settings.is_embedded
    assert [module.name for module in settings.modules] == (
        ["users", "auth", "providers", "questions"]
    )


# What is wrong is one line: file, table, key, the nearest valid name, never a value.


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            f'[server]\nprot = "{CANARY}"',
            "app.toml: [server] prot: there is no such key (did you mean 'port'?)",
        ),
        (
            f'[sever]\nport = "{CANARY}"',
            "app.toml: [sever]: there is no such table (did you mean 'server'?)",
        ),
        (
            f'[server]\nport = "{CANARY}"',
            "app.toml: [server] port: input should be a valid integer, unable to"
            " parse string as an integer",
        ),
        (
            "[server]\nport = 70000",
            "app.toml: [server] port: input should be less than or equal to 65535",
        ),
        (
            '[llm]\ndeadline_seconds = -1\n[providers.echo]\ntype = "echo"',
            "app.toml: [llm] deadline_seconds: input should be greater than 0",
        ),
        (
            f'[log]\nlevel = "{CANARY}"',
            "app.toml: [log] level: input should be 'DEBUG', 'INFO', 'WARNING' or"
            " 'ERROR'",
        ),
        (
            '[modules]\nenabled = ["users", "auht"]',
            "app.toml: [modules] enabled: there is no module 'auht' (did you mean"
            " 'auth'?)",
        ),
        (
            '[llm]\nprovider = "mian"\n[providers.main]\ntype = "echo"',
            "app.toml: [llm] provider: this names no table under [providers]"
            " (did you mean 'main'?)",
        ),
        (
            '[llm]\nprovider = "main"\n[providers.main]\ntype = "opneai"',
            "app.toml: [providers.main] type: there is no such type of provider"
            " (did you mean 'openai'?)",
        ),
        (
            '[llm]\nprovider = "main"\n[providers.main]\ntype = "openai"\n'
            f'base_url = "http://x/v1"\nmodel = "m"\napi_kye = "{CANARY}"',
            "app.toml: [providers.main] api_kye: there is no such key (did you mean"
            " 'api_key'?)",
        ),
        (
            '[llm]\nprovider = "main"\n[providers.main]\ntype = "openai"\n'
            'base_url = "http://x/v1"\nmodel = "m"\napi_key = "${NOT_SET_ANYWHERE}"',
            "app.toml: [providers.main] api_key: the variable NOT_SET_ANYWHERE is not"
            " set",
        ),
        (
            '[auth]\nsecret_file = "/nowhere/to/be/found"',
            "app.toml: [auth] secret_file: this file cannot be read",
        ),
        (
            f'[auth]\nsecret = "{CANARY}"\nsecret_file = "/nowhere"',
            "app.toml: [auth] secret_file: secret is given as well: one of them has"
            " to go",
        ),
        (
            f'[auth]\nsecret = "{CANARY}"',
            "app.toml: [auth] secret: shorter than 32 bytes (make one with"
            " `openssl rand -hex 32`)",
        ),
        ('llm = "canary-51c2e0f7"', "app.toml: [llm]: must be a table"),
        (
            f'[providers]\nmain = "{CANARY}"',
            "app.toml: [providers] main: input should be a valid dictionary",
        ),
        (f'[server]\nport = {CANARY}"', "app.toml: not valid TOML (at line 2, column"),
        (f"key = '{CANARY}", "app.toml: not valid TOML (at"),
    ],
)
def test_what_is_wrong_in_the_file_is_one_readable_line(
    text: str, line: str, tmp_path: Path
) -> None:
    needed = "" if "[llm]" in text or "llm =" in text else ECHO
    if "[providers]" in text:
        needed = ""
    (found,) = refusal(f"{text}\n{needed}", tmp_path)
    assert found.startswith(line)


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = f'[server]\nprot = 1\nhots = "{CANARY}"\n[auth]\nisuer = "x"\n[sever]\na = 1'
    lines = refusal(f"{text}\n{ECHO}", tmp_path)
    assert len(lines) == 4


MAIN = (
    '[providers.main]\ntype = "openai"\nbase_url = "https://example.org/v1"\n'
    'model = "m"\n'
)


def test_a_broken_table_hides_no_mistake_elsewhere(tmp_path: Path) -> None:
    text = (
        f'[server]\nport = "{CANARY}"\nhost = "local host"\n[log]\nlevl = "x"\n'
        f'[database]\nurl = "mysql://{CANARY}@h/d"\n[auth]\nisuer = "x"\n'
        f'secret = "{CANARY}"\n[llm]\nprovider = "mian"\nfallback = ["main"]\n'
        f'temperature = 9\n{MAIN}modle = "x"\n'
    )
    lines = refusal(text, tmp_path)
    places = [re.findall(r"\[\S+\] \w+", line)[0] for line in lines]
    assert sorted(places) == [
        "[auth] isuer",
        "[auth] secret",
        "[database] url",
        "[llm] provider",
        "[llm] temperature",
        "[log] levl",
        "[providers.main] modle",
        "[server] host",
        "[server] port",
    ]


POSTGRESQL = '[database]\nurl = "postgresql+asyncpg://localhost/vopros"\n'


@pytest.mark.parametrize(
    ("text", "place"),
    [
        # auto is what llm.provider is when it cannot be read.
        ("[llm]\nprovider = 5\n", "[llm] provider"),
        ('[llm]\nprovdier = "main"\n', "[llm] provdier"),
        ("[llm]\nauto = 5\n", "[llm] auto"),
        ('[llm]\nauto = ["main"]\n[providers]\nmain = 5\n', "[providers] main"),
        ('[llm]\nprovider = "main"\n[providers]\nmain = 5\n', "[providers] main"),
        ('providers = 5\n[llm]\nprovider = "main"\n', "[providers]"),
        # A secret is needed, and there is one.
        (f"{POSTGRESQL}{ECHO}[auth]\nsecret = 5\n", "[auth] secret"),
        (f'{POSTGRESQL}{ECHO}[auth]\nsecrt = "x"\n', "[auth] secrt"),
        (f'{POSTGRESQL}{ECHO}[auth]\nsecret_file = "/-"\n', "[auth] secret_file"),
        # SQLite is what the database is when its URL cannot be read.
        (f"{ECHO}[server]\nworkers = 2\n[database]\nurl = 5\n", "[database] url"),
        # A stranger's table is known by a name that cannot be read.
        (f"{ECHO}[modules]\nenabled = 5\n[notes]\nsize = 1\n", "[modules] enabled"),
        (
            f'{ECHO}[modules]\nenabled = ["nots"]\n[notes]\nsize = 1\n',
            "[modules] enabled",
        ),
    ],
)
def test_a_default_in_the_place_of_what_is_wrong_is_no_mistake(
    text: str, place: str, tmp_path: Path
) -> None:
    (line,) = refusal(text, tmp_path)
    assert line.startswith(f"app.toml: {place}: ")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (f"{CANARY}", "this is not a database URL"),
        (f"mysql://{CANARY}@h/d", "must begin with postgresql+asyncpg or sqlite"),
        ("sqlite://", "SQLite needs the path of a file"),
    ],
)
def test_a_database_url_that_cannot_be_used_names_its_origin(
    url: str, told: str, tmp_path: Path
) -> None:
    auth = f'{ECHO}[auth]\nsecret = "{SECRET}"\n'
    (line,) = refusal(f'{auth}[database]\nurl = "{url}"', tmp_path)
    assert line.startswith(f"app.toml: [database] url: {told}")
    (line,) = refusal(auth, tmp_path, {"VOPROS_DATABASE__URL": url})
    assert line.startswith("environment VOPROS_DATABASE__URL: [database] url: ")


@pytest.mark.parametrize(
    "host", ["local host", "", "http://h", "[::1]", "h:80", "a..b"]
)
def test_what_is_no_host_is_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(StartRefused) as refused:
        load(ECHO, tmp_path, host=host)
    told = "command line: [server] host: must be an address or the name of a host"
    assert str(refused.value) == told


@pytest.mark.parametrize(
    "proxy", ["*", "proxy.local", "", "0.0.0.0/0", "::/0", "10.0.0.7/24", "10.0.0.7:80"]
)
def test_I24_who_is_no_proxy_s_address_is_not_trusted(
    proxy: str, tmp_path: Path
) -> None:
    server = f'{ECHO}[auth]\nsecret = "{SECRET}"\n[server]\ntrusted_proxies = '
    (line,) = refusal(f'{server}["127.0.0.1", "{proxy}"]', tmp_path)
    assert line.startswith("app.toml: [server] trusted_proxies: must be addresses or ")
    good = f'{server}["10.0.0.7", "10.0.1.0/24", "2001:db8::7", "fd00::/8"]'
    proxies = load(good, tmp_path).section(ServerSettings).trusted_proxies
    assert len(proxies) == 4


@pytest.mark.parametrize("host", ["::", "fe80::1%eth0", "127.0.0.1", "a-b.c_d", "h."])
def test_addresses_and_names_are_hosts(host: str, tmp_path: Path) -> None:
    env = {"VOPROS_AUTH__SECRET": SECRET}
    settings = load(ECHO, tmp_path, env, host=host)
    assert settings.section(ServerSettings).host == host


@pytest.mark.parametrize(
    "value", [f"${{{CANARY[:6]}", "${NAME:-x}", "Bearer ${NAME", "$OPENAI_API_KEY"]
)
def test_what_only_looks_like_a_variable_is_told(value: str, tmp_path: Path) -> None:
    text = f'{ECHO.replace("echo", "main", 1)}{MAIN}'
    (line,) = refusal(f'{text}api_key = "{value}"', tmp_path, {"NAME": CANARY})
    told = "looks like a variable: write ${NAME}"
    assert line == f"app.toml: [providers.main] api_key: {told}"


@pytest.mark.parametrize("value", ["$1 each", "US$", "$AB", "$Abc", "a $NAME b", "{}"])
def test_an_amount_of_money_is_no_variable(value: str, tmp_path: Path) -> None:
    text = ECHO.replace("[llm]", f'[llm]\nsystem_prompt = "{value}"')
    assert load(text, tmp_path).section(LlmSettings).system_prompt == value


def test_a_table_without_a_type_is_told_where_it_is_and_what_there_is(
    tmp_path: Path,
) -> None:
    told = "[providers.eco] type: this key is needed (there are: anthropic, echo, "
    env = {"VOPROS_LLM__PROVIDER": "eco"}
    fail = {"VOPROS_PROVIDERS__ECO__FAIL_WITH": CANARY}
    (line,) = refusal(ECHO, tmp_path, env | fail)
    assert line.startswith(f"environment {next(iter(fail))}: {told}")
    (line,) = refusal(f"{ECHO}[providers.eco]\nstall_seconds = 1", tmp_path, env | fail)
    assert line.startswith(f"app.toml: {told}")


def test_another_key_that_is_missing_is_told_where_its_table_is(tmp_path: Path) -> None:
    env = {"VOPROS_LLM__PROVIDER": "far", "VOPROS_PROVIDERS__FAR__TYPE": "gigachat"}
    (line,) = refusal(ECHO, tmp_path, env)
    where = "environment VOPROS_PROVIDERS__FAR__TYPE"
    assert line == f"{where}: [providers.far] api_key: this key is needed"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "VOPROS_SERVER__PROT",
            "environment VOPROS_SERVER__PROT: [server] prot: there is no such key"
            " (did you mean 'port'?)",
        ),
        (
            "VOPROS_SERVER__PORT",
            "environment VOPROS_SERVER__PORT: [server] port: input should be a valid",
        ),
        (
            "VOPROS_SEVER__PORT",
            "environment VOPROS_SEVER__PORT: [sever]: there is no such table",
        ),
        ("VOPROS_SERVER", "environment VOPROS_SERVER: [server]: must be a table"),
        (
            "VOPROS_PROVIDERS__ECHO",
            "environment VOPROS_PROVIDERS__ECHO: [providers] echo: input should be",
        ),
        (
            "VOPROS_LLM__PROVIDER",
            "environment VOPROS_LLM__PROVIDER: [llm] provider: this names no table",
        ),
        (
            "VOPROS_AUTH__SECRET",
            "environment VOPROS_AUTH__SECRET: [auth] secret: shorter than",
        ),
        (
            "VOPROS_AUTH__SECRET_FILE",
            "environment VOPROS_AUTH__SECRET_FILE: [auth] secret_file: this file",
        ),
        (
            "VOPROS_SERVER__PORT__DEEPER",
            "environment VOPROS_SERVER__PORT__DEEPER: port is not a table",
        ),
    ],
)
def test_what_is_wrong_in_the_environment_names_the_variable(
    name: str, line: str, tmp_path: Path
) -> None:
    written = "[server]\nport = 1\n" if "DEEPER" in name else ""
    (found,) = refusal(written + ECHO, tmp_path, {name: CANARY})
    assert found.startswith(line)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match=r"nowhere\.toml: No such file"):
        load_settings(tmp_path / "nowhere.toml", {})
    with pytest.raises(StartRefused, match="Is a directory"):
        load_settings(tmp_path, {})
    (tmp_path / "latin").write_bytes(b'[log]\nlevel = "\xff"')
    with pytest.raises(StartRefused, match="latin: not valid TOML"):
        load_settings(tmp_path / "latin", {})


# Secrets.


def test_a_secret_comes_from_a_file_a_variable_or_a_variables_file(
    tmp_path: Path,
) -> None:
    def secret(text: str, env: dict[str, str]) -> str | None:
        found = load(f"{ECHO}[auth]\n{text}", tmp_path, env).section(AuthSettings)
        return found.secret.get_secret_value() if found.secret else None

    kept = tmp_path / "kept"
    kept.write_text(f"{SECRET}\n")
    file = str(kept)
    assert secret("", {}) is None
    assert secret(f'secret = "{SECRET}"', {}) == SECRET
    assert secret("", {"VOPROS_AUTH__SECRET": SECRET}) == SECRET
    assert secret(f'secret_file = "{file}"', {}) == SECRET
    assert secret("", {"VOPROS_AUTH__SECRET_FILE": file}) == SECRET
    assert secret('secret = "${SIGNING}"', {"SIGNING": SECRET}) == SECRET
    assert secret('secret = "${SIGNING}"', {"SIGNING_FILE": file}) == SECRET
    # Compose passes on a variable that nobody set as an empty one.
    assert secret("", {"VOPROS_AUTH__SECRET_FILE": ""}) is None


def test_a_secrets_file_and_its_value_obey_the_layers(tmp_path: Path) -> None:
    def secret(text: str, env: dict[str, str]) -> str:
        found = load(f"{ECHO}[auth]\n{text}", tmp_path, env).section(AuthSettings)
        assert found.secret is not None
        return found.secret.get_secret_value()

    kept = tmp_path / "kept"
    kept.write_text(SECRET[::-1])
    below = f'secret_file = "{kept}"'
    assert secret(below, {"VOPROS_AUTH__SECRET": SECRET}) == SECRET
    above = {"VOPROS_AUTH__SECRET_FILE": str(kept)}
    assert secret(f'secret = "{SECRET}"', above) == SECRET[::-1]


def test_a_secrets_file_is_taken_as_it_is_and_its_path_may_hold_a_reference(
    tmp_path: Path,
) -> None:
    kept = tmp_path / "kept"
    kept.write_text("pass${word}")
    text = f'{ECHO}[database]\npassword_file = "${{FOLDER}}/kept"'
    settings = load(text, tmp_path, {"FOLDER": str(tmp_path)})
    password = settings.section(DatabaseSettings).password
    assert password is not None and password.get_secret_value() == "pass${word}"


def test_a_file_replaces_a_reference_to_what_is_not_set(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text(SECRET)
    text = f'{ECHO}[auth]\nsecret = "${{NOT_SET_ANYWHERE}}"'
    env = {"VOPROS_AUTH__SECRET_FILE": str(kept)}
    found = load(text, tmp_path, env).section(AuthSettings).secret
    assert found is not None and found.get_secret_value() == SECRET


def test_a_reference_may_be_a_part_of_a_value(tmp_path: Path) -> None:
    text = ECHO + '[database]\nurl = "sqlite:///${FOLDER}/${NAME}.db"'
    settings = load(text, tmp_path, {"FOLDER": "/data", "NAME": "vopros"})
    url = settings.section(DatabaseSettings).url.get_secret_value()
    assert url == "sqlite:////data/vopros.db"


# Tables in a list.

OTHER = SECRET[::-1]


def keys(
    text: str, tmp_path: Path, env: Mapping[str, str] | None = None
) -> list[tuple[str, str]]:
    """The name and the secret of each signing key."""
    found = load(f"{ECHO}[auth]\n{text}", tmp_path, env).section(AuthSettings)
    return [(key.kid, key.secret.get_secret_value()) for key in found.signing_keys]


def test_a_list_of_tables_is_written_inline_or_with_a_heading_each(
    tmp_path: Path,
) -> None:
    both = [("a", SECRET), ("b", OTHER)]
    inline = f'{{kid = "a", secret = "{SECRET}"}}, {{kid = "b", secret = "{OTHER}"}}'
    assert keys(f"signing_keys = [{inline}]", tmp_path) == both
    headed = (f'[[auth.signing_keys]]\nkid = "{k}"\nsecret = "{s}"\n' for k, s in both)
    assert keys("".join(headed), tmp_path) == both
    assert keys("", tmp_path) == keys("signing_keys = []", tmp_path) == []


@pytest.mark.parametrize("source", ["file", "environment", "reference", "variable"])
def test_a_secret_in_a_list_comes_from_a_variable_or_a_file_like_any_other(
    source: str, tmp_path: Path
) -> None:
    (kept := tmp_path / "kept").write_text(f"{OTHER}${{NOT_A_REFERENCE}}\n")
    quoted = f'{SECRET}"]'
    env = {"A": quoted, "FOLDER": str(tmp_path), "C_FILE": str(kept)}
    text = (
        '[{"kid": "a", "secret": "${A}"},'
        ' {"kid": "b", "secret_file": "${FOLDER}/kept"},'
        ' {"kid": "c", "secret": "${C}"}]'
    )
    match source:
        case "file":
            written = "signing_keys = " + text.replace('": ', '" = ')
        case "environment":
            written, env["VOPROS_AUTH__SIGNING_KEYS"] = "", text
        case "reference":
            written, env["KEYS"] = 'signing_keys = "${KEYS}"', text
        case _:
            (listed := tmp_path / "listed").write_text(text)
            written, env["KEYS_FILE"] = 'signing_keys = "${KEYS}"', str(listed)
    other = f"{OTHER}${{NOT_A_REFERENCE}}"
    expected = [("a", quoted), ("b", other), ("c", other)]
    assert keys(written, tmp_path, env) == expected


@pytest.mark.parametrize(
    "below", ["", f'signing_keys = [{{kid = 1, secret = "{CANARY}"}}]']
)
def test_a_list_in_the_environment_replaces_the_one_in_the_file(
    below: str, tmp_path: Path
) -> None:
    env = {"VOPROS_AUTH__SIGNING_KEYS": f'[{{"kid": "a", "secret": "{SECRET}"}}]'}
    assert keys(below, tmp_path, env) == [("a", SECRET)]
    # Compose passes on a variable that nobody set as an empty one.
    assert keys(below, tmp_path, {"VOPROS_AUTH__SIGNING_KEYS": ""}) == []


LISTS = [
    ('{kid = "a"}', "[0].secret: this key is needed"),
    (f'{{secret = "{SECRET}"}}', "[0].kid: this key is needed"),
    (
        f'{{kid = "a", secret = "{SECRET}", secrte = "{CANARY}"}}',
        "[0].secrte: there is no such key (did you mean 'secret'?)",
    ),
    (f'{{kid = "a", secret = "{CANARY}"}}', "[0].secret: shorter than 32 bytes"),
    ('{kid = "a", secret = "${NOT_SET}"}', "[0].secret: the variable NOT_SET is not"),
    ('{kid = "a", secret = "$NOT_SET"}', "[0].secret: looks like a variable: write"),
    (
        f'{{kid = "a", secret = "{SECRET}", secret_file = "/nowhere"}}',
        "[0].secret_file: secret is given as well: one of them has to go",
    ),
    (
        '{kid = "a", secret_file = "/nowhere/to/be/found"}',
        "[0].secret_file: this file cannot be read",
    ),
    (f'{{kid = "", secret = "{SECRET}"}}', "[0].kid: string should match"),
    (f'{{kid = "{"k" * 65}", secret = "{SECRET}"}}', "[0].kid: string should match"),
    (f'{{kid = "a b{CANARY}", secret = "{SECRET}"}}', "[0].kid: string should match"),
    (f'{{kid = "a\\n", secret = "{SECRET}"}}', "[0].kid: string should match"),
    (f'{{kid = 1, secret = "{SECRET}"}}', "[0].kid: input should be a valid string"),
    (
        f'{{kid = "{CANARY}", secret = "{SECRET}"}},'
        f'{{kid = "{CANARY}", secret = "{OTHER}"}}',
        "[1].kid: signing_keys[0] is called so already",
    ),
    (f'"{CANARY}"', "[0]: input should be a valid dictionary"),
]


@pytest.mark.parametrize(("item", "problem"), LISTS)
@pytest.mark.parametrize(
    "source", ["app.toml", "environment VOPROS_AUTH__SIGNING_KEYS"]
)
def test_what_is_wrong_in_a_list_is_named_by_its_number_and_no_value(
    source: str, item: str, problem: str, tmp_path: Path
) -> None:
    text, env = f"[auth]\nsigning_keys = [{item}]", None
    if source != "app.toml":
        json_list = json.dumps(tomllib.loads(text)["auth"]["signing_keys"])
        text, env = "", {"VOPROS_AUTH__SIGNING_KEYS": json_list}
    (line,) = refusal(ECHO + text, tmp_path, env)
    assert line.startswith(f"{source}: [auth] signing_keys{problem}")


@pytest.mark.parametrize(
    "text", ["[", "{}", f'{{"kid": "{CANARY}"}}', CANARY, f"[{CANARY}]", "[" * 100_000]
)
def test_a_list_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    env = {"VOPROS_AUTH__SIGNING_KEYS": text}
    (line,) = refusal(ECHO, tmp_path, env)
    assert line.startswith(f"environment {next(iter(env))}: [auth] signing_keys: ")


def test_a_mistake_in_a_list_hides_no_other(tmp_path: Path) -> None:
    text = (
        f'{ECHO}[database]\nurl = "mysql://{CANARY}@h/d"\n[auth]\nisuer = "x"\n'
        f'signing_keys = [{{kid = "a", secret = "{SECRET}"}},'
        ' {kid = "b", secret = "${NOT_SET}"}]\n'
    )
    lines = refusal(text, tmp_path)
    for place in ("[auth] isuer", "[auth] signing_keys[1].secret", "[database] url"):
        assert len([line for line in lines if place in line]) == 1, lines
    # The keys are not known, so nobody says that there are none.
    assert len(lines) == 3, lines


def test_only_providers_that_can_be_reached_need_their_variables(
    tmp_path: Path,
) -> None:
    other = (
        '[providers.other]\ntype = "openai"\nbase_url = "http://x/v1"\nmodel = "m"\n'
        'api_key = "${NOT_SET_ANYWHERE}"\n'
    )
    load(ECHO + other, tmp_path)
    lines = refusal(ECHO + other, tmp_path, {"VOPROS_LLM__FALLBACK": "other"})
    assert "NOT_SET_ANYWHERE is not set" in lines[0]


@pytest.mark.parametrize(
    "secret",
    [
        "short",
        "change-me-change-me-change-me-change-me",
        "your-secret-key-here-your-secret-key",
        "a" * 64,
        "abababababababababababababababab",
        "12345678901234567890123456789012",
        "0123456789abcdef0123456789abcdef",
        "abcdefghijklmnopqrstuvwxyz012345",
        "correcthorsecorrecthorsecorrecthorse",
    ],
)
def test_a_secret_that_can_be_guessed_is_weak(secret: str) -> None:
    assert weakness(secret) is not None


def test_random_secrets_are_not_weak() -> None:
    for _ in range(200):
        assert weakness(os.urandom(32).hex()) is None
        assert not is_guessable(os.urandom(24).hex())


# The start matrix: who must be given a secret, and which one will do.

EMBEDDED = "127.0.0.1"
SECRETS = {
    "missing": (None, "a signing secret is needed on this server"),
    "short": ("canary-51c2", "shorter than 32 bytes"),
    "placeholder": (f"{CANARY}-change-me-{CANARY}", "this is a placeholder"),
    "repeating": ("canary7-" * 5, "it can be guessed"),
    "good": (SECRET, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("host", [EMBEDDED, "0.0.0.0"])
@pytest.mark.parametrize("kind", SECRETS)
def test_A06_C9_a_server_starts_with_a_good_secret_only(
    host: str, kind: str, tmp_path: Path
) -> None:
    secret, problem = SECRETS[kind]
    file = tmp_path / "app.toml"
    file.write_text(f'{ECHO}[database]\nurl = "sqlite:///{tmp_path}/vopros.db"\n')
    env = {"VOPROS_SERVER__HOST": host}
    if secret is not None:
        env["VOPROS_AUTH__SECRET"] = secret
    if problem is None or (kind == "missing" and host == EMBEDDED):
        with serving("--config", file, env=env) as server:
            assert server.end() == 0
        assert "Traceback" not in server.log
    else:
        refused = vopros("--config", file, "serve", "--port", "0", env=env)
        assert_refused(refused, "[auth] secret: ", problem, code=78)
        assert secret is None or secret not in refused.stderr
        assert not (tmp_path / "signing.secret").exists()


def test_C9_postgresql_needs_a_secret_even_on_loopback(tmp_path: Path) -> None:
    text = ECHO + '[database]\nurl = "postgresql+asyncpg://localhost/vopros"'
    (line,) = refusal(text, tmp_path)
    assert "a signing secret is needed on this server" in line
    assert "VOPROS_AUTH__SECRET" in line


@pytest.mark.slow
def test_a_secret_made_at_the_first_start_is_kept_private_and_used_again(
    tmp_path: Path,
) -> None:
    file = tmp_path / "app.toml"
    file.write_text(f'{ECHO}[database]\nurl = "sqlite:///{tmp_path}/vopros.db"\n')
    kept = tmp_path / "signing.secret"

    def start() -> str:
        with serving("--config", file) as server:
            assert server.end() == 0
        assert "Traceback" not in server.log
        return server.log

    log = start()
    secret = kept.read_text().strip()
    assert len(bytes.fromhex(secret)) == 32
    assert kept.stat().st_mode & 0o777 == 0o600
    for made in tmp_path.glob("vopros.db*"):
        assert made.stat().st_mode & 0o077 == 0, made
    assert str(kept) in log
    assert secret not in log
    assert [p.name for p in tmp_path.glob("signing*")] == ["signing.secret"]

    log = start()
    assert kept.read_text().strip() == secret
    assert str(kept) not in log
    assert secret not in log

    kept.chmod(0o640)
    log = start()
    assert "auth.secret_exposed" in log
    assert str(kept) in log
    assert "0640" in log
    assert secret not in log

    kept.write_text("short")
    refused = vopros("--config", file, "serve", "--port", "0")
    assert_refused(refused, str(kept), "shorter than 32 bytes")


# `auto`.


def test_auto_settles_on_a_demonstration_on_the_embedded_server_only(
    tmp_path: Path,
) -> None:
    text = (
        f'[llm]\nauto = ["echo"]\n[providers.echo]\ntype = "echo"\n'
        f'[auth]\nsecret = "{SECRET}"\n'
    )
    load(text, tmp_path)
    env = {"VOPROS_SERVER__HOST": "0.0.0.0"}
    (line,) = refusal(text, tmp_path, env)
    assert "[llm] provider: auto found nothing usable: echo: a demonstration" in line
    assert "llm.allow_demo" in line
    load(text, tmp_path, env | {"VOPROS_LLM__ALLOW_DEMO": "true"})
    # Asked for by name it is no surprise.
    load(text, tmp_path, env | {"VOPROS_LLM__PROVIDER": "echo"})


def test_a_file_without_a_table_of_modules_enables_those_in_the_tree(
    tmp_path: Path,
) -> None:
    names = {module.name for module in load(ECHO, tmp_path).modules}
    assert names == {"users", "auth", "providers", "questions"}


def test_the_tables_of_a_disabled_module_are_no_mistake(tmp_path: Path) -> None:
    text = DEFAULT_FILE.read_text(encoding="utf-8")
    settings = load(text, tmp_path, {"VOPROS_MODULES__ENABLED": "users"})
    assert [module.name for module in settings.modules] == ["users"]


def test_the_log_can_be_json(tmp_path: Path) -> None:
    file = tmp_path / "app.toml"
    file.write_text(
        f'{ECHO}[database]\nurl = "sqlite:///{tmp_path}/vopros.db"\n'
        '[log]\nformat = "json"\n'
    )
    with serving("--config", file) as server:
        server.end()
    events = [json.loads(line) for line in server.log.splitlines()]
    assert {"event", "level", "timestamp"} <= events[0].keys()
    assert any("Swagger" in event["event"] for event in events)
    assert load_settings(file, {}).section(LogSettings).format == "json"


# `config check` and `config show`.

LITERAL = f"""
[llm]
provider = "main"
system_prompt = "Be brief."
[auth]
secret = "{SECRET}"
[database]
url = "postgresql+asyncpg://keeper:{CANARY}@localhost/vopros"
password = "{CANARY}"
[providers.main]
type = "openai"
base_url = "https://user:{CANARY}@example.org/v1"
model = "m"
api_key = "{CANARY}"
proxy = "http://user:{CANARY}@proxy:1080"
[providers.main.headers]
X-Whatever = "{CANARY}"
[providers.spare]
type = "openai"
api_key = "${{SPARE_KEY}}"
"""


def shown(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    """Each key with its value and its source."""
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^(\S+) = (.*)  # (.*)$", done.stdout, re.MULTILINE)
    return {key: (value, origin) for key, value, origin in lines}


def line_of(file: Path, start: str) -> str:
    """The place of a file's line that begins so."""
    lines = file.read_text(encoding="utf-8").splitlines()
    number = next(n for n, line in enumerate(lines, 1) if line.startswith(start))
    return f"{file}:{number}"


def test_config_show_masks_secrets_and_names_the_source_of_each_value(
    tmp_path: Path,
) -> None:
    file = tmp_path / "app.toml"
    file.write_text(LITERAL.replace(f"user:{CANARY}@example", "example"))
    env = {"VOPROS_LLM__MAX_TOKENS": "77", "SPARE_KEY": CANARY}
    done = vopros("--config", file, "config", "show", env=env)
    values = shown(done)
    assert CANARY not in done.stdout + done.stderr
    assert SECRET not in done.stdout
    source = line_of(file, "system_prompt")
    assert values["llm.system_prompt"] == ('"Be brief."', source)
    assert values["llm.max_tokens"] == ("77", "environment VOPROS_LLM__MAX_TOKENS")
    assert values["server.port"] == ("8000", "default")
    for key in ("auth.secret", "database.url", "database.password"):
        source = line_of(file, key.partition(".")[2])
        assert values[key] == ("**********", source)
    for key in ("api_key", "proxy", "headers.X-Whatever"):
        assert "**********" in values[f"providers.main.{key}"][0]
    assert values["providers.main.base_url"][0] == '"https://example.org/v1"'
    assert values["providers.spare.api_key"][0] == '"${SPARE_KEY}"'


def test_config_show_masks_an_address_that_holds_a_password(tmp_path: Path) -> None:
    file = tmp_path / "app.toml"
    unused = LITERAL.replace('provider = "main"', 'provider = "echo"')
    file.write_text(f'{unused}\n[providers.echo]\ntype = "echo"\n')
    done = vopros("--config", file, "config", "show")
    assert "**********" in shown(done)["providers.main.base_url"][0]
    assert CANARY not in done.stdout + done.stderr


@pytest.mark.slow
def test_config_check_says_whether_anything_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "app.toml"
    file.write_text(ECHO)
    fine = vopros("--config", file, "config", "check")
    assert (fine.returncode, fine.stderr) == (0, "")
    assert fine.stdout == f"{file}: nothing wrong\n"
    file.write_text(f"{ECHO}[server]\nprot = '{CANARY}'\n")
    refused = vopros("--config", file, "config", "check")
    told = (f"{file}:6: [server] prot: ", "did you mean 'port'?")
    assert_refused(refused, *told, code=78)
    assert CANARY not in refused.stderr
    missing = vopros("--config", tmp_path / "nowhere.toml", "config", "check")
    assert_refused(missing, "nowhere.toml: No such file", code=78)


def test_several_findings_are_one_error_that_lists_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationRefused) as raised:
        load(f"{ECHO}[server]\na = 1\nb = 2", tmp_path)
    assert [finding.key for finding in raised.value.findings] == ["a", "b"]


def test_an_unreadable_file_of_a_variable_is_named_and_not_taken_for_unset(
    tmp_path: Path,
) -> None:
    auto = '[llm]\nprovider = "auto"\nauto = ["main", "echo"]\n'
    key = '[providers.main]\ntype = "openai"\nbase_url = "https://example.org/v1"\n'
    key += 'model = "m"\napi_key = "${SOME_KEY}"\n[providers.echo]\ntype = "echo"\n'
    file = tmp_path / "app.toml"
    file.write_text(auto + key)
    with pytest.raises(StartRefused, match="file that SOME_KEY_FILE names cannot be"):
        load_settings(file, {"SOME_KEY_FILE": "/nowhere"})


def test_one_underscore_too_few_in_a_variable_is_told(tmp_path: Path) -> None:
    with pytest.raises(StartRefused) as refused:
        load(ECHO, tmp_path, {"VOPROS_LLM_PROVIDER": "echo"})
    assert "environment VOPROS_LLM_PROVIDER" in str(refused.value)
    assert "two underscores" in str(refused.value)


def test_a_relative_path_of_sqlite_begins_at_the_root_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(ECHO, tmp_path)
    monkeypatch.chdir(tmp_path)
    path = Database(settings.section(DatabaseSettings)).sqlite_path
    assert path == ROOT / "var" / "vopros.db"


# Where it is, and how it was written.

WRITTEN = """\
# A comment.
[llm]
provider = "echo"

[providers.echo]
type = "echo"
headers = { a = "b" }

[server]
allowed_hosts = [
    "a.example",
]
prot = 1

[[auth.signing_keys]]
kid = "a"
"""


def test_each_finding_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(StartRefused) as refused:
        load(WRITTEN, tmp_path)
    lines = str(refused.value).replace(f"{tmp_path}/", "").splitlines()
    places = {line.split(": ")[0]: line.split(": ", 1)[1] for line in lines}
    assert places.keys() == {"app.toml:7", "app.toml:13", "app.toml:15"}
    assert places["app.toml:7"].startswith("[providers.echo] headers: there is no such")
    assert places["app.toml:13"].startswith("[server] prot: there is no such key")


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("a = 1\nb 2\n", "(at line 2, column 3): expected '=' after a key"),
        (f"a = {CANARY}\n", "(at line 1, column 5): invalid value"),
        (f'a = "{CANARY}\n', f"(at line 1, column {len(CANARY) + 6}): illegal char"),
        ("[a]\nb = 1\n[a]\n", "(at line 3, column 3): a table is declared twice"),
        (f"a = 1\n{CANARY} = 1\n{CANARY} = 2\n", ": a key is given twice"),
        ("a = [1,\n", "not valid TOML (at end of document): "),
    ],
)
def test_why_a_file_is_no_toml_is_told_without_its_words(
    tmp_path: Path, written: str, told: str
) -> None:
    (line,) = refusal(written, tmp_path)
    assert line.startswith("app.toml: not valid TOML (at ")
    assert told in line


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    secret, file = tmp_path / "secret", tmp_path / "app.toml"
    secret.write_bytes(b"\xef\xbb\xbf" + SECRET.encode() + b"\r\n")
    text = f'{ECHO}[auth]\nsecret_file = "{secret}"\n[server]\nport = 8123\n'
    file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    settings = load_settings(file, {})
    assert settings.section(ServerSettings).port == 8123
    assert settings.section(AuthSettings).secret == SecretStr(SECRET)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_end_behind_a_key_of_the_environment_is_no_part_of_it(
    tmp_path: Path, end: str
) -> None:
    text = f'{ECHO}[auth]\nsecret = "${{KEY}}"\n'
    by_reference = load(text, tmp_path, {"KEY": SECRET + end})
    by_name = load(ECHO, tmp_path, {"VOPROS_AUTH__SECRET": SECRET + end})
    for settings in (by_reference, by_name):
        assert settings.section(AuthSettings).secret == SecretStr(SECRET)


def test_a_variable_never_makes_a_second_table_beside_one_of_other_letters(
    tmp_path: Path,
) -> None:
    text = '[llm]\nprovider = "My-Echo"\n[providers.My-Echo]\ntype = "echo"\n'
    name = "VOPROS_PROVIDERS__MY-ECHO__TYPE"
    (line,) = refusal(text, tmp_path, {name: "openai"})
    assert line.startswith(f"environment {name}: [providers.my-echo]: differs from ")
    assert "[providers.My-Echo] by letter case only" in line
    same = text.replace("My-Echo", "my-echo")
    assert load(same, tmp_path, {name: "echo"}).section(LlmSettings)


@pytest.mark.slow
def test_modules_that_nobody_can_be_let_in_to_are_found_by_the_check(
    tmp_path: Path,
) -> None:
    file = tmp_path / "app.toml"
    file.write_text(f'{ECHO}[modules]\nenabled = ["users"]\n')
    told = "[modules] enabled: /users/me is for known callers only"
    env = {"VOPROS_DATABASE__URL": f"sqlite+aiosqlite:///{tmp_path}/v.db"}
    refused = vopros("--config", file, "config", "check", env=env)
    assert_refused(refused, f"{file}:6: {told}", code=78)
    done = vopros("--config", file, "migrate", env=env)
    assert done.stdout == "migrated: users\n", done.stderr
    refused = vopros("--config", file, "serve", "--port", "0", env=env)
    assert refused.returncode == 1
    assert " is for known callers only" in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("provider", "ending"),
    [
        ("openai", "/chat/completions"),
        ("openai", "/completions"),
        ("openai", "/Chat/Completions/"),
        ("openai", "/models"),
        ("anthropic", "/messages"),
    ],
)
def test_an_address_ends_before_the_operation(
    tmp_path: Path, provider: str, ending: str
) -> None:
    (line,) = refusal(
        f'[llm]\nprovider = "main"\n[providers.main]\ntype = "{provider}"\n'
        f'base_url = "https://api.example/v1{ending}"\nmodel = "m"\napi_key = "k"\n',
        tmp_path,
    )
    assert line.startswith("app.toml: [providers.main] base_url: must not end in /")
    assert "added to it" in line
