"""Who speaks: a vector of the voice in reference clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from taste_grpc.audio import kaldi_fbank, remove_mean
from taste_grpc.audio.waveform import Float32Array
from taste_grpc.errors import CheckpointError, InvalidInputError

SPEAKER_SAMPLE_RATE_HZ = 16_000
_FBANK_BINS = 80


class SpeakerEncoder:
    """The speaker network of a checkpoint, `cosyvoice/speaker_embed.onnx`.

    Args:
        path: the ONNX file: `[1, T, 80]` to `[1, 192]`.
        intra_op_threads: threads of one run.

    Raises CheckpointError when the file is absent, damaged or of another interface. May be
    called from any thread, several at a time.
    """

    def __init__(self, path: str | Path, *, intra_op_threads: int = 1) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise CheckpointError(f"{self.path} is missing")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = intra_op_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                self.path, sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises a class of its own for each way a file can be bad
            raise CheckpointError(f"{self.path} cannot be loaded: {error}") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        # A dimension that may have any size is a name or None.
        shapes = [[size if isinstance(size, int) else _FBANK_BINS for size in node.shape] for node in inputs]
        if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][2] != _FBANK_BINS:
            found = ", ".join(f"{node.name} {node.shape}" for node in inputs)
            raise CheckpointError(f"{self.path} takes {found}; one input [1, T, {_FBANK_BINS}] is expected")
        self._input: str = inputs[0].name
        self._output: str = outputs[0].name

    def embed(self, clips: Sequence[Float32Array]) -> Float32Array:
        """The voice of `clips`, each `[T]` float32 at 16 kHz: `[192]` float32 of length one.

        The network's outputs are averaged before their length is taken away. Raises
        InvalidInputError when there is no clip, or one is shorter than a frame (25 ms).
        """
        if not clips:
            raise InvalidInputError("clips", "is empty; at least one reference clip is needed")
        raw = np.concatenate([self.raw_embedding(remove_mean(kaldi_fbank(clip, _FBANK_BINS))) for clip in clips])
        mean = raw.mean(axis=0)
        return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), np.float32)

    def raw_embedding(self, features: Float32Array) -> Float32Array:
        """The network's output `[1, 192]` for features `[N, 80]` whose mean over time was removed."""
        batch = np.asarray(features, np.float32)[None]
        return np.asarray(self._session.run([self._output], {self._input: batch})[0], np.float32)
