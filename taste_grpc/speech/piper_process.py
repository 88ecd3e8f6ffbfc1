"""The program that runs a Piper voice, in a process of its own; `taste_grpc.speech.voice_process` talks to it.

piper-tts is under the GPL: nothing but this program may import it. It is started by its path and imports nothing of
taste_grpc, so that it starts fast and stays small.

Both directions carry frames: a byte that says what it is, the length of the rest as 4 little-endian bytes, the rest.
The program says READY when the voice is loaded. Then, for each phrase: SAY comes in, with text in UTF-8; AUDIO goes
out, float32 little-endian samples of a sentence; after each, NEXT or DROP comes in; END goes out last, or FAILED with
a sentence about why. The end of its input ends the program at any point.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

HEADER = struct.Struct("<cI")
READY, AUDIO, END, FAILED = b"R", b"A", b"E", b"F"
SAY, NEXT, DROP = b"S", b"N", b"D"

_MAX_PHONEMES = 150
"""Some ten seconds. The memory of a sentence grows with its length, 1.5 MB a phoneme, and sentences may never end."""


def cut_phonemes(phonemes: list[str]) -> Iterator[list[str]]:
    """`phonemes` of a sentence in parts of at most 150, cut at blanks where there are some."""
    while len(phonemes) > _MAX_PHONEMES:
        blanks = [at for at in range(_MAX_PHONEMES // 2, _MAX_PHONEMES) if phonemes[at] == " "]
        end = blanks[-1] + 1 if blanks else _MAX_PHONEMES
        yield phonemes[:end]
        phonemes = phonemes[end:]
    yield phonemes


class _Parent:
    """The process at the other end of the pipes."""

    def __init__(self) -> None:
        # what libraries print must not get between the frames
        self._out: BinaryIO = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self._received: SimpleQueue[tuple[bytes, bytes]] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def receive(self) -> tuple[bytes, bytes]:
        """The next frame: what it is, and the rest."""
        return self._received.get()

    def send(self, kind: bytes, rest: bytes = b"") -> None:
        try:
            self._out.write(HEADER.pack(kind, len(rest)) + rest)
            self._out.flush()
        except BrokenPipeError:
            os._exit(0)

    def _read(self) -> None:
        # on a thread, so that the end of the parent is noticed in the middle of a sentence too
        given = sys.stdin.buffer
        while len(header := given.read(HEADER.size)) == HEADER.size:
            kind, length = HEADER.unpack(header)
            self._received.put((kind, given.read(length)))
        os._exit(0)


def _loaded(model: Path, threads: int) -> Any:
    import onnxruntime
    from piper import PiperVoice
    from piper.config import PiperConfig

    class Voice(PiperVoice):
        """Whose sentences all have an end."""

        def phonemize(self, text: str) -> list[list[str]]:
            return [part for sentence in super().phonemize(text) for part in cut_phonemes(sentence)]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # gives memory back after a long sentence, for some 5 % of time
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    config = PiperConfig.from_dict(json.loads(Path(f"{model}.json").read_text("utf-8")))
    return Voice(session=session, config=config)


def _say(parent: _Parent, voice: Any, config: Any, text: str) -> None:
    try:
        for chunk in voice.synthesize(text, config):
            parent.send(AUDIO, chunk.audio_float_array.astype("<f4").tobytes())
            if parent.receive()[0] != NEXT:
                break
    except Exception as error:
        parent.send(FAILED, f"{type(error).__name__}: {error}".encode(errors="replace"))
    else:
        parent.send(END)


def main() -> None:
    """Load the voice and speak until the input ends."""
    parser = argparse.ArgumentParser(description="Speaks phrases that come in on standard input.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--deterministic", action="store_true")
    arguments = parser.parse_args()
    parent = _Parent()
    logging.disable()  # piper logs what is said
    try:
        voice = _loaded(arguments.model, arguments.threads)
        from piper import SynthesisConfig

        config = SynthesisConfig(noise_scale=0.0, noise_w_scale=0.0) if arguments.deterministic else SynthesisConfig()
        for _ in voice.synthesize("One, two, three.", config):
            pass  # the first run is slower than the others
    except Exception as error:
        parent.send(FAILED, f"{type(error).__name__}: {error}".encode(errors="replace"))
        sys.exit(1)
    parent.send(READY)
    while True:
        kind, rest = parent.receive()
        if kind == SAY:
            _say(parent, voice, config, rest.decode())


if __name__ == "__main__":
    main()
