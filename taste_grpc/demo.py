"""`make run`: a server, a recording of a human voice, an answer, files to look at."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from taste_grpc.cli.failure import FAILURE, INTERRUPTED
from taste_grpc.cli.talk import print_talked
from taste_grpc.errors import TasteError
from taste_grpc.own_server import own_server
from taste_grpc.speech import sample_recordings
from taste_grpc.talk import TalkOptions, random_parts, save, talk
from taste_grpc_client import TasteClient, TasteClientError

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
    question, answer, record, log = (
        _OUT / name for name in ("question.wav", "answer.wav", "answer.json", "server.log")
    )
    shutil.copyfile(sample_recordings()[_RECORDING], question)
    _prepare()
    print(f"starting the server (its log: {log}) ...", flush=True)
    with own_server(log=log) as address:
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
    print("the server stopped cleanly")
    print(f"files: {question} (what was asked), {answer} (the answer), {record} (its text and codes), {log}")


def _prepare() -> None:
    """Assemble the embedded model here, where its progress can be seen."""
    from taste_grpc.model.embedded.nano import ensure_taste_nano

    ensure_taste_nano(progress=lambda text: print(text, flush=True))


if __name__ == "__main__":
    sys.exit(main())
