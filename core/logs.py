"""Logging: an event name and its fields, as text for people or JSON for machines.

Two lines are written for every question, so a line must cost little: formatters of our
own take a tenth of what the libraries for it do.
"""

import json
import logging
import re
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from core.settings import LogSettings

REQUEST_ID: ContextVar[str] = ContextVar("request_id")
"""The request that is being served; every line about it carries the id."""

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}
# What could be taken for the end of a value, of a line, or for a terminal's command.
_PLAIN = re.compile(r"[^\s\"'=\\\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def configure_logging(settings: LogSettings) -> None:
    """Send every logger of the process to standard error in one format."""
    # Nobody reads where in the code, on which thread or in which process it was.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler()
    handler.addFilter(_name_request)
    handler.setFormatter(AsJson() if settings.format == "json" else AsText())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    for noisy in ("alembic", "aiosqlite", "asyncio", "uvicorn"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def _name_request(record: logging.LogRecord) -> bool:
    if not hasattr(record, "request_id") and (found := REQUEST_ID.get("")):
        record.request_id = found
    return True


class AsText(logging.Formatter):
    """`2026-11-23T09:30:00.120Z info     event  key=value`, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        event = record.getMessage()
        head = f"{_moment(record)} {record.levelname.lower():<8} {event:<26}"
        line = "".join((head, *(f" {k}={_shown(v)}" for k, v in _fields(record))))
        if record.exc_info:
            # The plain one: it shows no local variables, passwords among them.
            line += f"\n{self.formatException(record.exc_info)}"
        return line


class AsJson(logging.Formatter):
    """One object a line: `event`, its fields, `level` and `timestamp`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"event": record.getMessage(), **dict(_fields(record))}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        line |= {"level": record.levelname.lower(), "timestamp": _moment(record)}
        return json.dumps(line, ensure_ascii=False, default=str)


def _fields(record: logging.LogRecord) -> list[tuple[str, Any]]:
    given: Mapping[str, Any] = vars(record)
    return [(name, given[name]) for name in given if name not in _OWN]


def _moment(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _shown(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else repr(text)
