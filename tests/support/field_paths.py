"""Whether the field an error names is there."""

from __future__ import annotations

import re
from collections.abc import Sequence

from google.protobuf.message import Message

_PART = re.compile(r"([a-z_0-9]+)(?:\[(\d+)\])?")


def check_field_path(path: str, sent: Sequence[Message]) -> None:
    """Asserts that `path` leads to a field in one of the messages that were `sent`, or to one that is missing there."""
    problems = [_problem(path, message) for message in sent]
    assert None in problems, f"{path!r}: {problems[-3:]}"


def _problem(path: str, message: Message) -> str | None:
    parts = path.split(".")
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        matched = _PART.fullmatch(part)
        if not matched:
            return f"{part!r} is no name"
        name, index = matched[1], matched[2]
        descriptor = message.DESCRIPTOR
        if name in descriptor.oneofs_by_name and last and index is None:
            return None
        field = descriptor.fields_by_name.get(name)
        if field is None:
            return f"{descriptor.name} has no field {name}"
        value = getattr(message, name)
        if index is not None and (not field.is_repeated or int(index) >= len(value)):
            return f"{part} is not there"
        if last:
            return None
        if field.message_type is None or (field.is_repeated and index is None):
            return f"{part} has no fields"
        if field.containing_oneof is not None and not message.HasField(name):
            return f"{part} was not sent"
        message = value if index is None else value[int(index)]
    return None
