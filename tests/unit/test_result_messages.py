"""The results of an answer as messages: one message is filled again and again, and shows nothing of what it held."""

from __future__ import annotations

from itertools import chain

import pytest

from taste.v1 import common_pb2, taste_pb2
from taste_grpc.engine.protocol import GenerateResult
from taste_grpc.server.convert import StreamingResults

LIMIT = 1_000


def result(index: int, words: int = 1, *, last: bool = False, **timing_ms: float) -> GenerateResult:
    return GenerateResult(
        is_complete=last,
        completion_reason="finished" if last else "continuing",
        text=" hé" * words,
        text_ids=tuple(range(7, 7 + words)),
        word_ids=tuple(range(index, index + words)),
        taste_ids=((index % 512,) * 4,) * words,
        index=index,
        words=("hé",) * words,
        timing_ms=timing_ms,
    )


def expected(of: GenerateResult, elapsed_ms: float, queued_ms: float) -> taste_pb2.StreamingResult:
    message = taste_pb2.StreamingResult(is_complete=of.is_complete, index=of.index)
    message.completion_reason = (
        taste_pb2.COMPLETION_REASON_FINISHED if of.is_complete else taste_pb2.COMPLETION_REASON_CONTINUING
    )
    message.timing.elapsed_ms = elapsed_ms
    message.timing.queued_ms = queued_ms + of.timing_ms.get("queued", 0.0)
    for name in of.timing_ms.keys() - {"queued"}:
        message.timing.stages_ms[name] = of.timing_ms[name]
    if of.words:
        message.segment.role = common_pb2.ROLE_ASSISTANT
        message.segment.modality = common_pb2.MODALITY_AUDIO
        tokens = message.segment.tokens
        tokens.text = of.text
        tokens.text_ids.extend(of.text_ids)
        tokens.word_ids.extend(of.word_ids)
        tokens.words.extend(of.words)
        tokens.taste_tokens.codes.vq_dim = 4
        tokens.taste_tokens.codes.ids.extend(chain.from_iterable(of.taste_ids))
    return message


def test_each_message_holds_its_result_and_nothing_else() -> None:
    """Longer and shorter ones, stages that come and go, more of them than one message is filled with."""
    given = [result(0, 3, queued=1.0, prefill=2.0), result(1, 0, queued=1.0), result(2, 5, decode=3.0)]
    given += [result(index, 1 + index % 3, queued=0.5, decode=float(index)) for index in range(3, 200)]
    given += [result(200, 0, last=True)]
    messages = StreamingResults(LIMIT, queued_ms=2.5)
    for each in given:
        assert messages.message(each, 10.0 + each.index) == expected(each, 10.0 + each.index, 2.5)


def test_a_result_after_the_last_does_not_look_like_it() -> None:
    messages = StreamingResults(LIMIT)
    assert messages.message(result(0, last=True), 1.0).is_complete
    assert not messages.message(result(1), 2.0).is_complete


@pytest.mark.parametrize(("limit", "text"), [(8, " hé hé"), (7, " hé h"), (6, " hé h"), (5, " hé ")])
def test_text_is_cut_at_whole_characters(limit: int, text: str) -> None:
    assert StreamingResults(limit).message(result(0, 2), 1.0).segment.tokens.text == text


def test_what_the_engine_gave_stays_as_it_was() -> None:
    given = result(0, queued=1.0, decode=2.0)
    StreamingResults(LIMIT, queued_ms=5.0).message(given, 1.0)
    assert given.timing_ms == {"queued": 1.0, "decode": 2.0}
