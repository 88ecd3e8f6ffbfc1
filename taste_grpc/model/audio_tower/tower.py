"""Speech and its text to one quantised vector per word."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taste_grpc.errors import InvalidInputError
from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.audio_tower.config import PREFIX_IDS, AudioTowerConfig
from taste_grpc.model.audio_tower.encoder import AudioEncoder, EncoderStates
from taste_grpc.model.audio_tower.pieces import Pieces, drain
from taste_grpc.model.audio_tower.pooling_decoder import PoolingDecoder, PoolingDecoderConfig
from taste_grpc.model.audio_tower.rvq import ResidualVQ, VectorQuantizer
from taste_grpc.model.audio_tower.word_average import average_words
from taste_grpc.model.text.whisper_ids import WhisperSpecialIds

__all__ = ["AudioTower", "AudioTowerConfig", "AudioTowerOutput", "WhisperSpecialIds"]

_PADDING_ID = 0


@dataclass(frozen=True)
class AudioTowerOutput:
    """What the tower makes of an utterance; S is the number of tokens, D the width.

    Attributes:
        audio_unit_embeds: `[B, S, D]` the quantised vectors, padding included (it is not zero there).
        audio_unit_lengths: `[B]` valid rows.
        quantized_indices: `[B, S, Q]` int64 codes, -1 on padding; tokens of one word share theirs.
        decoder_input_ids: `[B, S + 5]` what the decoder read.
        states: the encoder's two views of the audio.
        decoder_last_hidden: `[B, S + 5, D]`.
        word_averaged: `[B, S + 1, D]`, the row of the end of the text still there.
        projected: `[B, S, codebook_dim]` what was looked up in the tables.
    """

    audio_unit_embeds: Tensor
    audio_unit_lengths: Tensor
    quantized_indices: Tensor
    decoder_input_ids: Tensor
    states: EncoderStates
    decoder_last_hidden: Tensor
    word_averaged: Tensor
    projected: Tensor


class _Segmenter(nn.Module):
    def __init__(self, config: PoolingDecoderConfig) -> None:
        super().__init__()
        self.decoder = PoolingDecoder(config)


class JointEncoderSegmenter(nn.Module):
    """Encoder and pooling decoder under their published names."""

    def __init__(self, config: AudioTowerConfig) -> None:
        super().__init__()
        self.audio_encoder = AudioEncoder(config.whisper, config.value_layer, config.decoder.attn_implementation)
        self.audio_segmenter = _Segmenter(config.decoder)


class AudioTower(nn.Module):
    """Encoder, pooling decoder, word averaging and quantiser."""

    def __init__(self, config: AudioTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.audio_joint_encoder_segmenter = JointEncoderSegmenter(config)
        self.vq = VectorQuantizer(config.quantizer)

    @property
    def rvq(self) -> ResidualVQ:
        """The quantiser itself."""
        return self.vq.rvq

    def forward(
        self,
        audio_features: Tensor,
        audio_feature_lengths: Tensor,
        asr_token_ids: Tensor,
        asr_token_lengths: Tensor,
        asr_word_ids: Tensor,
        special_ids: WhisperSpecialIds,
        abort: AbortCheck = never_abort,
    ) -> AudioTowerOutput:
        """`in_pieces`, each layer whole, all at once."""
        return drain(
            self.in_pieces(
                audio_features,
                audio_feature_lengths,
                asr_token_ids,
                asr_token_lengths,
                asr_word_ids,
                special_ids,
                abort=abort,
            )
        )

    def in_pieces(
        self,
        audio_features: Tensor,
        audio_feature_lengths: Tensor,
        asr_token_ids: Tensor,
        asr_token_lengths: Tensor,
        asr_word_ids: Tensor,
        special_ids: WhisperSpecialIds,
        *,
        rows: int | None = None,
        abort: AbortCheck = never_abort,
    ) -> Pieces[AudioTowerOutput]:
        """Quantise the speech of each word.

        Args:
            audio_features: `[B, F, bins]` log-mel, F at most 3000; the rest is taken as zeros.
            audio_feature_lengths: `[B]` frames that stand for audio, at most F. Frames beyond are
                attended to all the same, as in the published model.
            asr_token_ids: `[B, S]` the text in the recogniser's tokens, padded at the end.
            asr_token_lengths: `[B]` tokens of each row, at most S.
            asr_word_ids: `[B, S]` the word each token belongs to, from 0; padded with 0.
            special_ids: of the recogniser's tokenizer.
            rows: a piece is one layer for at most so many of the 1500 rows of each clip; None takes them all.
            abort: called before each piece.

        Raises:
            InvalidInputError: names the argument with a wrong shape, too many frames or tokens,
                or an id outside the vocabulary.
        """
        self._check(audio_features, audio_feature_lengths, asr_token_ids, asr_token_lengths, asr_word_ids)
        joint = self.audio_joint_encoder_segmenter
        device = joint.audio_segmenter.decoder.embed_tokens.weight.device
        token_ids, lengths, words = (
            given.to(device) for given in (asr_token_ids.long(), asr_token_lengths, asr_word_ids)
        )
        decoder_input_ids = _decoder_input(token_ids, lengths, special_ids)
        states = yield from joint.audio_encoder.in_pieces(audio_features.to(device), rows=rows, abort=abort)
        hidden = yield from joint.audio_segmenter.decoder.in_pieces(decoder_input_ids, states, rows=rows, abort=abort)
        word_averaged = average_words(hidden[:, PREFIX_IDS:], words, lengths + 1)
        mask = torch.arange(token_ids.shape[1], device=device) < lengths[:, None]
        quantized = yield from self.rvq.in_pieces(word_averaged[:, :-1], mask, rows=rows, abort=abort)
        return AudioTowerOutput(
            audio_unit_embeds=quantized.quantized,
            audio_unit_lengths=lengths,
            quantized_indices=quantized.indices,
            decoder_input_ids=decoder_input_ids,
            states=states,
            decoder_last_hidden=hidden,
            word_averaged=word_averaged,
            projected=quantized.projected,
        )

    def _check(
        self, features: Tensor, feature_lengths: Tensor, token_ids: Tensor, token_lengths: Tensor, word_ids: Tensor
    ) -> None:
        _expect_dims("audio_features", features, 3, "[B, F, bins]")
        _expect_dims("asr_token_ids", token_ids, 2, "[B, S]")
        batch, tokens = token_ids.shape
        if features.shape[0] != batch:
            raise InvalidInputError("audio_features", f"has {features.shape[0]} rows, asr_token_ids has {batch}")
        if word_ids.shape != token_ids.shape:
            raise InvalidInputError(
                "asr_word_ids", f"has shape {tuple(word_ids.shape)}, asr_token_ids {tuple(token_ids.shape)}"
            )
        limit = self.config.decoder.max_positions - PREFIX_IDS - 1
        if tokens > limit:
            raise InvalidInputError("asr_token_ids", f"has {tokens} tokens; at most {limit} are allowed")
        _expect_lengths("audio_feature_lengths", feature_lengths, batch, features.shape[1])
        _expect_lengths("asr_token_lengths", token_lengths, batch, tokens)
        vocabulary = self.config.decoder.vocab_size
        outside = token_ids[(token_ids < 0) | (token_ids >= vocabulary)]
        if outside.numel():
            raise InvalidInputError(
                "asr_token_ids", f"contains {int(outside[0])}; ids from 0 to {vocabulary - 1} are allowed"
            )


def _expect_dims(name: str, tensor: Tensor, dims: int, shape: str) -> None:
    if tensor.dim() != dims:
        raise InvalidInputError(name, f"has shape {tuple(tensor.shape)}; {shape} expected")


def _expect_lengths(name: str, lengths: Tensor, batch: int, limit: int) -> None:
    if lengths.shape != (batch,):
        raise InvalidInputError(name, f"has shape {tuple(lengths.shape)}; [{batch}] expected")
    outside = lengths[(lengths < 0) | (lengths > limit)]
    if outside.numel():
        raise InvalidInputError(name, f"contains {int(outside[0])}; 0 to {limit} expected")


def _decoder_input(token_ids: Tensor, lengths: Tensor, special_ids: WhisperSpecialIds) -> Tensor:
    """Prefix, tokens, end: `[B, S + 5]`. The end stands after the padding of short rows, where nothing looks."""
    batch, tokens = token_ids.shape
    padding = torch.arange(tokens, device=token_ids.device) >= lengths[:, None]
    prefix = token_ids.new_tensor(special_ids.prefix).expand(batch, PREFIX_IDS)
    end = token_ids.new_full((batch, 1), special_ids.end)
    return torch.cat([prefix, token_ids.masked_fill(padding, _PADDING_ID), end], dim=1)
