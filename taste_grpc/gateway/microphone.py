"""Microphone audio at the sample rate of its conversation."""

from __future__ import annotations

from taste_grpc.audio import Encoding, StreamResampler, decode_pcm, encode_pcm


class Microphone:
    """Int16 audio of a client that may change its sample rate between turns; a conversation keeps its own.

    Args:
        rate_hz: of the conversation, and of the client at first.
    """

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._resampler: StreamResampler | None = None

    def switch(self, rate_hz: int) -> None:
        """What follows comes at `rate_hz`."""
        if rate_hz == (self._resampler.from_hz if self._resampler else self._rate_hz):
            return
        self._resampler = StreamResampler(rate_hz, self._rate_hz) if rate_hz != self._rate_hz else None

    def convert(self, pcm: bytes) -> bytes:
        """`pcm`, and what was held back before, at the rate of the conversation; may be empty."""
        if self._resampler is None:
            return pcm
        samples = self._resampler.push(decode_pcm(pcm, Encoding.LINEAR16))
        return encode_pcm(samples, Encoding.LINEAR16)
