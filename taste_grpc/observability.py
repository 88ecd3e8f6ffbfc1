"""Logging: one line per event, for people or for machines.

Nothing that a request contains is ever logged. Lines go to stderr, so stdout stays
free for data.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import IO, Any, Literal

LOGGER_NAME = "taste_grpc"
"""Parent of all loggers of the package."""

_FIELDS = "taste_fields"


def configure_logging(
    level: str = "info", format: Literal["text", "json"] = "text", stream: IO[str] | None = None
) -> None:
    """Send the package's log lines, and warnings of everything else, to `stream` (stderr).

    May be called again; the last call counts.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old.formatter, JsonFormatter | TextFormatter):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(max(logging.WARNING, level_number(level)))
    logging.getLogger(LOGGER_NAME).setLevel(level_number(level))
    logging.captureWarnings(True)


def level_number(level: str) -> int:
    """`info` -> 20."""
    return logging.getLevelNamesMapping()[level.upper()]


def log_event(
    logger: logging.Logger, level: int, message: str, *, error: BaseException | None = None, **fields: Any
) -> None:
    """Log `message` with named values beside it; `error` adds its trace.

    Values must not stem from the content of requests.
    """
    trace = (type(error), error, error.__traceback__) if error else None
    logger.log(level, message, extra={_FIELDS: fields}, exc_info=trace)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (UTC), `level`, `logger`, `event`, the fields, `trace`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """`12:34:56.789 INFO message key=value ...`, a trace on the lines after it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        time = datetime.datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        fields = "".join(f" {name}={_plain(value)}" for name, value in getattr(record, _FIELDS, {}).items())
        line = f"{time} {record.levelname:<7} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _plain(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c.isspace() or c == '"' for c in text) else text


def _utc(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="milliseconds")
