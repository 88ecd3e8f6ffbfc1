"""Answers to one question, for the tests of generation."""

from __future__ import annotations

import threading
from typing import Any

import torch

from taste_grpc.streaming import ResultIterator, StreamingResult, TASTESegment, streaming_generate
from tests.conftest import Loaded

QUESTION = TASTESegment("user", "text", torch.tensor([[377, 487, 315, 13]]))


def answer(loaded: Loaded, segments: list[TASTESegment] | None = None, **options: Any) -> ResultIterator:
    options = {"seed": 0, "max_length": 60} | options
    return streaming_generate(loaded.model, loaded.processor, [QUESTION] if segments is None else segments, **options)


def greedy(loaded: Loaded, segments: list[TASTESegment] | None = None, **options: Any) -> list[StreamingResult]:
    return list(answer(loaded, segments, **{"text_top_p": 0.0, "extra_words": 60} | options))


def ids_of(results: list[StreamingResult]) -> list[int]:
    return [text_id for result in results if result.segment for text_id in result.segment.text_ids[0].tolist()]


def codes_of(results: list[StreamingResult]) -> list[list[int]]:
    segments = [result.segment for result in results if result.segment is not None]
    return [row for segment in segments if segment.taste_ids is not None for row in segment.taste_ids[0].tolist()]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "taste-generate"]
