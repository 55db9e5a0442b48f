"""The security events of a service that runs in the process of the test."""

import logging
from typing import Any

import httpx

# The filter of the service's own handler: what it adds is part of every line.
from core.logs import _name_request

_USUAL = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName"}


class Told(logging.Handler):
    """What was logged since the test began."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(_name_request)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("security."):
            self.records.append(record)

    def about(self, answer: httpx.Response) -> list[dict[str, Any]]:
        """The security events of one request: each its name and its fields."""
        wanted = answer.headers["x-request-id"]
        found = (record.__dict__ for record in self.records)
        return [
            {"event": each["msg"]}
            | {k: v for k, v in each.items() if k not in {*_USUAL, "request_id"}}
            for each in found
            if each.get("request_id") == wanted
        ]
