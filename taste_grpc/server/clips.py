"""Audio of requests: bytes that were checked as far as they can be, decoded."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import soundfile

from taste.v1 import common_pb2
from taste_grpc.audio import Waveform, decode_clip
from taste_grpc.errors import InvalidInputError
from taste_grpc.server.checks import ENCODINGS, check_rate
from taste_grpc.settings import LimitSettings


@dataclass(slots=True)
class ClipReader:
    """Decodes the clips of one request, which have a limit together: compressed audio may decode to far more
    than it weighs.

    Blocks for as long as decoding takes: up to 100 ms for 30 s. Not to be called on the event loop. `still_wanted` is
    called before each clip, and raises to stop.
    """

    limits: LimitSettings
    still_wanted: Callable[[], None] = lambda: None
    read_ms: float = 0.0

    def clip(self, path: str, clip: common_pb2.AudioClip) -> Waveform:
        """A recording. Raises InvalidInputError naming the field below `path`."""
        return self._decode(path, clip, self.limits.min_audio_ms, self.limits.max_audio_ms)

    def reference(self, path: str, clip: common_pb2.AudioClip) -> Waveform:
        """A recording of a voice. Raises InvalidInputError naming the field below `path`."""
        return self._decode(path, clip, self.limits.min_reference_ms, self.limits.max_reference_ms)

    def _decode(self, path: str, clip: common_pb2.AudioClip, min_ms: int, max_ms: int) -> Waveform:
        self.still_wanted()
        form, encoding = clip.format, ENCODINGS[clip.format.encoding]
        rate_hz = form.sample_rate_hz if form.HasField("sample_rate_hz") else None
        channels = form.channels if form.HasField("channels") else None
        try:
            wave = decode_clip(clip.data, encoding, rate_hz, channels, min_ms=min_ms, max_ms=max_ms)
            if not encoding.is_raw:
                check_rate("data", wave.sample_rate_hz, self.limits)
                _check_agreement(clip, wave.sample_rate_hz, self.limits)
        except InvalidInputError as error:
            raise error.at(path) from error
        self.read_ms += wave.duration_ms
        if self.read_ms > self.limits.max_request_audio_ms:
            allowed_s = self.limits.max_request_audio_ms / 1000
            raise InvalidInputError(
                f"{path}.data",
                f"brings the audio of the request above {allowed_s:g} s, which all clips may have together",
            )
        return wave


def _check_agreement(clip: common_pb2.AudioClip, rate_hz: int, limits: LimitSettings) -> None:
    """What a request says about a container must be what the container says."""
    form = clip.format
    if form.HasField("sample_rate_hz") and form.sample_rate_hz != rate_hz:
        raise InvalidInputError("format.sample_rate_hz", f"is {form.sample_rate_hz}, but the file has {rate_hz}")
    channels = int(soundfile.info(io.BytesIO(clip.data)).channels)
    if channels > limits.max_channels:
        raise InvalidInputError("data", f"has {channels} channels; at most {limits.max_channels} are allowed")
    if form.HasField("channels") and form.channels != channels:
        raise InvalidInputError("format.channels", f"is {form.channels}, but the file has {channels}")
