"""Bytes to waveforms to features: decode, encode, resample, log-mel, filter bank.

Needs numpy, soxr and soundfile; no torch, so a server without the model can use it.
"""

from taste_grpc.audio.codec import (
    MAX_CHANNELS,
    MAX_CLIP_MS,
    MAX_SAMPLE_RATE_HZ,
    MIN_CLIP_MS,
    MIN_SAMPLE_RATE_HZ,
    Encoding,
    decode_clip,
    decode_pcm,
    encode_pcm,
    encode_wav,
    write_wav,
)
from taste_grpc.audio.fbank import kaldi_fbank, remove_mean
from taste_grpc.audio.mel import LogMel, log_mel, mel_filters
from taste_grpc.audio.resample import ResamplerState, StreamResampler, resample
from taste_grpc.audio.waveform import Waveform

__all__ = [
    "MAX_CHANNELS",
    "MAX_CLIP_MS",
    "MAX_SAMPLE_RATE_HZ",
    "MIN_CLIP_MS",
    "MIN_SAMPLE_RATE_HZ",
    "Encoding",
    "LogMel",
    "ResamplerState",
    "StreamResampler",
    "Waveform",
    "decode_clip",
    "decode_pcm",
    "encode_pcm",
    "encode_wav",
    "kaldi_fbank",
    "log_mel",
    "mel_filters",
    "remove_mean",
    "resample",
    "write_wav",
]
