"""`vopros config show`: every value with its source, and no secret."""

import re
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.process import vopros
from tests.support.strange_models import install

CANARY = "canary-of-a-secret-8d2f"
TABLE = f"""
type = "openai"
base_url = "https://api.example.org/v1"
model = "${{MODEL}}"
api_key = "{CANARY}"
auth_header = "api-key"
proxy = "http://user:{CANARY}@proxy:1080"
query = {{ version = "{CANARY}", other = "${{OTHER}}" }}
body = {{ user = "team", api_key = "{CANARY}", nested = {{ password = "{CANARY}" }} }}
[providers.NAME.headers]
X-Whatever = "{CANARY}"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "app.toml"


def shown(file: Path, **env: str) -> dict[str, tuple[str, str]]:
    """Each key with its value and its source."""
    done: CompletedProcess[str] = vopros("--config", file, "config", "show", env=env)
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stdout + done.stderr
    lines = re.findall(r"^(\S+) = (.*)  # (.*)$", done.stdout, re.MULTILINE)
    assert len(lines) == len(done.stdout.splitlines())
    origins = {key: re.sub(r"(\.toml):\d+$", r"\1", origin) for key, _, origin in lines}
    return {key: (value, origins[key]) for key, value, _ in lines}


MASK = "**********"


def test_secrets_of_a_table_in_use_are_what_its_plugin_says(file: Path) -> None:
    used = "[providers.used]" + TABLE.replace("NAME", "used")
    file.write_text(f'[llm]\nprovider = "used"\n{used}')
    env = {
        "MODEL": "m",
        "OTHER": CANARY,
        "VOPROS_PROVIDERS__USED__IDLE_SECONDS": "7",
    }
    values = shown(file, **env)
    here = str(file)
    for key in ("api_key", "proxy", "query.version", "headers.X-Whatever"):
        assert values[f"providers.used.{key}"] == (MASK, here), key
    for key in ("body.api_key", "body.nested.password"):
        assert values[f"providers.used.{key}"] == (MASK, here), key
    plain = {
        "model": '"${MODEL}"',
        "query.other": '"${OTHER}"',
        "auth_header": '"api-key"',
        "base_url": '"https://api.example.org/v1"',
        "body.user": '"team"',
    }
    for key, value in plain.items():
        assert values[f"providers.used.{key}"] == (value, here), key
    by_variable = "environment VOPROS_PROVIDERS__USED__IDLE_SECONDS"
    assert values["providers.used.idle_seconds"] == ('"7"', by_variable)
    assert values["providers.used.first_token_seconds"] == ("30", "default")
    assert values["providers.used.ca_file"] == ("(not set)", "default")


def test_what_may_be_a_secret_of_an_unused_table_is_masked(file: Path) -> None:
    spare = "[providers.spare]" + TABLE.replace("NAME", "spare")
    echo = '[llm]\nprovider = "echo"\n[providers.echo]\ntype = "echo"\n'
    file.write_text(f"{echo}{spare}")
    values = shown(file)
    hidden = (
        "api_key auth_header proxy query.version headers.X-Whatever body.api_key"
        " body.nested.password"
    )
    for key in hidden.split():
        assert values[f"providers.spare.{key}"] == (MASK, str(file)), key
    assert values["providers.spare.model"][0] == '"${MODEL}"'
    assert values["providers.spare.body.user"][0] == '"team"'


OPTIONS = """
@hookimpl
def vopros_provider():
    from pydantic import BaseModel, SecretStr

    class Inner(BaseModel):
        word: SecretStr

    class Mine(Options):
        pass_phrase: SecretStr
        backup: SecretStr | None = None
        inner: Inner
        label: str = "x"

    return ProviderType("{name}", Mine, open_it)
"""


def test_a_strangers_own_secrets_are_masked_wherever_they_come_from(
    file: Path, tmp_path: Path
) -> None:
    (folder := tmp_path / "site").mkdir()
    install(folder, "strange", hook=OPTIONS)
    kept = tmp_path / "kept"
    kept.write_text(CANARY)
    file.write_text(
        '[llm]\nprovider = "guest"\n[providers.guest]\ntype = "strange"\n'
        f'pass_phrase = "{CANARY}"\ninner = {{ word = "{CANARY}" }}\nlabel = "seen"\n'
    )
    by_file = {"VOPROS_PROVIDERS__GUEST__BACKUP_FILE": str(kept)}
    values = shown(file, PYTHONPATH=str(folder), **by_file)
    assert values["providers.guest.pass_phrase"] == (MASK, str(file))
    assert values["providers.guest.inner.word"] == (MASK, str(file))
    origin = "environment VOPROS_PROVIDERS__GUEST__BACKUP_FILE"
    assert values["providers.guest.backup"] == (MASK, origin)
    assert values["providers.guest.label"] == ('"seen"', str(file))


@pytest.mark.slow
def test_a_secret_in_a_list_is_masked_and_the_rest_of_its_table_is_not(
    file: Path, tmp_path: Path
) -> None:
    (kept := tmp_path / "kept").write_text(f"{CANARY}-0123456789abcdef")
    file.write_text(
        '[llm]\nprovider = "echo"\n[providers.echo]\ntype = "echo"\n[auth]\n'
        f'signing_keys = [{{ kid = "new", secret = "{CANARY}-abcdef0123456789" }},'
        f' {{ kid = "old", secret_file = "{kept}" }}]\n'
    )
    masked = (
        f'[{{"kid": "new", "secret": "{MASK}"}}, {{"kid": "old", "secret": "{MASK}"}}]'
    )
    assert shown(file)["auth.signing_keys"] == (masked, str(file))
    given = f'[{{"kid": "env", "secret": "{CANARY}-abcdef0123456789"}}]'
    values = shown(file, VOPROS_AUTH__SIGNING_KEYS=given)
    origin = "environment VOPROS_AUTH__SIGNING_KEYS"
    masked = f'[{{"kid": "env", "secret": "{MASK}"}}]'
    assert values["auth.signing_keys"] == (masked, origin)


def test_a_secret_from_a_file_of_a_higher_layer_names_that(
    file: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.write_text(CANARY)
    file.write_text(
        '[llm]\nprovider = "echo"\n[providers.echo]\ntype = "echo"\n'
        f'[database]\npassword = "{CANARY}"\n'
    )
    by_file = "VOPROS_DATABASE__PASSWORD_FILE"
    values = shown(file, **{by_file: str(kept)})
    assert values["database.password"] == (MASK, f"environment {by_file}")
