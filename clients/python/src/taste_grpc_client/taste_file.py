"""The `.taste.json` file: a SpokenText as JSON that people can read, edit and compare.

docs/taste-json.md describes the format.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from taste_grpc_client.word import Word

VERSION = 1
"""The version this module reads and writes."""

_LAYOUT = "codes"
_MAX_FLOAT32 = 3.4028235677973366e38
_T = TypeVar("_T")


class Contents(TypedDict):
    """What a file holds: the attributes of a SpokenText."""

    words: list[Word]
    speaker: tuple[float, ...] | None
    audio_ms: float | None
    model_id: str
    revision: str


class TasteFileError(ValueError):
    """A `.taste.json` file is not one, or a value in it cannot be.

    Attributes:
        path: where in the file: `$.words[3].codes[0]`, or `$` for all of it.
        description: what is wrong there.
    """

    def __init__(self, file: str, path: str, description: str) -> None:
        super().__init__(f"{file}: {path}: {description}")
        self.path = path
        self.description = description


class _FaultError(Exception):
    """`TasteFileError` while the name of the file is not at hand."""

    def __init__(self, path: str, description: str) -> None:
        super().__init__(path, description)
        self.path = path
        self.description = description


def read(path: str | os.PathLike[str]) -> Contents:
    """The contents of a file. Raises OSError and TasteFileError."""
    data = Path(path).read_bytes()
    try:
        return _contents(_parse(data))
    except _FaultError as fault:
        raise TasteFileError(os.fspath(path), fault.path, fault.description) from None


def write(path: str | os.PathLike[str], contents: Contents) -> None:
    """Replaces the file whole, or leaves it. Raises OSError, and ValueError for what could not be read back."""
    content = _dump(contents)
    try:
        _contents(_parse(content))
    except _FaultError as fault:
        raise ValueError(f"{fault.path.removeprefix('$.')}: {fault.description}") from None
    target = Path(os.path.realpath(path))
    scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        scratch.write_bytes(content)
        if target.exists():
            shutil.copymode(target, scratch)
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)


def _dump(contents: Contents) -> bytes:
    """A line for each word and each other entry: an edited word is one changed line."""
    entries = [f'"taste_json": {VERSION}']
    model = {"id": contents["model_id"], "revision": contents["revision"]}
    if any(model.values()):
        entries.append(f'"model": {_json(model)}')
    entries.append(f'"layout": {_json(_LAYOUT)}')
    if contents["audio_ms"] is not None:
        entries.append(f'"audio_ms": {_json(contents["audio_ms"])}')
    if contents["speaker"] is not None:
        entries.append(f'"speaker": {_json(list(contents["speaker"]))}')
    words = ",\n".join(f"  {_json(_plain(word))}" for word in contents["words"])
    entries.append(f'"words": [\n{words}\n ]' if words else '"words": []')
    body = ",\n ".join(entries)
    try:
        return f"{{\n {body}\n}}\n".encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{error.object[error.start]!r} cannot be written as UTF-8") from None


def _plain(word: Word) -> dict[str, Any]:
    plain: dict[str, Any] = {"text": word.text, "codes": list(word.codes)}
    return {**plain, "text_ids": list(word.text_ids)} if word.text_ids else plain


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _parse(data: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise _FaultError("$", f"{name!r} is there twice in one object")
            found[name] = value
        return found

    def constant(name: str) -> Any:
        raise _FaultError("$", f"{name} is no number in JSON")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except UnicodeDecodeError as error:
        raise _FaultError("$", f"is no UTF-8: byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise _FaultError("$", f"is no JSON: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (RecursionError, ValueError) as error:  # thousands of brackets, or of digits
        raise _FaultError("$", f"is no JSON this can read: {error}") from None


def _contents(content: Any) -> Contents:
    if not isinstance(content, dict) or "taste_json" not in content:
        raise _FaultError("$", 'an object with "taste_json" was expected')
    version = content["taste_json"]
    if version != VERSION or isinstance(version, bool | float):
        raise _FaultError("$.taste_json", f"version {VERSION} was expected, not {version!r}")
    fields = _Fields("$", content, {"taste_json", "model", "layout", "audio_ms", "speaker", "words"})
    layout = fields.get("layout", _string)
    if layout != _LAYOUT:
        raise _FaultError("$.layout", f"{_LAYOUT!r} was expected, not {layout!r}")
    model = fields.optional("model", _model) or {"id": "", "revision": ""}
    return Contents(
        words=fields.get("words", _words),
        speaker=fields.optional("speaker", _speaker),
        audio_ms=fields.optional("audio_ms", _duration),
        model_id=model["id"],
        revision=model["revision"],
    )


class _Fields:
    """An object, read entry by entry."""

    def __init__(self, path: str, value: Any, known: set[str]) -> None:
        if not isinstance(value, dict):
            raise _FaultError(path, f"an object was expected, not {_kind(value)}")
        for name in value.keys() - known:
            raise _FaultError(path, f"{name!r} is not known here; {', '.join(sorted(known))} are")
        self._path = path
        self._value: Mapping[str, Any] = value

    def get(self, name: str, read: Callable[[str, Any], _T]) -> _T:
        if name not in self._value:
            raise _FaultError(self._path, f"{name!r} is missing")
        return read(f"{self._path}.{name}", self._value[name])

    def optional(self, name: str, read: Callable[[str, Any], _T]) -> _T | None:
        return self.get(name, read) if name in self._value else None


def _model(path: str, value: Any) -> dict[str, str]:
    fields = _Fields(path, value, {"id", "revision"})
    return {"id": fields.get("id", _string), "revision": fields.get("revision", _string)}


def _words(path: str, value: Any) -> list[Word]:
    words = [_word(place, item) for place, item in _items(path, value)]
    for index, word in enumerate(words):
        if len(word.codes) != len(words[0].codes):
            raise _FaultError(
                f"{path}[{index}].codes",
                f"{len(words[0].codes)} were expected, as in the first word, not {len(word.codes)}",
            )
    return words


def _word(path: str, value: Any) -> Word:
    fields = _Fields(path, value, {"text", "codes", "text_ids"})
    text = fields.get("text", _string)
    codes = fields.get("codes", _integers)
    text_ids = fields.optional("text_ids", _integers) or ()
    try:
        return Word(text, codes, text_ids)
    except ValueError as error:  # it names the attribute first
        name, _, description = str(error).partition(": ")
        raise _FaultError(f"{path}.{name}", description) from None


def _integers(path: str, value: Any) -> tuple[int, ...]:
    for place, item in _items(path, value):
        if not isinstance(item, int) or isinstance(item, bool):
            raise _FaultError(place, f"a whole number was expected, not {_kind(item)}")
    return tuple(value)


def _speaker(path: str, value: Any) -> tuple[float, ...]:
    values = tuple(_number(place, item) for place, item in _items(path, value))
    if not any(values):
        raise _FaultError(path, "numbers that are not all zero were expected")
    return values


def _duration(path: str, value: Any) -> float:
    if (number := _number(path, value)) < 0:
        raise _FaultError(path, f"a duration was expected, not {value!r}")
    return number


def _number(path: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _FaultError(path, f"a number was expected, not {_kind(value)}")
    # Not by float(): an integer may be too large even for that.
    if not -_MAX_FLOAT32 < value < _MAX_FLOAT32 or not math.isfinite(value):
        raise _FaultError(path, "is too large a number")
    return float(value)


def _string(path: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _FaultError(path, f"a string was expected, not {_kind(value)}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _FaultError(path, "half of a surrogate pair is no text")
    return value


def _items(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, list):
        raise _FaultError(path, f"a list was expected, not {_kind(value)}")
    return ((f"{path}[{index}]", item) for index, item in enumerate(value))


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), f"the number {value!r}"[:60])
