"""Reply requests that must be refused: what is wrong, the field that is to be named, the request."""

from __future__ import annotations

from collections.abc import Callable

from taste.v1 import common_pb2, dialogue_pb2
from tests.support import messages
from tests.support.bad_clips import CLIPS, INF, NAN, raw
from tests.support.bad_inputs import TEXTS

MakeRequest = Callable[[], dialogue_pb2.ReplyRequest]


def reply(**fields: object) -> dialogue_pb2.ReplyRequest:
    return dialogue_pb2.ReplyRequest(audio=messages.clip(), **fields)


BAD_REPLIES: dict[str, tuple[str, MakeRequest]] = {
    "nothing": ("audio", dialogue_pb2.ReplyRequest),
    "no audio": ("audio", lambda: dialogue_pb2.ReplyRequest(mode="conversation")),
    "empty clip": ("audio.format.encoding", lambda: dialogue_pb2.ReplyRequest(audio=common_pb2.AudioClip())),
    "chunk_id of 257 bytes": ("chunk_id", lambda: reply(chunk_id="x" * 257)),
    "chunk_id of 258 bytes in 129 letters": ("chunk_id", lambda: reply(chunk_id="é" * 129)),
    "a million bytes of mode": ("mode", lambda: reply(mode="x" * 1_000_000)),
    "17 MB": ("", lambda: reply_of(raw(bytes(17_000_000)))),
}


def reply_of(clip: common_pb2.AudioClip, **fields: object) -> dialogue_pb2.ReplyRequest:
    return dialogue_pb2.ReplyRequest(audio=clip, **fields)


for _name, (_field, _make) in CLIPS.items():
    BAD_REPLIES[f"audio: {_name}"] = (f"audio.{_field}", lambda make=_make: reply_of(make()))

for _name, _text in TEXTS.items():
    BAD_REPLIES[f"system_prompt: {_name}"] = ("system_prompt", lambda text=_text: reply(system_prompt=text))
    if "long" not in _name:
        BAD_REPLIES[f"chunk_id: {_name}"] = ("chunk_id", lambda text=_text: reply(chunk_id=text))

for _mode in ("", "chat", "CONVERSATION", " transcription", "\0"):
    BAD_REPLIES[f"mode {_mode!r}"] = ("mode", lambda mode=_mode: reply(mode=mode))

_RANGES: dict[str, tuple[float, ...]] = {
    "max_new_tokens": (0, -1, 4_097, 2**31 - 1),
    "temperature": (-0.1, 2.1, NAN, INF, -INF),
    "top_p": (-0.1, 1.1, NAN, INF),
    "chunk_size_words": (0, -1, 65, -(2**31)),
    "timeout_ms": (0, -1, 600_001),
    "chunk_timeout_ms": (0, -1, 60_001),
}
for _field, _values in _RANGES.items():
    for _value in _values:
        BAD_REPLIES[f"{_field} {_value}"] = (_field, lambda field=_field, value=_value: reply(**{field: value}))
