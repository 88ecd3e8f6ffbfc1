"""`make run`: a server, a recording of a human voice, an answer, files to look at."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import soundfile

from taste_grpc.cli.failure import FAILURE, INTERRUPTED
from taste_grpc.cli.talk import print_talked
from taste_grpc.errors import TasteError
from taste_grpc.own_server import own_server
from taste_grpc.speech import sample_recordings
from taste_grpc.talk import TalkOptions, random_parts, save, talk
from taste_grpc_client import (
    Failure,
    FinalTranscript,
    LlmToken,
    SpeechChunk,
    TasteClient,
    TasteClientError,
    WavWriter,
)

_OUT = Path("out")
_RECORDING = "beckett"


def main() -> int:
    """Run the demonstration in the current directory; returns the exit status."""
    try:
        _run()
    except (TasteError, TasteClientError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _run() -> None:
    _OUT.mkdir(exist_ok=True)
    question, answer, record, spoken, log = (
        _OUT / name for name in ("question.wav", "answer.wav", "answer.json", "conversation.wav", "server.log")
    )
    shutil.copyfile(sample_recordings()[_RECORDING], question)
    _prepare()
    print(f"starting the server (its log: {log}) ...", flush=True)
    with own_server(log=log, dialogue=True) as address:
        print(f"it serves at {address}", flush=True)
        with TasteClient(address) as client:
            info = client.model_info()
            print(f"model: {info.model_id} on {info.device}, {info.dtype}; recogniser: {info.recogniser}")
            print(f"random weights: {', '.join(random_parts(info)) or 'none'}")
            print(f"sending {question}, a recording of a human voice ...", flush=True)
            talked = talk(
                client,
                question,
                TalkOptions(text_top_p=0.0, seed=1),
                on_transcript=lambda text: print(f"heard:  {text}\nanswer: ", end="", flush=True),
                on_words=lambda words: print(words, end="", flush=True),
            )
            print()
            save(talked, answer)
            record.write_text(json.dumps(talked.as_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print_talked(talked, answer)
            print("the same as a live conversation, whose recogniser, language model and voice are trained ...")
            _converse(client, question, spoken)
    print("the server stopped cleanly")
    print(
        f"files: {question} (what was asked), {answer} (the answer), {record} (its text and codes), "
        f"{spoken} (the answer of the conversation), {log}"
    )


def _converse(client: TasteClient, question: Path, spoken: Path) -> None:
    """One turn: what was understood, the answer's words as they come, its audio in `spoken`."""
    samples, rate_hz = soundfile.read(question, dtype="float32")
    # The recording has long pauses, which would each end a turn.
    talk = client.converse(sample_rate_hz=rate_hz, vad_silence_ms=2000, max_new_tokens=60)
    with talk, WavWriter(spoken) as audio:
        talk.send_audio(samples)
        talk.stop()
        talk.half_close()
        for event in talk:
            match event:
                case FinalTranscript(text=text):
                    print(f"heard:  {text}\nanswer: ", end="", flush=True)
                case LlmToken(text=text):
                    print(text, end="", flush=True)
                case SpeechChunk():
                    audio.write(event)
                case Failure(message=message):
                    print(f"\n{message}")
    print(f"\n{audio.duration_ms / 1000:.2f} s of speech in {spoken}")


def _prepare() -> None:
    """Assemble the embedded model here, where its progress can be seen."""
    from taste_grpc.model.embedded.nano import ensure_taste_nano

    ensure_taste_nano(progress=lambda text: print(text, flush=True))


if __name__ == "__main__":
    sys.exit(main())
