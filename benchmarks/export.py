"""What an export takes: memory above all, however much there is to export.

A server of its own, on SQLite, is asked for files of several sizes one after the other.
The figure is the growth of its peak resident memory over what it had before.
"""

import asyncio
import json
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

from benchmarks.command_line import COMMAND, ROOT, address, environ
from benchmarks.servers import forget_peak, peak_bytes

QUESTIONS = (1_000, 10_000, 100_000)
CONTENT = "What is the capital of France? " * 4
ANSWER = "The capital of France is Paris. " * 16
PASSWORD = "seven silent typewriters"


def table() -> str:
    """The table, in Markdown."""
    rows = ["| questions | MB | seconds | more memory, MB |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        variables = environ(Path(folder) / "export", "echo")
        command = [*COMMAND, "serve", "--port", "0"]
        server = subprocess.Popen(
            command, cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True
        )
        try:
            url = address(server)
            database = variables["VOPROS_DATABASE__URL"]
            for count in QUESTIONS:
                token = _somebody(url, f"asked.{count}")
                asyncio.run(_store(database, count))
                rows.append(_row(url, token, server.pid, count))
        finally:
            server.terminate()
            server.communicate(timeout=30)
    return "\n".join(rows)


def _row(url: str, token: str, pid: int, count: int) -> str:
    before, started = psutil.Process(pid).memory_info().rss, time.perf_counter()
    forget_peak(pid)
    size = questions = 0
    asking = urllib.request.Request(
        f"{url}/users/me/export", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(asking) as answer:
        for line in answer:
            size += len(line)
            questions += line.startswith(b'{"id":') and b'"content":' in line
    assert line == b'"complete": true}\n'
    assert questions == count
    seconds = time.perf_counter() - started
    more = (peak_bytes(pid) - before) / 1e6
    return f"| {count:,} | {size / 1e6:.1f} | {seconds:.2f} | {more:.1f} |"


def _somebody(url: str, name: str) -> str:
    """Register somebody; returns an access token."""
    body = json.dumps({"username": name, "password": PASSWORD}).encode()
    headers = {"Content-Type": "application/json"}
    asking = urllib.request.Request(f"{url}/auth/register", body, headers)
    urllib.request.urlopen(asking).close()
    form = f"grant_type=password&username={name}&password={PASSWORD.replace(' ', '+')}"
    with urllib.request.urlopen(f"{url}/auth/token", form.encode()) as answer:
        token: str = json.load(answer)["access_token"]
    return token


async def _store(url: str, count: int) -> None:
    """Answered questions of whoever registered last, beside the running server."""
    from sqlalchemy import text

    from core.db import Database
    from core.settings import DatabaseSettings

    statement = text(
        "INSERT INTO questions"
        " (user_id, content, status, answer, provider, model, idempotency_key,"
        "  answered_at)"
        " WITH RECURSIVE n (i) AS"
        " (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)"
        " SELECT (SELECT max(id) FROM users), :content, 'answered', :answer, 'echo',"
        " 'echo', i, '2026-11-23 09:30:00.000000' FROM n"
    )
    database = Database(DatabaseSettings.model_validate({"url": url}))
    try:
        async with database.transaction() as session:
            given = {"count": count, "content": CONTENT, "answer": ANSWER}
            await session.execute(statement, given)
    finally:
        await database.close()
