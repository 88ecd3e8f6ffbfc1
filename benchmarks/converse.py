"""How soon a live conversation answers: a server with the embedded default, and people who talk to it in real time.

    python benchmarks/converse.py [--quick]

The server is a process of its own, with the models that packages ship: recogniser, language model, voice. A client
says five utterances of 3 to 6 seconds, cut from a recording of a human voice whose speech was labelled by its waveform,
frame by frame as a microphone would, followed by silence: the server finds the end of speech itself. Then four clients
do so at once, each a second after the one before.

JSON keys, all medians over utterances, in seconds as the client sees them:

- `first_partial_s`: from the labelled beginning of speech to the first partial transcript (below 1.5 wanted);
- `first_audio_s`: from the labelled end of speech to the first audio of the answer (below 3.5 wanted);
- `first_partial_4_s`, `first_audio_4_s`: the same with four conversations at once;
- where the time from the end of speech goes: `transcript_s` to the final transcript, which includes the silence that
  ends a turn (0.7 s); `llm_first_token_s` from there to the first token; `phrase_s` to the text of the first phrase;
  `tts_s` to its audio; and `transcript_4_s` and so on;
- `word_error_rate`: of the final transcripts of one conversation, against what is read out.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer

sys.path.insert(0, str(Path(__file__).parent))
from _report import report
from _talking import Heard, Talker, Utterance, utterances

from taste_grpc.own_server import own_server

CONVERSATIONS = 4
STAGGER_S = 1.0
TEXTS = (
    "it was the best of times it was the worst of times",
    "it was the age of wisdom it was the age of foolishness it was the epoch of belief",
    "it was the season of light it was the season of darkness",
    "we were all going direct to heaven we were all going direct the other way",
    "that some of its noisiest authorities insisted on its being received for good or for evil",
)
_WORDS = jiwer.Compose([jiwer.ToLowerCase(), jiwer.RemovePunctuation(), jiwer.RemoveMultipleSpaces(), jiwer.Strip()])


async def converse(address: str, said: Sequence[Utterance], delay_s: float = 0.0) -> list[Heard]:
    """One conversation: every utterance a turn."""
    await asyncio.sleep(delay_s)
    talker = Talker(address)
    await talker.open(max_new_tokens=60)
    turns = [await talker.turn(utterance) for utterance in said]
    await talker.close()
    return turns


async def measure(address: str, said: Sequence[Utterance]) -> tuple[list[Heard], list[Heard]]:
    """The turns of one conversation, and those of several at once."""
    await converse(address, said[:1])
    alone = await converse(address, said)
    together = await asyncio.gather(*(converse(address, said, STAGGER_S * i) for i in range(CONVERSATIONS)))
    return alone, [turn for turns in together for turn in turns]


def medians(turns: Sequence[Heard], mark: str = "") -> dict[str, float]:
    """Of each part of the time, by the name of its key."""
    parts = [turn.parts() for turn in turns]
    return {f"{name[:-2]}{mark}_s": statistics.median(part[name] for part in parts) for name in parts[0]}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="How soon a live conversation answers.")
    parser.add_argument("--quick", action="store_true", help="two utterances instead of five")
    quick = parser.parse_args().quick
    said = utterances()[: 2 if quick else None]
    with own_server(dialogue=True) as address:
        alone, together = asyncio.run(measure(address, said))
    figures: dict[str, Any] = {**medians(alone), **medians(together, f"_{CONVERSATIONS}")}
    transcripts = [turn.transcript for turn in alone]
    figures["word_error_rate"] = jiwer.wer([_WORDS(text) for text in TEXTS[: len(said)]], [*map(_WORDS, transcripts)])
    rows = [(name, f"{figures[name]:.2f}") for name in figures]
    report("A live conversation (seconds)", rows, figures, quick)


if __name__ == "__main__":
    main()
