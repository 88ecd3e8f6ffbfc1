"""Microphone audio of the last moments, from before it is known that somebody speaks."""

from __future__ import annotations

from collections import deque

from taste_grpc.dialogue.ear import Frame

PAD_MS = 200.0
"""Audio that is kept before the first frame of speech: words begin softly."""
_MOST_MS = 5_000.0


class PreRoll:
    """Frames with their places, of which old ones are forgotten."""

    def __init__(self) -> None:
        self._frames: deque[tuple[float, Frame]] = deque()

    def append(self, began_ms: float, frame: Frame, speech_began_ms: float | None) -> None:
        """Add the frame that began at `began_ms`; keeps what led to the speech that is under way, if there is any."""
        self._frames.append((began_ms, frame))
        oldest = max((began_ms if speech_began_ms is None else speech_began_ms) - PAD_MS, began_ms - _MOST_MS)
        while self._frames[0][0] < oldest:
            self._frames.popleft()

    def take(self) -> list[Frame]:
        """All of it, which is then forgotten."""
        frames = [frame for _, frame in self._frames]
        self._frames.clear()
        return frames
