"""TASTESegment and StreamingResult."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taste_grpc.errors import BatchSizeError, InvalidInputError, InvalidTypeError
from taste_grpc.streaming import StreamingResult, TASTESegment

IDS = torch.tensor([[1, 2, 3]])
CODES = torch.tensor([[[1, 2, 3, 4], [-1, -1, -1, -1], [5, 6, 7, 8]]])


def test_a_segment_is_a_dataclass() -> None:
    assert [field.name for field in dataclasses.fields(TASTESegment)] == ["role", "modality", "text_ids", "taste_ids"]
    segment = TASTESegment("user", "audio", IDS, CODES)
    assert segment.length == 3
    assert TASTESegment("user", "text", IDS).taste_ids is None
    assert TASTESegment(role="assistant", modality="text", text_ids=IDS[:, :0]).length == 0


def test_ids_become_int64() -> None:
    segment = TASTESegment("user", "audio", IDS.int(), CODES.short())
    assert segment.text_ids.dtype == torch.int64
    assert segment.taste_ids is not None
    assert segment.taste_ids.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"role": "robot"}, "role", ["'robot'", "system, user, assistant"]),
        ({"role": None}, "role", ["None"]),
        ({"modality": "video"}, "modality", ["'video'", "text, audio"]),
        ({"taste_ids": None}, "taste_ids", ["missing", "audio"]),
        ({"modality": "text"}, "taste_ids", ["text"]),
        ({"text_ids": IDS[0]}, "text_ids", ["(3,)", "(1, S)"]),
        ({"text_ids": IDS[None]}, "text_ids", ["(1, 1, 3)"]),
        ({"taste_ids": CODES[0]}, "taste_ids", ["(3, 4)", "(1, S, vq_dim)"]),
        ({"taste_ids": CODES[:, :2]}, "taste_ids", ["S = 2", "S = 3"]),
        ({"text_ids": IDS[:, :1]}, "taste_ids", ["S = 3", "S = 1"]),
    ],
)
def test_what_is_no_segment(change: dict[str, Any], field: str, words: list[str]) -> None:
    arguments = {"role": "user", "modality": "audio", "text_ids": IDS, "taste_ids": CODES} | change
    with pytest.raises(InvalidInputError) as raised:
        TASTESegment(**arguments)
    assert isinstance(raised.value, ValueError)
    assert raised.value.field == field
    assert all(word in str(raised.value) for word in [field, *words])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text_ids": [[1, 2, 3]]}, ["text_ids", "list"]),
        ({"text_ids": None}, ["text_ids", "NoneType"]),
        ({"text_ids": IDS.numpy()}, ["text_ids", "ndarray"]),
        ({"text_ids": IDS.float()}, ["text_ids", "float32"]),
        ({"text_ids": IDS.bool()}, ["text_ids", "bool"]),
        ({"taste_ids": CODES.float()}, ["taste_ids", "float32"]),
    ],
)
def test_ids_of_the_wrong_type(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidTypeError) as raised:
        TASTESegment(**{"role": "user", "modality": "audio", "text_ids": IDS, "taste_ids": CODES} | change)
    assert isinstance(raised.value, TypeError)
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize("batch", [0, 2])
def test_one_segment_at_a_time(batch: int) -> None:
    for change in ({"text_ids": IDS.expand(2, 3)[:batch]}, {"taste_ids": CODES.expand(2, 3, 4)[:batch]}):
        with pytest.raises(BatchSizeError, match=r"batch size 1"):
            TASTESegment(**{"role": "user", "modality": "audio", "text_ids": IDS, "taste_ids": CODES} | change)
    # callers of the published code catch either
    assert issubclass(BatchSizeError, ValueError)
    assert issubclass(BatchSizeError, AssertionError)


@given(
    st.sampled_from(["system", "user", "assistant"]),
    st.lists(st.tuples(st.integers(0, 500), st.lists(st.integers(0, 31), min_size=4, max_size=4)), max_size=8),
    st.booleans(),
)
def test_segments_are_equal_by_value(role: Any, rows: list[tuple[int, list[int]]], spoken: bool) -> None:
    ids = torch.tensor([[text_id for text_id, _ in rows]], dtype=torch.long)
    codes = torch.tensor([row for _, row in rows], dtype=torch.long).reshape(1, -1, 4) if spoken else None
    modality: Any = "audio" if spoken else "text"

    def build() -> TASTESegment:
        return TASTESegment(role, modality, ids.clone(), None if codes is None else codes.clone())

    segment = build()
    assert segment == build()
    assert StreamingResult(False, "continuing", segment) == StreamingResult(False, "continuing", build())
    if rows:
        other = build()
        other.text_ids[0, 0] += 1
        assert segment != other
        if codes is not None:
            assert segment != TASTESegment(role, "text", ids)
            other = build()
            assert other.taste_ids is not None
            other.taste_ids[0, -1, -1] += 1
            assert segment != other
    assert segment != "segment"


def test_a_result_reads_like_a_dictionary() -> None:
    segment = TASTESegment("assistant", "audio", IDS, CODES)
    result = StreamingResult(True, "finished", segment)
    assert result["is_complete"] is result.is_complete is True
    assert result["completion_reason"] == "finished"
    assert result["segment"] is segment
    assert list(result) == list(result.keys()) == ["is_complete", "completion_reason", "segment"]
    assert len(result) == 3
    assert dict(result) == {"is_complete": True, "completion_reason": "finished", "segment": segment}
    assert result.values() == [True, "finished", segment]
    assert dict(result.items()) == dict(result)
    assert dict(**result) == dict(result)
    assert "segment" in result
    assert "keys" not in result
    assert result.get("segment") is segment
    assert result.get("nothing") is None
    assert result.get("keys", 5) == 5
    with pytest.raises(KeyError, match="keys"):
        result["keys"]


def test_a_result_does_not_change() -> None:
    result = StreamingResult(False, "continuing", None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.is_complete = True  # type: ignore[misc]
