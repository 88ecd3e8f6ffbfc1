"""Times of turns: as events, as histograms, as lines."""

from __future__ import annotations

import io
import json
import sys

import pytest
from prometheus_client import CollectorRegistry

from taste_grpc.dialogue import DialogueMetrics
from taste_grpc.dialogue.events import ErrorCode, TurnMetrics
from taste_grpc.dialogue.metrics import TurnTimes


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_times_are_counted_from_the_beginning_of_the_turn() -> None:
    times = TurnTimes(10.0, speech_end=12.0, t1=10.5, t2=12.25, t3=12.5, t4=13.0)
    assert times.metrics(4) == TurnMetrics(4, 500.0, 2_250.0, 2_500.0, 3_000.0, 1_000.0)


def test_what_did_not_happen_has_no_time() -> None:
    assert TurnTimes(10.0).metrics(0) == TurnMetrics(0)
    assert TurnTimes(0.0, t4=0.0).metrics(0) == TurnMetrics(0, first_audio_ms=0.0)
    assert TurnTimes(0.0, speech_end=1.0).metrics(0).response_ms is None


def test_each_turn_error_and_notice_is_a_json_line() -> None:
    stream = io.StringIO()
    metrics = DialogueMetrics(stream=stream)
    metrics.turn_ended("abc", TurnMetrics(2, first_partial_ms=512.34, response_ms=700.0), "interrupted")
    metrics.error("abc", ErrorCode.LLM_TIMEOUT)
    metrics.notice("abc", 'a "slow" client')
    assert lines(stream) == [
        {
            "event": "latency",
            "level": "info",
            "sid": "abc",
            "turn": 2,
            "end": "interrupted",
            "first_partial_ms": 512.3,
            "response_ms": 700.0,
        },
        {"event": "error", "code": "LLM_TIMEOUT", "sid": "abc"},
        {"event": "info", "message": 'a "slow" client', "sid": "abc"},
    ]


def test_lines_go_to_stdout_and_nowhere_when_nobody_wants_them(capsys: pytest.CaptureFixture[str]) -> None:
    DialogueMetrics(log_latency=False).error("abc", ErrorCode.INTERNAL)
    assert capsys.readouterr().out == ""
    DialogueMetrics().error("abc", ErrorCode.INTERNAL)
    assert json.loads(capsys.readouterr().out)["code"] == "INTERNAL"


def test_a_stdout_that_nobody_reads_any_more_hurts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    metrics = DialogueMetrics()
    metrics.error("abc", ErrorCode.INTERNAL)
    assert metrics.registry.get_sample_value("taste_converse_errors_total", {"code": "INTERNAL"}) == 1


def test_the_registry_has_a_histogram_of_each_time_and_counts_ends_and_errors() -> None:
    registry = CollectorRegistry()
    metrics = DialogueMetrics(registry, log_latency=False)
    metrics.turn_ended("a", TurnMetrics(0, 500.0, 1_000.0, 1_500.0, 2_000.0, 250.0), "complete")
    metrics.turn_ended("b", TurnMetrics(0, first_token_ms=250.0), "complete")
    metrics.turn_ended("b", TurnMetrics(1), "cancelled")
    metrics.error("b", ErrorCode.CANCELLED)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    sums = {"first_partial": 0.5, "final_transcript": 1.0, "first_token": 1.75, "first_audio": 2.0, "response": 0.25}
    for name, seconds in sums.items():
        assert value(f"taste_turn_{name}_seconds_sum") == pytest.approx(seconds)
        assert value(f"taste_turn_{name}_seconds_count") == (2 if name == "first_token" else 1)
    assert value("taste_turn_response_seconds_bucket", le="0.2") == 0
    assert value("taste_turn_response_seconds_bucket", le="0.3") == 1
    assert value("taste_turns_total", end="complete") == 2
    assert value("taste_turns_total", end="cancelled") == 1
    assert value("taste_converse_errors_total", code="CANCELLED") == 1
