"""What the package shows: both clients the same, all of it documented."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import taste_grpc_client
from taste_grpc_client import (
    AsyncConversation,
    AsyncResultStream,
    AsyncSpeechStream,
    AsyncTasteClient,
    Conversation,
    ResultStream,
    SpeechStream,
    TasteClient,
)

PAIRS = [
    (TasteClient, AsyncTasteClient),
    (ResultStream, AsyncResultStream),
    (SpeechStream, AsyncSpeechStream),
    (Conversation, AsyncConversation),
]
SAME = {
    "AsyncConversation": "Conversation",
    "AsyncResultStream": "ResultStream",
    "AsyncSpeechStream": "SpeechStream",
    "AnySpoken": "Spoken",
    "grpc.aio.Channel": "grpc.Channel",
}
SPECIAL = {"__enter__": "__aenter__", "__exit__": "__aexit__", "__iter__": "__aiter__", "__next__": "__anext__"}


def methods(owner: type) -> dict[str, Any]:
    """Public methods and special ones that the package defines, with those it inherits."""
    found = {}
    for each in reversed(owner.__mro__[:-1]):
        for name, value in vars(each).items():
            if inspect.isfunction(value) and (not name.startswith("_") or name in SPECIAL or name.startswith("__a")):
                found[name] = value
    return found


def shape(function: Any) -> list[tuple[str, Any, Any, str]]:
    """Name, kind, default and annotation of each parameter, and the annotation of the result."""
    signature = inspect.signature(function)
    parameters = [(p.name, p.kind, p.default, plain(p.annotation)) for p in signature.parameters.values()]
    return [*parameters, ("return", None, None, plain(signature.return_annotation))]


def plain(annotation: str) -> str:
    return re.sub("|".join(map(re.escape, SAME)), lambda found: SAME[found[0]], str(annotation))


@pytest.mark.parametrize(("blocking", "asyncio"), PAIRS)
def test_both_clients_have_the_same_methods(blocking: type, asyncio: type) -> None:
    expected = {SPECIAL.get(name, name): function for name, function in methods(blocking).items()}
    found = methods(asyncio)
    assert found.keys() == expected.keys()
    for name, function in expected.items():
        assert shape(found[name]) == shape(function), name
    if blocking is TasteClient:
        assert shape(asyncio.__init__) == shape(blocking.__init__)  # type: ignore[misc]


def test_what_differs_is_seen() -> None:
    def one(self: object, *, token: str | None = None) -> ResultStream[int]: ...
    def other(self: object, *, token: str | None = "") -> AsyncResultStream[int]: ...
    def same(self: object, *, token: str | None = None) -> AsyncResultStream[int]: ...

    assert shape(one) == shape(same)
    assert shape(one) != shape(other)


def test_all_of_it_is_exported_and_documented() -> None:
    assert sorted(taste_grpc_client.__all__) == taste_grpc_client.__all__
    public = {name for name, value in vars(taste_grpc_client).items() if not name.startswith("_")}
    modules = {name for name in public if inspect.ismodule(getattr(taste_grpc_client, name))}
    assert public - modules - {"annotations"} == set(taste_grpc_client.__all__)
    for name in taste_grpc_client.__all__:
        value = getattr(taste_grpc_client, name)
        if not inspect.isclass(value) and not inspect.isfunction(value):
            continue
        assert value.__doc__, name
        if inspect.isclass(value) and value.__module__.startswith("taste_grpc_client"):
            undocumented = [
                f"{name}.{member}"
                for member, function in vars(value).items()
                if not member.startswith("_") and inspect.isfunction(function) and not function.__doc__
            ]
            assert undocumented == []


def test_the_typed_program_uses_all_of_it() -> None:
    program = Path(__file__).with_name("typed_program.py").read_text(encoding="utf-8").partition("\n)\n")[2]
    unused = [name for name in taste_grpc_client.__all__ if not re.search(rf"\b{name}\b", program)]
    assert unused == []


def test_errors_have_one_root() -> None:
    errors = [
        value
        for value in vars(taste_grpc_client).values()
        if inspect.isclass(value) and issubclass(value, Exception) and value.__module__.endswith(".errors")
    ]
    assert len(errors) > 10
    assert all(issubclass(error, taste_grpc_client.TasteClientError) for error in errors)
    tree = inspect.getdoc(taste_grpc_client.errors) or ""
    assert [error.__name__ for error in errors if error.__name__ not in tree] == []
