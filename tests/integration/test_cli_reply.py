"""`taste-grpc reply` against a live server, with the real recogniser and a scripted language model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from taste_grpc.dialogue import CascadeModel
from taste_grpc.errors import LanguageModelError
from tests.support.command_line import here, run, write_recording
from tests.support.messages import spoken_wav
from tests.support.recording_engine import RecordingEngine
from tests.support.scripted_models import ANSWER, RealRecogniser, ScriptedLanguageModel
from tests.support.served import Served, served


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "question.wav"
    path.write_bytes(spoken_wav())
    return path


@pytest.fixture(scope="module")
def says() -> ScriptedLanguageModel:
    return ScriptedLanguageModel()


@pytest.fixture(scope="module")
def server(says: ScriptedLanguageModel) -> Iterator[Served]:
    with served(RecordingEngine, make_reply=lambda: CascadeModel(RealRecogniser(), says)) as server:
        yield server


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_words_are_written_as_they_come(server: Served, question: Path):
    done = run("reply", question, "--server", server.address)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{ANSWER}\n", "")


def test_the_words_of_a_recording(server: Served, question: Path):
    done = here("reply", question, "--mode", "transcription", "--server", server.address)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Ever tried")


def test_chunks_as_json(server: Served, question: Path):
    done = here("reply", question, "--json", "--chunk-id", "q-1", "--server", server.address)
    assert (done.returncode, done.stderr) == (0, "")
    chunks = lines(done.stdout)
    assert [chunk["chunk_index"] for chunk in chunks] == [0, 1, 2, 3]
    assert [chunk["is_final"] for chunk in chunks] == [False, False, False, True]
    assert "".join(chunk["text"] for chunk in chunks) == ANSWER
    assert {(chunk["chunk_id"], chunk["success"], chunk["error"]) for chunk in chunks} == {("q-1", True, None)}
    assert all(chunk["processing_time_ms"] > 0 for chunk in chunks)


def test_options_reach_the_model(server: Served, question: Path, says: ScriptedLanguageModel):
    options = ("--max-new-tokens", "7", "--temperature", "0", "--top-p", "1", "--system", "Shout.")
    times = ("--chunk-timeout-ms", "100", "--timeout-ms", "20000")
    done = here("reply", question, "--json", "--chunk-size-words", "1", *options, *times, "--server", server.address)
    assert len(lines(done.stdout)) == len(ANSWER.split())
    messages, sampling = says.asked[-1]
    assert messages[0].text == "Shout."
    assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p) == (7, 0.0, 1.0)


def test_silence_is_a_failure(server: Served, tmp_path: Path):
    noise = write_recording(tmp_path / "noise.wav")
    done = here("reply", noise, "--server", server.address)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "taste-grpc: no speech was heard\n")
    done = here("reply", noise, "--json", "--server", server.address)
    assert done.returncode == 1
    (chunk,) = lines(done.stdout)
    assert (chunk["success"], chunk["is_final"]) == (False, True)
    assert json.loads(done.stderr)["error"]["message"] == "no speech was heard"


def test_an_answer_that_fails_midway(server: Served, question: Path, says: ScriptedLanguageModel):
    says.failure, says.fails_after = LanguageModelError("the endpoint is gone"), 10
    try:
        done = here("reply", question, "--server", server.address)
    finally:
        says.failure = None
    assert (done.returncode, done.stdout) == (1, "Yes, of course.\n")
    assert done.stderr.splitlines()[-1] == "taste-grpc: the endpoint is gone"


@pytest.mark.parametrize(
    ("options", "field"),
    [(("--mode", "chat"), "mode"), (("--max-new-tokens", "0"), "max_new_tokens"), (("--top-p", "2"), "top_p")],
)
def test_what_the_server_refuses(server: Served, question: Path, options: tuple[str, ...], field: str):
    done = here("reply", question, *options, "--server", server.address)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"taste-grpc: INVALID_ARGUMENT: {field}: is ")


@pytest.mark.parametrize(
    "arguments",
    [[], ["none.wav"], ["-", "--max-new-tokens", "many"], ["question.wav", "--token", "x"], ["-", "--words", "2"]],
)
def test_wrong_usage(arguments: list[str], question: Path):
    done = here("reply", *arguments, cwd=question.parent)
    assert (done.returncode, done.stdout) == (2, "")


def test_a_server_that_does_not_offer_it(question: Path):
    with served(RecordingEngine) as server:
        done = here("reply", question, "--server", server.address)
    assert (done.returncode, done.stdout) == (1, "")
    assert "DialogueService.Reply is not offered by this server" in done.stderr
