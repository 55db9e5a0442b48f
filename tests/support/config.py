"""Configuration files for tests."""

import json
from pathlib import Path

from tests.support.upstream import KEY

SECRET = "5f0c1a7e9b3d4826a1c7e5f09d8b2c4466aa01fe23dc45ba"


def write_config(
    file: Path,
    database_url: str,
    base_url: str = "http://127.0.0.1:9/v1",
    **tables: str,
) -> Path:
    """Write a file with a provider `main`; `tables` add lines to a table by name.

    Passwords are hashed at the lowest price that is allowed; every test comes from one
    network, so that is not limited; and a provider that fails in one test after the
    other is not left alone.
    """
    lines = {
        "database": f"url = {json.dumps(database_url)}",
        "auth": (
            f'secret = "{SECRET}"\nhash_memory_kib = 8192\nhash_rounds = 1\n'
            "network_login_attempts = 0\nnetwork_registrations = 0"
        ),
        "llm": 'provider = "main"',
        "providers.main": (
            f'type = "openai"\nbase_url = "{base_url}"\nmodel = "fake"\n'
            f'api_key = "{KEY}"\nbreaker_calls = 0'
        ),
    }
    for table, more in tables.items():
        name = table.replace("__", ".")
        lines[name] = _merged(lines[name], more) if name in lines else more
    text = "\n\n".join(f"[{table}]\n{body}" for table, body in lines.items())
    file.write_text(f"{text}\n", encoding="utf-8")
    return file


def _merged(lines: str, more: str) -> str:
    """`more` below those lines that it does not set anew."""
    anew = {line.partition(" =")[0] for line in more.splitlines()}
    kept = [line for line in lines.splitlines() if line.partition(" =")[0] not in anew]
    return "\n".join((*kept, more))
