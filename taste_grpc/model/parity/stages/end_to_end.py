"""Stages that run from the recorded features and ids to the waveform on their own results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from taste_grpc.model.parity.goldens import GoldenOutput, GoldenSet
from taste_grpc.model.parity.stage import Checkpoint, StageFunction, StageInput
from taste_grpc.model.speech_decoder.inputs import DecoderInputs

_TENSORS = (
    "llm_token_ids",
    "llm_token_lengths",
    "llm_word_ids",
    "asr_token_ids",
    "asr_token_lengths",
    "asr_word_ids",
    "audio_features",
    "audio_feature_lengths",
)
_SETTINGS = (
    "extra_words",
    "stop_id",
    "text_top_p",
    "taste_top_p",
    "text_temperature",
    "repetition_penalty",
    "out_generated_part_only",
)


def _outcome(stage: StageInput) -> dict[str, Any]:
    def compute() -> dict[str, Any]:
        model, processor, params = stage.checkpoint.model, stage.checkpoint.processor, stage.params
        tensors = {name: stage.arg(name) for name in _TENSORS if stage.has(name)}
        if params["mode"] == "reconstruction":
            through = params["through_spoken_lm"]
            return model.inference_reconstruction(
                stage.arg("speaker_embeds"), **tensors, through_spoken_lm=through, greedy_units=True
            )
        return model.inference_completion(
            stage.arg("speaker_embeds"),
            processor.text_tokenizer,
            processor.audio_tokenizer,
            params["mode"],
            **tensors,
            **{name: params[name] for name in _SETTINGS},
            greedy_units=True,
        )

    return stage.once("outcome", compute)


def _generated(stage: StageInput) -> Tensor:
    outcome = _outcome(stage)
    outputs: dict[str, Tensor] = {
        "llm_indices": outcome["llm_indices"],
        "llm_token_ids": outcome["llm_token_ids"],
        "llm_word_ids": outcome["llm_word_ids"],
        "llm_token_lengths": torch.tensor([[outcome["llm_token_ids"].shape[1]]]),
    }
    return outputs[stage.params["output"]]


def _decoder_input(stage: StageInput) -> Tensor:
    inputs: DecoderInputs = _outcome(stage)["decoder_inputs"]
    tensor: Tensor = getattr(inputs, stage.params["output"])
    return tensor


def _mel(stage: StageInput) -> Tensor:
    def compute() -> Tensor:
        units = _outcome(stage)["speech_token_ids"][:, : stage.params["first_speech_tokens"]]
        flow = stage.checkpoint.voice_generator.flow
        return flow.mel(units, stage.arg("speaker_embeds"), noise=stage.arg("flow_noise"))

    return stage.once("mel", compute)


def _waveform(stage: StageInput) -> Tensor:
    hift = stage.checkpoint.voice_generator.hift
    f0 = hift.f0(_mel(stage))
    sines, samples = hift.m_source.sines, f0.shape[1] * hift.config.samples_per_frame
    source, _ = hift.source(f0, phases=torch.zeros(1, sines, 1), noise=torch.zeros(1, sines, samples))
    return hift.decode(_mel(stage), source)


STAGES: dict[str, StageFunction] = {
    "end_to_end.generated": _generated,
    "end_to_end.decoder_inputs": _decoder_input,
    "end_to_end.speech_token_ids": lambda stage: _outcome(stage)["speech_token_ids"],
    "end_to_end.mel": _mel,
    "end_to_end.waveform": _waveform,
}


def _generated_text(goldens: GoldenSet, entry: dict[str, Any], checkpoint: Checkpoint) -> str:
    """The text of the run whose tensors carry the same case."""
    outputs: list[GoldenOutput] = [
        output
        for output in goldens.outputs()
        if output.stage == "end_to_end.generated" and output.case == entry["case"]
    ]
    text: str = _outcome(StageInput(goldens, outputs[0], checkpoint, {}))["generated_text"]
    return text


JSON_STAGES: dict[str, Callable[..., Any]] = {"end_to_end.generated_text": _generated_text}
