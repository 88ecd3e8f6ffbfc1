"""A program with the frames of `piper_process`, whose path is its argument, that does what the phrases say.

Each word is a sentence; its audio is the number of the phrase, that of the word, and the length of the word.
"""

from __future__ import annotations

import os
import runpy
import struct
import sys
import threading
from pathlib import Path

frames = runpy.run_path(sys.argv[1])
parent = frames["_Parent"]()
parent.send(frames["READY"])
phrases = words = 0
while True:
    kind, rest = parent.receive()
    assert kind == frames["SAY"], kind
    phrases += 1
    for word in rest.decode().split():
        if word == "die":
            os._exit(3)
        elif word == "hang":
            threading.Event().wait()
        elif word == "print":
            print("what libraries print")
            sys.stdout.flush()
        elif word == "break":
            parent.send(frames["FAILED"], b"it is broken")
            break
        elif word.startswith("/"):
            Path(word).read_bytes()  # a pipe: until somebody has written to it
        words += 1
        parent.send(frames["AUDIO"], struct.pack("<3f", phrases, words, len(word)))
        if parent.receive()[0] != frames["NEXT"]:
            parent.send(frames["END"])
            break
    else:
        parent.send(frames["END"])
