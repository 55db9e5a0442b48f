"""`vopros config schema`: what an editor completes `app.toml` by."""

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from core.layers import DEFAULT_FILE, RawSettings
from core.module import ROOT, in_tree_names, load_modules
from core.schema import file_schema
from core.settings import load_settings
from tests.support.process import assert_refused, vopros
from tests.support.strange_models import install

EXAMPLES = sorted((ROOT / "config").rglob("*.toml"))


def printed(*options: str | Path, **env: str) -> dict[str, Any]:
    done = vopros(*options, "config", "schema", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return printed()


def is_valid(schema: dict[str, Any], text: str) -> bool:
    return jsonschema_rs.Draft202012Validator(schema).is_valid(tomllib.loads(text))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_every_file_of_ours_is_valid(schema: dict[str, Any], file: Path) -> None:
    jsonschema_rs.meta.validate(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema_rs.Draft202012Validator(schema).validate(
        tomllib.loads(file.read_text(encoding="utf-8"))
    )


MAIN = '[providers.main]\ntype = "openai"\nbase_url = "https://a/v1"\nmodel = "m"\n'


@pytest.mark.parametrize(
    "text",
    [
        "[server]\nport = 1",
        '[server]\nport = "${PORT}"\ndocs = "${DOCS}"\nroot_path = "${PATH_HERE}"',
        '[log]\nlevel = "${LEVEL}"',
        '[modules]\nenabled = "${MODULES}"',
        '[auth]\nsecret_file = "/run/secrets/signing"',
        '[auth]\nsigning_keys = [{kid = "a", secret = "${A}"}]',
        '[[auth.signing_keys]]\nkid = "a"\nsecret_file = "/run/secrets/a"',
        '[auth]\nsigning_keys = "${KEYS}"',
        '[database]\nurl_file = "a"\npassword_file = "${FOLDER}/b"',
        MAIN + 'api_key_file = "a"\nproxy_file = "b"\nidle_seconds = 1\nbody = {a = 1}',
        MAIN + 'max_concurrency = "${MANY}"\nheaders = { X-Team = "red" }',
        '[providers.a]\ntype = "local"\nthreads = 2\n[providers.b]\ntype = "echo"',
    ],
)
def test_what_a_file_may_say_is_valid(schema: dict[str, Any], text: str) -> None:
    assert is_valid(schema, text)


@pytest.mark.parametrize(
    "text",
    [
        "[server]\nprot = 1",
        "[sever]\nport = 1",
        '[server]\nport = "many"',
        '[server]\nport = "8${PORT}00x"',
        "[server]\nport = 70000",
        "[llm]\nfallback = 1",
        '[log]\nlevel = "LOUD"',
        "[auth]\nissuer_file = 'a'",
        "[auth]\nsigning_keys = ['a']",
        "[auth]\nsigning_keys = 'a'",
        "[auth]\nsigning_keys_file = 'a'",
        "[[auth.signing_keys]]\nsecret = 'a'",
        "[[auth.signing_keys]]\nkid = 'a b'\nsecret = 'a'",
        "[[auth.signing_keys]]\nkid = 'a'\nsecrte = 'a'",
        "[[auth.signing_keys]]\nkid = 'a'\nkid_file = 'a'\nsecret = 'a'",
        "[providers]\nmain = 1",
        "[providers.main]\nmodel = 'm'",
        "[providers.main]\ntype = 'opneai'",
        "[providers.main]\ntype = 'openai'\nbase_url = 'https://a/v1'",
        MAIN + 'api_kye = "k"',
        MAIN + "api_key = 7",
        MAIN + 'headers_file = "a"',
        MAIN + "threads = 2",
        "[providers.a]\ntype = 'echo'\nmodel = 'm'",
    ],
)
def test_a_mistake_is_not_valid(schema: dict[str, Any], text: str) -> None:
    assert not is_valid(schema, text)


def test_every_key_of_ours_is_described_and_has_its_default(
    schema: dict[str, Any],
) -> None:
    tables = {
        **{n: t for n, t in schema["properties"].items() if "properties" in t},
        **schema["$defs"],
    }
    assert {"server", "llm", "providers.openai", "providers.local"} <= tables.keys()
    for name, table in tables.items():
        assert table["description"], name
        for key, told in table["properties"].items():
            assert told.get("description"), f"[{name}] {key}"
    assert schema["properties"]["server"]["properties"]["port"]["default"] == 8000
    waits = tables["providers.openai"]["properties"]["connect_seconds"]
    assert waits["default"] == 5


@pytest.mark.slow
def test_a_strangers_type_is_there_when_a_table_names_it(tmp_path: Path) -> None:
    (folder := tmp_path / "site").mkdir()
    witness = tmp_path / "imported"
    install(folder, "friendly", before=f"open({str(witness)!r}, 'w').close()")
    install(folder, "broken", distribution="other-models", before="raise ValueError")
    env = {"PYTHONPATH": str(folder)}
    file = tmp_path / "app.toml"
    guest = '[providers.guest]\ntype = "friendly"\n'
    key = 'api_key = "k"\n'

    file.write_text(MAIN)
    assert not is_valid(printed("--config", file, **env), guest + key)
    assert not witness.exists()
    # Also while the file is wrong, here and elsewhere, which an editor is to show.
    file.write_text(f'{guest}api_kye = "k"\n[sever]\n[providers.b]\ntype = "broken"\n')
    found = printed("--config", file, **env)
    assert witness.exists()
    assert is_valid(found, guest + key)
    assert not is_valid(found, guest + 'api_kye = "k"\n')
    assert not is_valid(found, '[providers.b]\ntype = "broken"\n')


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (file := tmp_path / "app.toml").write_text("not toml")
    assert_refused(vopros("--config", file, "config", "schema"), str(file), code=78)


def test_all_that_a_start_refuses_as_unknown_is_not_valid() -> None:
    """The schema and the start know the same keys."""
    raw = RawSettings(file="app.toml")
    schema = file_schema(raw, load_modules(in_tree_names()))
    sections = load_settings(DEFAULT_FILE, {}).sections
    assert schema["properties"].keys() == sections.keys()
    for name, section in sections.items():
        if known := type(section).model_fields.keys() - {"root"}:
            keys = schema["properties"][name]["properties"].keys()
            assert known <= keys
            assert all(key.removesuffix("_file") in known for key in keys - known)
