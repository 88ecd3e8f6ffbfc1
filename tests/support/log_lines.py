"""The log as its readers see it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from taste_grpc.observability import TextFormatter

_FIELDS = "taste_fields"


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged by anybody, traces included."""
    return [TextFormatter().format(record) for record in caplog.records]


def events(caplog: pytest.LogCaptureFixture, *names: str, above: int = logging.NOTSET) -> list[dict[str, Any]]:
    """The fields of the package's events of these names (of all when none is given), with `event` and `level`."""
    return [
        {"event": record.getMessage(), "level": record.levelname, **getattr(record, _FIELDS)}
        for record in caplog.records
        if hasattr(record, _FIELDS) and record.levelno > above and (not names or record.getMessage() in names)
    ]
