"""Stages of the front ends, the audio tower, the quantiser and the speaker encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from taste_grpc.audio import kaldi_fbank, log_mel, mel_filters, remove_mean
from taste_grpc.model.audio_tower.rvq import QuantizerOutput
from taste_grpc.model.audio_tower.tower import AudioTowerOutput
from taste_grpc.model.audio_tower.transfer import transfer_codes, word_start_mapping
from taste_grpc.model.audio_tower.word_average import average_words
from taste_grpc.model.parity.stage import StageFunction, StageInput
from taste_grpc.model.speaker import SpeakerEncoder


def _mel_filters(stage: StageInput) -> Tensor:
    params = stage.params
    filters = mel_filters(int(params["n_mels"]), int(params["n_fft"]), int(params["sample_rate_hz"]))
    return torch.from_numpy(filters.copy())


def _recorded_head(stage: StageInput) -> tuple[int, int]:
    """(frames, bins) of the recorded first frames of this clip; their constant tail is recorded apart."""
    output = stage.output
    for other in stage.goldens.outputs():
        same_run = (other.file, other.case, other.stage) == (output.file, output.case, output.stage)
        if same_run and len(other.entry["shape"]) == 3:
            return int(other.entry["shape"][1]), int(other.entry["shape"][2])
    raise LookupError(f"{output.file} records no first frames for {output.case}")


def _log_mel(stage: StageInput) -> Tensor:
    frames, bins = _recorded_head(stage)
    features = stage.once("log_mel", lambda: log_mel(stage.arg("waveform").numpy(), bins).features)
    if len(stage.output.entry["shape"]) == 3:
        return torch.from_numpy(features[None, :frames])
    # One number stands for all later values, so hold the worst of them against it.
    tail = torch.from_numpy(features[frames:]).reshape(-1)
    recorded = stage.goldens.tensor(f"{stage.output.file}:{stage.output.name}")
    return tail[(tail - recorded).abs().argmax()].reshape(1)


def _feature_length(stage: StageInput) -> Tensor:
    return torch.tensor([log_mel(stage.arg("waveform").numpy()).frames])


def _tower(stage: StageInput) -> AudioTowerOutput:
    def compute() -> AudioTowerOutput:
        output: AudioTowerOutput = stage.checkpoint.model.audio_tower(
            stage.arg("audio_features"),
            stage.arg("audio_feature_lengths"),
            stage.arg("asr_token_ids"),
            stage.arg("asr_token_lengths"),
            stage.arg("asr_word_ids"),
            stage.checkpoint.processor.whisper_special_ids,
        )
        return output

    return stage.once("audio_tower", compute)


def _of_tower(read: Callable[[AudioTowerOutput], Tensor]) -> StageFunction:
    return lambda stage: read(_tower(stage))


def _quantized(stage: StageInput) -> QuantizerOutput:
    def compute() -> QuantizerOutput:
        output: QuantizerOutput = stage.checkpoint.model.audio_tower.rvq(stage.arg("x"), stage.arg("mask"))
        return output

    return stage.once("rvq", compute)


def _word_averaged(stage: StageInput) -> Tensor:
    return average_words(stage.arg("features"), stage.arg("word_ids"), stage.arg("token_lengths_incl_eos"))


def _llm_indices(stage: StageInput) -> Tensor:
    mapping = word_start_mapping(
        stage.arg("asr_word_ids"),
        stage.arg("llm_word_ids"),
        stage.arg("asr_token_lengths"),
        stage.arg("llm_token_lengths"),
    )
    return transfer_codes(_tower(stage).quantized_indices, mapping)


def _word_start_mapping(stage: StageInput) -> Tensor:
    return word_start_mapping(
        stage.arg("source_word_ids"),
        stage.arg("target_word_ids"),
        stage.arg("source_lengths"),
        stage.arg("target_lengths"),
    ).float()


def _fbank(stage: StageInput) -> Tensor:
    return torch.from_numpy(kaldi_fbank(stage.arg("waveform").numpy()))


def _fbank_mean_removed(stage: StageInput) -> Tensor:
    return torch.from_numpy(remove_mean(kaldi_fbank(stage.arg("waveform").numpy())))


def _speaker_encoder(stage: StageInput) -> SpeakerEncoder:
    encoder: SpeakerEncoder = stage.checkpoint.processor.speaker_encoder
    return encoder


def _onnx_output(stage: StageInput) -> Tensor:
    return torch.from_numpy(_speaker_encoder(stage).raw_embedding(stage.arg("fbank_mean_removed").numpy()))


def _speaker_embed(stage: StageInput) -> Tensor:
    clips = [waveform.numpy() for waveform in stage.arg("waveforms")]
    return torch.from_numpy(_speaker_encoder(stage).embed(clips))


STAGES: dict[str, StageFunction] = {
    "frontend.mel_filters": _mel_filters,
    "frontend.log_mel": _log_mel,
    "frontend.length": _feature_length,
    "audio_tower.decoder_input_ids": _of_tower(lambda output: output.decoder_input_ids),
    "audio_tower.states_for_key": _of_tower(lambda output: output.states.for_key),
    "audio_tower.states_for_val": _of_tower(lambda output: output.states.for_value),
    "audio_tower.decoder_last_hidden": _of_tower(lambda output: output.decoder_last_hidden),
    "audio_tower.word_averaged": _of_tower(lambda output: output.word_averaged),
    "audio_tower.word_averaged_lengths": _of_tower(lambda output: output.audio_unit_lengths + 1),
    "audio_tower.vq_mask": _of_tower(lambda output: output.quantized_indices[..., 0] >= 0),
    "audio_tower.rvq_project_in": _of_tower(lambda output: output.projected),
    "audio_tower.audio_unit_embeds": _of_tower(lambda output: output.audio_unit_embeds),
    "audio_tower.audio_unit_lengths": _of_tower(lambda output: output.audio_unit_lengths),
    "audio_tower.quantized_indices": _of_tower(lambda output: output.quantized_indices),
    "rvq.quantized": lambda stage: _quantized(stage).quantized,
    "rvq.indices": lambda stage: _quantized(stage).indices,
    "rvq.indices_from_code": lambda stage: stage.checkpoint.model.audio_tower.rvq.indices_from_code(stage.arg("code")),
    "rvq.output_from_indices": lambda stage: stage.checkpoint.model.audio_tower.rvq.output_from_indices(
        stage.arg("indices")
    ),
    "rvq.code_from_indices": lambda stage: stage.checkpoint.model.audio_tower.rvq.code_from_indices(
        stage.arg("indices")
    ),
    "word_average.averaged": _word_averaged,
    "tokenize.asr_indices": _of_tower(lambda output: output.quantized_indices),
    "tokenize.llm_indices": _llm_indices,
    "tokenize.word_start_mapping": _word_start_mapping,
    "speaker.fbank": _fbank,
    "speaker.fbank_mean_removed": _fbank_mean_removed,
    "speaker.onnx_output": _onnx_output,
    "speaker.embed": _speaker_embed,
}
