"""The benchmark of fairness counts what it says; its figures are not judged here."""

from __future__ import annotations

from pathlib import Path

import pytest

from taste_grpc.model.embedded.random_checkpoint import words_tokenizer, write_random_checkpoint
from tests.support.benchmarks import benchmark


async def test_it_times_one_call_while_another_is_listened_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("fairness", monkeypatch)
    directory = str(write_random_checkpoint(tmp_path, seed=0, text_tokenizer=words_tokenizer()))
    figures = await module.measure(directory, {"threads": 1}, rounds=2, alone=6, words=10, seconds=1.0)
    assert figures["rounds"] == 2
    assert figures["ids_meanwhile"] >= 2
    assert figures["step_ms"] > 0
    assert figures["listening_s"] > 0
    assert figures["worst_delay_over_step"] >= figures["prefill_delay_over_step"]
