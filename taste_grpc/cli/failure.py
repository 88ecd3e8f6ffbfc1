"""How a command ends when it fails: one line on stderr, or one JSON object there with `--json`."""

from __future__ import annotations

import json
import sys
from typing import Any

from taste_grpc.errors import InvalidInputError, TasteError

FAILURE, USAGE = 1, 2
_OPTIONS = {
    "tls=True or Tls(...)": "--tls or --tls-ca",
    "Tls(ca_file=...) names": "--tls-ca names",
    "Tls(cert_file=..., key_file=...)": "--tls-cert and --tls-key",
    "Tls(server_name=...) says": "--tls-server-name says",
    "the files of `tls`": "the files of the --tls options",
    "its timeout_s": "its --timeout",
}
"""What the client advises, in terms of options."""

INTERRUPTED, BROKEN_PIPE = 130, 141
"""128 and the number of the signal (SIGINT, SIGPIPE), as shells count."""


class CommandError(Exception):
    """A command cannot go on.

    Attributes:
        status: exit status of the process.
        field: option, argument or place in a file that is to blame; empty when none is.
        reason: what is wrong with it.
    """

    def __init__(self, field: str, reason: str, status: int = FAILURE) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason
        self.status = status


def usage_error(field: str, reason: str) -> CommandError:
    """The error of a command that was called in a way it cannot be."""
    return CommandError(field, reason, USAGE)


def describe(error: Exception) -> tuple[int, dict[str, Any]] | None:
    """Exit status and content of the report on `error`; None when it is a fault of this program."""
    if isinstance(error, CommandError):
        fields = [{"field": error.field, "description": error.reason}] if error.field else []
        return error.status, {"message": str(error), "fields": fields}
    if isinstance(error, InvalidInputError):
        fields = [{"field": error.field, "description": error.description}] if error.field else []
        return FAILURE, {"message": str(error), "reason": error.reason, "fields": fields}
    if isinstance(error, TasteError):
        return FAILURE, {"message": str(error), "reason": error.reason, "fields": []}
    if (called := _call_error(error)) is not None:
        return FAILURE, called
    if hasattr(error, "format_message"):
        return _arguments_error(error)
    if isinstance(error, OSError):
        named = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return FAILURE, {"message": named, "fields": []}
    return None


def _arguments_error(error: Any) -> tuple[int, dict[str, Any]]:
    """The report on what typer has against the arguments; its message is empty when typer has shown the help."""
    said, context, parameter = error.format_message(), getattr(error, "ctx", None), getattr(error, "param", None)
    hint = f" (see '{context.command_path} --help')" if context is not None and said.strip() else ""
    name = "" if parameter is None else parameter.metavar if parameter.opts[0][:1] != "-" else parameter.opts[0]
    fields = [{"field": name, "description": error.message or said}] if name else []
    return getattr(error, "exit_code", USAGE), {"message": said.strip() + hint, "fields": fields}


def _call_error(error: Exception) -> dict[str, Any] | None:
    """The report on a failed call; None for other errors."""
    if "taste_grpc_client" not in sys.modules:  # and it takes a while to import
        return None
    from taste_grpc_client import TasteClientError

    if not isinstance(error, TasteClientError):
        return None
    message = str(error)
    for argument, option in _OPTIONS.items():
        message = message.replace(argument, option)
    return {
        "message": message,
        "code": error.code.name,
        "reason": error.reason,
        "fields": [{"field": found.field, "description": found.description} for found in error.violations],
        "retry_after_s": error.retry_after_s,
        "request_id": error.request_id,
    }


def report(content: dict[str, Any], as_json: bool) -> None:
    """Write the report on a failure to stderr, as one line."""
    if as_json:
        line = json.dumps({"error": content}, ensure_ascii=False)
    else:
        line = f"taste-grpc: {' '.join(content['message'].split())}"
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
