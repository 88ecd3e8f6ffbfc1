"""The commands that call a server: one process of it, the commands as processes and in this one."""

from __future__ import annotations

import io
import json
import queue
import subprocess
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from taste_grpc.own_server import own_server
from taste_grpc_client import SpokenText
from tests.support.command_line import COMMAND, SERVE_TINY, environment, here, run, write_recording

SAID = "how are you today"
Events = queue.SimpleQueue[dict]


@pytest.fixture(scope="module")
def log_events() -> Events:
    """What the server logs, as it does."""
    return queue.SimpleQueue()


@pytest.fixture(scope="module")
def address(log_events: Events, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server process over the tiny checkpoint."""
    log = tmp_path_factory.mktemp("server") / "log"
    with own_server(SERVE_TINY, log=log, on_event=log_events.put) as address:
        yield address
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert (events[0], events[-1]) == ("listening", "stopped")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("audio") / "question.wav")


@pytest.fixture(scope="module")
def question(address: str, recording: Path) -> Path:
    """The recording, tokenized."""
    path = recording.with_name("question.taste.json")
    done = here("tokenize", recording, "--text", SAID, "-o", path, "--server", address)
    assert done.returncode == 0, done.stderr
    return path


def lines(done: subprocess.CompletedProcess) -> list[dict]:
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def samples(path: Path) -> np.ndarray:
    with wave.open(str(path)) as audio:
        assert (audio.getnchannels(), audio.getsampwidth()) == (1, 2)
        return np.frombuffer(audio.readframes(audio.getnframes()), "<i2")


# --- info, log ----------------------------------------------------------------------------------------


def test_info_says_what_is_random(address: str):
    shown = here("info", "--server", address)
    assert shown.returncode == 0
    assert "spoken_lm RANDOM" in shown.stdout
    (told,) = lines(here("info", "--server", address, "--json"))
    assert told["model_id"] == "taste-tiny"
    assert told["limits"]["max_audio_ms"] == 30_000
    assert {part["name"] for part in told["parts"] if not part["trained"]} >= {"spoken_lm", "voice_generator"}


def test_the_log_has_a_line_per_call_and_says_what_is_random(address: str, log_events: Events):
    assert here("info", "--server", address).returncode == 0
    seen: list[dict] = []
    while not seen or seen[-1]["event"] != "call":
        seen.append(log_events.get(timeout=30))
    assert {"request_id", "peer", "method", "code", "duration_ms"} <= set(seen[-1])
    assert any("spoken_lm" in line.get("random_parts", "") for line in seen)


# --- tokenize -----------------------------------------------------------------------------------------


def test_tokenize_shows_words_with_codes_and_saves_them(address: str, recording: Path, tmp_path: Path):
    out = tmp_path / "deep" / "said.taste.json"
    done = run("tokenize", recording, "--text", SAID, "--server", address, "-o", out)
    assert done.returncode == 0, done.stderr
    saved = SpokenText.load(out)
    assert saved.text == SAID
    assert (saved.model_id, saved.audio_ms, len(saved.speaker)) == ("taste-tiny", 2000.0, 192)
    assert done.stdout.startswith(f"{SAID}\n")
    for number, word in enumerate(saved.words):
        (row,) = [line for line in done.stdout.splitlines() if line.startswith(f"│ {number} ")]
        assert [cell.strip() for cell in row.strip("│").split("│")][1:3] == [word.text, " ".join(map(str, word.codes))]
    assert "random weights" in done.stderr


def test_tokenize_as_json(address: str, recording: Path, question: Path):
    (told,) = lines(here("tokenize", recording, "--text", SAID, "--server", address, "--json"))
    saved = SpokenText.load(question)
    assert told["text"] == SAID
    assert [tuple(word["codes"]) for word in told["words"]] == [word.codes for word in saved.words]
    assert told["speaker"] == list(saved.speaker)
    assert told["model"] == {"id": "taste-tiny", "revision": saved.revision}
    assert "audio_tower" in told["random_parts"]
    ids = ",".join(str(text_id) for word in saved.words for text_id in word.text_ids)
    (again,) = lines(here("tokenize", recording, "--text-ids", ids, "--server", address, "--json"))
    assert again["words"] == told["words"]


def test_a_refusal_names_field_and_reason(address: str, recording: Path):
    done = here("tokenize", recording, "--text-ids", "999999", "--server", address)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("taste-grpc: INVALID_ARGUMENT: text_ids[0]: is 999999")
    told = json.loads(here("tokenize", recording, "--text-ids", "999999", "--server", address, "--json").stderr)[
        "error"
    ]
    assert (told["code"], told["reason"]) == ("INVALID_ARGUMENT", "ERROR_REASON_INVALID_FIELD")
    assert [found["field"] for found in told["fields"]] == ["text_ids[0]"]
    assert told["request_id"]


# --- generate -----------------------------------------------------------------------------------------


def test_generate_streams_words_and_saves_them(address: str, question: Path, tmp_path: Path):
    out = tmp_path / "answer.taste.json"
    arguments = ("generate", "--from", question, "--extra-words", "4", "--seed", "1", "--server", address)
    done = run(*arguments, "-o", out)
    assert done.returncode == 0, done.stderr
    saved, asked = SpokenText.load(out), SpokenText.load(question)
    assert done.stdout == f"{saved.text}\n"
    assert (saved.speaker, saved.model_id, saved.revision) == (asked.speaker, asked.model_id, asked.revision)
    assert "ended by" in done.stderr
    results = lines(here(*arguments, "--json"))
    assert [result["index"] for result in results] == list(range(len(results)))
    assert [result["is_complete"] for result in results] == [False] * (len(results) - 1) + [True]
    words = [word for result in results for word in result["words"]]
    assert [(word["text"], tuple(word["codes"])) for word in words] == [(word.text, word.codes) for word in saved.words]
    assert "".join(result["text"] for result in results).split() == saved.text.split()
    by_sentence = lines(here(*arguments, "--emit", "sentence", "--json"))
    by_three = lines(here(*arguments, "--emit", "3", "--json"))
    assert [len(result["words"]) for result in by_three[:-1]] == [3] * (len(by_three) - 1)
    assert len(by_sentence) < len(results)


def test_every_sampling_option_reaches_the_server(address: str, question: Path):
    """Each with a value out of its range, which the server names."""
    values = {"text_top_p": 2, "taste_top_p": 2, "text_temperature": 9, "repetition_penalty": 9, "max_length": 0}
    values |= {"extra_words": 0, "eos_id": 10**6, "conversation_format": "x"}
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        done = here("generate", "--from", question, option, str(value), "--server", address, "--json")
        assert done.returncode == 1, option
        assert [found["field"] for found in json.loads(done.stderr)["error"]["fields"]] == [name]


def test_the_order_of_options_is_the_order_of_the_conversation(chat_address: str, recording: Path, tmp_path: Path):
    said = tmp_path / "said.taste.json"
    assert here("tokenize", recording, "--text", "hi you", "-o", said, "--server", chat_address).returncode == 0
    options = ["--user", "one", "--assistant", "two", "--user-audio", str(recording), "--transcript", "three four"]
    options += ["--assistant-from", str(said), "--user", "five", "--system", "six"]
    members = [
        {"role": "user", "text": "one"},
        {"role": "assistant", "text": "two"},
        {"role": "user", "audio": recording.name, "transcript": "three four"},
        {"role": "assistant", "taste": str(said)},
        {"role": "user", "text": "five"},
        {"role": "system", "text": "six"},
    ]
    file = recording.with_name("conversation.json")

    def answer(*arguments: str | Path, content: object = None, stdin: str = "") -> list:
        if content is not None:
            file.write_text(json.dumps(content))
        common = ("--extra-words", "4", "--text-top-p", "0", "--max-length", "12", "--server", chat_address, "--json")
        results = lines(here("generate", *arguments, *common, stdin=stdin, cwd=recording.parent))
        return [result["words"] for result in results]

    from_options = answer(*options)
    assert answer(file, content=members) == from_options
    assert answer("-", stdin=json.dumps({"segments": members})) == from_options
    assert answer(file, *options[8:], content=members[:3]) == from_options
    other_order = answer(*options[2:4], *options[:2], *options[4:])
    assert other_order != from_options


def test_codes_of_another_model_are_refused_before_they_are_sent(address: str, question: Path, tmp_path: Path):
    stranger = SpokenText.load(question)
    stranger.model_id = "another"
    stranger.save(tmp_path / "x.taste.json")
    for command in (("generate", "--from", "x.taste.json"), ("detokenize", "x.taste.json", "-o", "x.wav")):
        done = here(*command, "--server", address, cwd=tmp_path)
        assert done.returncode == 1
        assert "the codes are those of 'another'" in done.stderr
    assert not (tmp_path / "x.wav").exists()
    SpokenText().save(tmp_path / "x.taste.json")
    for command in (("generate", "--from", "x.taste.json"), ("detokenize", "x.taste.json", "--speaker", question)):
        done = here(*command, "-o", "y", "--server", address, cwd=tmp_path)
        assert (done.returncode, "has no words" in done.stderr) == (1, True)


# --- detokenize ---------------------------------------------------------------------------------------


def test_detokenize_speaks_files_one_after_the_other(address: str, question: Path, tmp_path: Path):
    edited, out = tmp_path / "edited.taste.json", tmp_path / "deep" / "out.wav"
    assert here("edit", question, "--replace", "1=were", "-o", edited).returncode == 0
    arguments = ("--seed", "3", "--sample-rate", "24000", "--server", address)
    done = run("detokenize", question, edited, "-o", out, *arguments)
    assert done.returncode == 0, done.stderr
    both = samples(out)
    assert f"{len(both) / 24_000:.2f} s of audio at 24000 Hz in {out}" in done.stdout
    (told,) = lines(here("detokenize", question, edited, "-o", tmp_path / "again.wav", *arguments, "--json"))
    first, second = told["segments"]
    assert np.array_equal(samples(tmp_path / "again.wav"), both)
    assert (first["file"], second["file"]) == (str(question), str(edited))
    # a segment shorter than what is held back until its end is known comes with the next one
    assert 0 == first["start_ms"] <= first["end_ms"] == second["start_ms"] < second["end_ms"] == told["audio_ms"]
    assert told["audio_ms"] == pytest.approx(1000 * len(both) / 24_000)
    assert first["speech_units"] > 0 < second["speech_units"]


def test_detokenize_goes_on_from_a_state(address: str, question: Path, tmp_path: Path):
    state, common = tmp_path / "state", ("--server", address, "--json")
    at_once = tmp_path / "both.wav"
    lines(here("detokenize", question, question, "-o", at_once, "--seed", "3", *common))
    parts = tmp_path / "first.wav", tmp_path / "second.wav"
    lines(here("detokenize", question, "-o", parts[0], "--seed", "3", "--save-state", state, *common))
    lines(here("detokenize", question, "-o", parts[1], "--resume-state", state, *common))
    # speech that has ended goes on without losing or repeating a sample, with a joint of its own
    assert sum(len(samples(part)) for part in parts) == len(samples(at_once))
    refused = here("detokenize", question, "-o", parts[1], "--resume-state", state, "--speaker", question, *common)
    assert refused.returncode == 2
    assert "--resume-state remembers the voice" in refused.stderr


def test_the_length_of_phrases_reaches_the_server(address: str, recording: Path, question: Path, tmp_path: Path):
    for arguments in (("detokenize", question), ("talk", recording, "--text", SAID)):
        for name, value in (("max_chunk_words", "65"), ("look_ahead_words", "17")):
            option = f"--{name.replace('_', '-')}"
            common = ("-o", tmp_path / "out.wav", "--server", address)
            done = here(*arguments, option, value, *common)
            assert done.returncode == 1
            assert f"config.{name}: is {value}" in done.stderr


def test_detokenize_to_a_pipe(address: str, question: Path, tmp_path: Path):
    out = tmp_path / "out.wav"
    arguments = ("detokenize", str(question), "--seed", "3", "--server", address)
    assert here(*arguments, "-o", out).returncode == 0

    def piped(*more: str) -> bytes:
        command = [*COMMAND, *arguments, "-o", "-", *more]
        done = subprocess.run(command, env=environment(), capture_output=True, check=True, timeout=150)
        assert b"s of audio at 16000 Hz" in done.stderr
        return done.stdout

    expected = samples(out)
    wav = piped()
    with wave.open(io.BytesIO(wav)) as header:
        assert (header.getnchannels(), header.getsampwidth(), header.getframerate()) == (1, 2, 16_000)
    assert np.array_equal(np.frombuffer(wav[44:], "<i2"), expected)
    assert np.array_equal(np.frombuffer(piped("--encoding", "linear16"), "<i2"), expected)
    floats = np.frombuffer(piped("--encoding", "float32le"), "<f4")
    assert np.allclose(floats, expected / 32768, atol=1 / 32768)


def test_detokenize_takes_a_voice_from_where_it_is_told(address: str, recording: Path, question: Path, tmp_path: Path):
    silent = SpokenText.load(question)
    silent.speaker = None
    voiceless = tmp_path / "voiceless.taste.json"
    silent.save(voiceless)
    common = ("-o", tmp_path / "out.wav", "--seed", "3", "--server", address)
    refused = here("detokenize", voiceless, *common)
    assert (refused.returncode, "--speaker" in refused.stderr) == (2, True)
    refused = here("detokenize", question, "--speaker", voiceless, *common)
    assert (refused.returncode, "has no speaker" in refused.stderr) == (2, True)
    spoken = {}
    for voice in (recording, question):
        assert here("detokenize", voiceless, "--speaker", voice, *common).returncode == 0
        spoken[voice] = samples(tmp_path / "out.wav")
    assert here("detokenize", question, *common).returncode == 0
    assert np.array_equal(spoken[question], samples(tmp_path / "out.wav"))
    assert np.array_equal(spoken[question], spoken[recording]), "the recording is where that voice came from"


def test_speech_that_fails_leaves_what_was_there(address: str, question: Path, tmp_path: Path):
    out = tmp_path / "out.wav"
    out.write_bytes(b"before")
    done = here("detokenize", question, "-o", out, "--sample-rate", "100", "--server", address)
    assert done.returncode == 1
    assert "config.out_sample_rate_hz: is 100" in done.stderr
    assert (out.read_bytes(), list(tmp_path.iterdir())) == (b"before", [out])


# --- talk ---------------------------------------------------------------------------------------------


def test_talk_saves_answer_and_plot_and_prints_what_came_back(address: str, recording: Path, tmp_path: Path):
    out, plot = tmp_path / "deep" / "answer.wav", tmp_path / "deeper" / "answer.png"
    done = run("talk", recording, "--server", address, "--text", SAID, "-o", out, "--plot", plot, "--seed", "1")
    assert done.returncode == 0, done.stderr
    assert len(samples(out)) > 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert f"heard:  {SAID}\nanswer: " in done.stdout
    assert all(word in done.stdout for word in ("first words", "first audio", "answer complete", "random", str(plot)))
    assert "spoken_lm" in done.stdout


def test_talk_as_json(address: str, recording: Path, tmp_path: Path):
    arguments = ("talk", recording, "--server", address, "--text", SAID, "--seed", "1", "--json")
    (told,) = lines(here(*arguments, cwd=tmp_path))
    answer = told["answer"]
    assert told["transcript"] == SAID
    assert len(answer["text_ids"]) == len(answer["word_ids"])
    assert len(answer["codes"]) == answer["vq_dim"] * len(answer["text_ids"])
    assert answer["word_ids"] == sorted(answer["word_ids"])
    assert 1000 * len(samples(tmp_path / told["audio_file"])) / 24_000 == pytest.approx(answer["audio_ms"], abs=0.01)
    assert {"audio_tower", "spoken_lm", "voice_generator"} <= set(told["random_parts"])
    assert list(told["latency_ms"]) == ["question tokenized", "first words", "first audio", "answer complete"]
    (again,) = lines(here(*arguments, cwd=tmp_path))
    assert again["answer"] == answer, "a seed makes the answer repeatable"


@pytest.fixture(scope="module")
def chat_address(chat_checkpoint: Path) -> Iterator[str]:
    """A server process over a tiny checkpoint that can hold conversations."""
    with own_server(["--model", str(chat_checkpoint), *SERVE_TINY[2:]]) as address:
        yield address
