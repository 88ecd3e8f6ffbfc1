"""`taste-grpc detokenize`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taste_grpc.cli.connection import JsonOption, ServerOptions, connected
from taste_grpc.cli.failure import usage_error
from taste_grpc.cli.files import read_spoken, read_voice, require_model
from taste_grpc.cli.numbers import int32, uint64
from taste_grpc.cli.progress import ProgressLine
from taste_grpc.cli.speech_file import Encoding, SpeechWriter, speech_file
from taste_grpc.cli.words import model_json, print_random

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from taste.v1.taste_pb2 import DetokenizeResponse
    from taste_grpc_client import PcmEncoding, SpokenText

_SOUND = "Sound"


@dataclass(frozen=True)
class SoundOptions:
    """How the speech is to sound, and where it goes on."""

    speaker: Annotated[
        Path | None,
        typer.Option(
            metavar="CLIP_OR_TASTE_JSON",
            exists=True,
            dir_okay=False,
            rich_help_panel=_SOUND,
            help="Whose voice: a recording of 1 to 30 s, or a .taste.json file. Default: that of the first FILE which "
            "has one.",
        ),
    ] = None
    sample_rate: Annotated[
        int | None,
        typer.Option(
            metavar="HZ",
            parser=int32,
            rich_help_panel=_SOUND,
            help="Samples per second.",
            show_default="16000, or what --resume-state remembers",
        ),
    ] = None
    encoding: Annotated[
        Encoding, typer.Option(rich_help_panel=_SOUND, help="A WAV file, or raw samples of 16 or 32 bit.")
    ] = "wav"
    seed: Annotated[
        int | None, typer.Option(parser=uint64, metavar="N", rich_help_panel=_SOUND, help="Makes the audio repeatable.")
    ] = None
    max_chunk_words: Annotated[
        int | None,
        typer.Option(
            parser=int32,
            metavar="N",
            rich_help_panel=_SOUND,
            help="Words that are spoken at a time at most; server's default if not given.",
        ),
    ] = None
    look_ahead_words: Annotated[
        int | None,
        typer.Option(
            parser=int32,
            metavar="N",
            rich_help_panel=_SOUND,
            help="Words after a phrase that the model is shown before it speaks it; server's default if not given.",
        ),
    ] = None
    resume_state: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            rich_help_panel=_SOUND,
            help="Go on where an earlier command ended; what --save-state wrote. Remembers the voice.",
        ),
    ] = None
    save_state: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_SOUND, help="File that receives what --resume-state takes."),
    ] = None

    def client_arguments(self, texts: Sequence[SpokenText]) -> dict[str, Any]:
        """What `detokenize` of the client takes beside segments. Raises CommandError when there is no voice."""
        pcm: PcmEncoding = "linear16" if self.encoding == "wav" else self.encoding
        arguments = {
            "sample_rate_hz": self.sample_rate,
            "seed": self.seed,
            "encoding": pcm,
            "max_chunk_words": self.max_chunk_words,
            "look_ahead_words": self.look_ahead_words,
        }
        if self.resume_state is not None:
            if self.speaker is not None:
                raise usage_error("--speaker", "--resume-state remembers the voice; it cannot be changed")
            return {**arguments, "resume_state": self.resume_state.read_bytes()}
        if self.speaker is not None:
            return {**arguments, "speaker": read_voice("--speaker", self.speaker)}
        voice = next((text.speaker for text in texts if text.speaker is not None), None)
        if voice is None:
            raise usage_error("--speaker", "no FILE tells a voice, so one must be given")
        return {**arguments, "speaker": voice}


def detokenize(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE.taste.json...", help="Text and codes, spoken one after the other.")
    ],
    sound: SoundOptions,
    server: ServerOptions,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where the speech is saved; - writes it to stdout as it is made.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Speak text with its codes."""
    if as_json and str(out) == "-":
        raise usage_error("--json", "stdout takes the audio already")
    texts = [read_spoken("FILE.taste.json", file) for file in files]
    arguments = sound.client_arguments(texts)
    with ProgressLine(shown=not as_json) as progress, connected(server, progress) as client:
        info = client.model_info()
        for file, text in zip(files, texts, strict=True):
            require_model(str(file), text, info)
        with speech_file(out, sound.encoding) as writer, client.detokenize(texts, **arguments) as chunks:
            spoken = _Spoken(files, writer)
            spoken.take(chunks, progress)
    if sound.save_state is not None:
        sound.save_state.write_bytes(spoken.resume_state)
    if as_json:
        typer.echo(json.dumps({**spoken.as_json(), **model_json(info), "audio_file": str(out)}, ensure_ascii=False))
        return
    where = "" if str(out) == "-" else f" in {out}"
    typer.echo(f"{writer.duration_ms / 1000:.2f} s of audio at {writer.sample_rate_hz} Hz{where}", err=str(out) == "-")
    print_random(info)


@dataclass
class _Spoken:
    """What came of each file."""

    files: Sequence[Path]
    writer: SpeechWriter
    ends_ms: list[float] = field(default_factory=list)
    speech_ids: list[int] = field(default_factory=list)
    resume_state: bytes = b""

    def take(self, chunks: Iterable[DetokenizeResponse], progress: ProgressLine) -> None:
        """Write the audio of a call as it comes."""
        progress.say(f"speaking {self.files[0]}", 0, len(self.files))
        for chunk in chunks:
            self.writer.write(chunk)
            self.speech_ids += [0] * (len(self.ends_ms) + 1 - len(self.speech_ids))
            self.speech_ids[-1] += len(chunk.speech_ids)
            if chunk.is_final:
                self.ends_ms.append(self.writer.duration_ms)
                self.resume_state = chunk.resume_state
                following = self.files[min(len(self.ends_ms), len(self.files) - 1)]
                progress.say(f"speaking {following}", len(self.ends_ms), len(self.files))

    def as_json(self) -> dict[str, Any]:
        """The same, as plain values."""
        starts = [0.0, *self.ends_ms]
        segments = [
            {"file": str(file), "start_ms": start, "end_ms": end, "speech_units": units}
            for file, start, end, units in zip(self.files, starts, self.ends_ms, self.speech_ids, strict=False)
        ]
        rate_hz, duration_ms = self.writer.sample_rate_hz, self.writer.duration_ms
        return {"audio_ms": duration_ms, "sample_rate_hz": rate_hz, "segments": segments}
