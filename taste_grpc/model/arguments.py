"""Checks of plain arguments that errors name."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from taste_grpc.errors import InvalidTypeError, type_name


def check_integer(name: str, value: Any) -> int:
    """`value` as an int. Raises InvalidTypeError naming `name` when it is not a whole number (bool is none)."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidTypeError(name, f"{value!r} is a {type_name(value)}; an integer is expected")
    return int(value)


def check_number(name: str, value: Any) -> float:
    """`value` as a float. Raises InvalidTypeError naming `name` when it is not a real number (bool is none)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidTypeError(name, f"{value!r} is a {type_name(value)}; a number is expected")
    return float(value)
