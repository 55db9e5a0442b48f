"""Logging: an event name and its fields, as text for people or JSON for machines."""

import logging
import sys
from contextvars import ContextVar

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.types import Processor

from core.settings import LogSettings

_SHARED: list[Processor] = [
    structlog.stdlib.add_log_level,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


REQUEST_ID: ContextVar[str] = ContextVar("request_id")
"""The request that is being served; every line about it carries the id."""


def _name_request(record: logging.LogRecord) -> bool:
    if not hasattr(record, "request_id") and (found := REQUEST_ID.get("")):
        record.request_id = found
    return True


def configure_logging(settings: LogSettings) -> None:
    """Send every logger of the process to standard error in one format."""
    last: Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if settings.format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            # The other one shows local variables, passwords among them, and takes
            # a second for each exception, in which nobody else is served.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    handler = logging.StreamHandler()
    handler.addFilter(_name_request)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[ProcessorFormatter.remove_processors_meta, last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    for noisy in ("alembic", "aiosqlite", "asyncio", "uvicorn"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
