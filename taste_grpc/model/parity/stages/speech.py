"""Stages of the speech decoder, of detokenizing, the flow and the vocoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from taste_grpc.model.parity.stage import StageFunction, StageInput
from taste_grpc.model.speech_decoder.decoder import SpeechDecoder, length_rule
from taste_grpc.model.speech_decoder.taste_rows import NO_CODE, audio_unit_embeds
from taste_grpc.model.speech_decoder.unit_sampler import candidates, draw
from taste_grpc.model.voice_generator.flow import FlowMatching
from taste_grpc.model.voice_generator.hift import HiftVocoder


def _decoder(stage: StageInput) -> SpeechDecoder:
    return stage.checkpoint.model.speech_decoder


def _flow(stage: StageInput) -> FlowMatching:
    return stage.checkpoint.voice_generator.flow


def _hift(stage: StageInput) -> HiftVocoder:
    return stage.checkpoint.voice_generator.hift


# speech decoder: prompt


def _fixed_rows(stage: StageInput) -> Tensor:
    row = 0 if "sos" in stage.output.name else 1
    return _decoder(stage).llm_embedding.weight[row].reshape(1, 1, -1)


def _encoded(run: str, affine: str, name: str) -> StageFunction:
    def stage_function(stage: StageInput) -> Tensor:
        decoder = _decoder(stage)
        rows = getattr(decoder, run)(stage.arg(name))
        rows.advance()
        encoded: Tensor = getattr(decoder, affine)(rows.out)
        return encoded

    return stage_function


def _words(stage: StageInput) -> Tensor:
    arguments = ("audio_unit_embeds", "audio_unit_lengths", "asr_token_ids", "asr_token_lengths")
    return _decoder(stage).encode_words(*(stage.arg(name) for name in arguments))[0]


def _prompt(stage: StageInput) -> tuple[Tensor, Tensor]:
    arguments = ("speaker_embeds", "audio_unit_embeds", "audio_unit_lengths", "asr_token_ids", "asr_token_lengths")
    return _decoder(stage).build_prompt(*(stage.arg(name) for name in arguments))


def _prompt_lengths(stage: StageInput) -> Tensor:
    decoder, lengths = _decoder(stage), stage.arg("asr_token_lengths").reshape(-1)
    width, rows = int(lengths.max()), len(lengths)
    return decoder.build_prompt(
        torch.zeros(rows, decoder.config.speaker_size),
        torch.zeros(rows, width, decoder.config.audio_width),
        lengths,
        torch.zeros(rows, width, dtype=torch.long),
        lengths,
    )[1]


def _length_limit(which: int) -> StageFunction:
    def stage_function(stage: StageInput) -> Tensor:
        rows = stage.arg("lm_input_len").reshape(-1).tolist()
        return torch.tensor([length_rule(int(count))[which] for count in rows])

    return stage_function


# speech decoder: units


def _prefill_hidden(stage: StageInput) -> Tensor:
    decoder, rows = _decoder(stage), stage.arg("lm_input")
    return decoder.llm.prefill(rows, [rows.shape[1]], decoder.new_cache(1, rows.shape[1]), [0])


def _cache(stage: StageInput) -> Tensor:
    decoder, rows = _decoder(stage), stage.arg("lm_input")
    cache = decoder.new_cache(1, rows.shape[1])
    decoder.llm.prefill(rows, [rows.shape[1]], cache, [0])
    return torch.cat([cache.keys, cache.values], dim=-1)[:, 0, :, : rows.shape[1]]


def _steps_hidden(stage: StageInput) -> Tensor:
    def compute() -> Tensor:
        decoder, rows = _decoder(stage), stage.arg("lm_input")
        units = stage.arg("forced_speech_tokens").reshape(-1)
        cache = decoder.new_cache(1, rows.shape[1] + len(units))
        hidden = [decoder.llm.prefill(rows, [rows.shape[1]], cache, [0])[:, -1]]
        hidden += [decoder.llm.step(decoder.speech_embedding(unit[None]), cache, [0]) for unit in units]
        return torch.cat(hidden)

    return stage.once("steps", compute)


def _teacher_forced_logits(stage: StageInput) -> Tensor:
    decoder = _decoder(stage)
    prompt, _ = _prompt(stage)
    units = decoder.embed_units(stage.arg("forced_speech_tokens").reshape(-1).tolist())
    logits: Tensor = decoder.llm_decoder(decoder.llm(torch.cat([prompt, units[None]], dim=1)))
    return logits


def _pick(log_probs: Tensor, uniforms: Iterator[float], stage: StageInput, *, reject: bool) -> int:
    probabilities, ids = candidates(log_probs[None], int(stage.params["top_k"]))
    rejected = _decoder(stage).end_of_speech if reject else None
    return draw(probabilities[0].numpy(), ids[0].numpy(), uniforms, rejected=rejected)


def _sampling_picks(stage: StageInput) -> Tensor:
    uniforms = iter(stage.arg("uniforms").tolist())
    rows: Sequence[Tensor] = stage.arg("logp")
    return torch.tensor([_pick(row, uniforms, stage, reject=index % 2 == 1) for index, row in enumerate(rows)])


def _sampling_eos(stage: StageInput) -> Tensor:
    uniforms = iter(stage.arg("uniforms").tolist())
    row = stage.arg("logp").reshape(-1)
    return torch.tensor([_pick(row, uniforms, stage, reject=bool(stage.params["reject_eos"]))])


def _free_run(stage: StageInput) -> Tensor:
    decoder, uniforms = _decoder(stage), iter(stage.arg("uniforms").tolist())
    prompt, _ = _prompt(stage)
    rows = prompt.shape[1]
    least, most = int(stage.params["min_len_factor"]) * rows, int(stage.params["max_len_factor"]) * rows
    cache = decoder.new_cache(1, rows + most)
    log_probs = decoder.prefill(prompt, [rows], cache, [0])
    units: list[int] = []
    while len(units) < most:
        unit = _pick(log_probs[0], uniforms, stage, reject=len(units) < least)
        if unit == decoder.end_of_speech:
            break
        units.append(unit)
        log_probs = decoder.step(torch.tensor([unit]), cache, [0])
    return torch.tensor([units])


# detokenize


def _audio_unit_embeds(stage: StageInput) -> tuple[Tensor, Tensor]:
    if stage.has("llm_indices"):
        rows, kept = stage.arg("llm_indices"), None
    else:
        rows, kept = stage.arg("taste_ids"), stage.arg("taste_labels")[..., 0] != NO_CODE
    vq = stage.checkpoint.model.audio_tower.rvq
    return audio_unit_embeds(
        rows, stage.arg("asr_word_ids"), stage.arg("asr_token_lengths"), vq.output_from_indices, kept=kept
    )


# flow


def _mel_len(stage: StageInput) -> Tensor:
    return torch.tensor([_flow(stage).config.frames(stage.arg("speech_token_ids").shape[1])])


def _encoder_proj(stage: StageInput) -> Tensor:
    projected: Tensor = _flow(stage).encoder_proj(_flow(stage).encode_units(stage.arg("speech_token_ids")))
    return projected


def _times(stage: StageInput) -> Tensor:
    return torch.tensor([t for t, _ in _flow(stage).schedule()])


def _velocity(which: int) -> StageFunction:
    def stage_function(stage: StageInput) -> Tensor:
        arguments = (stage.arg("x"), stage.arg("mu_time_major"), stage.arg("spk"), float(stage.params["t"]))
        return stage.once("velocity", lambda: _flow(stage).velocity(*arguments))[which]

    return stage_function


def _states(stage: StageInput) -> list[Tensor]:
    def compute() -> list[Tensor]:
        flow = _flow(stage)
        mu, speaker = flow.mean(stage.arg("speech_token_ids")), flow.encode_speaker(stage.arg("embedding"))
        return list(flow.euler_steps(stage.arg("noise"), mu, speaker))

    return stage.once("states", compute)


def _state_after_steps(stage: StageInput) -> Tensor:
    return torch.cat([_states(stage)[int(step) - 1] for step in stage.params["steps"]])


# vocoder


def _randomness(stage: StageInput, kind: str, shape: tuple[int, ...]) -> Tensor:
    given: Tensor = stage.arg(kind) if stage.params.get(kind) == "given" else torch.zeros(shape)
    return given


def _source(stage: StageInput, f0: Tensor) -> Tensor:
    hift = _hift(stage)
    rows, sines, samples = f0.shape[0], hift.m_source.sines, f0.shape[1] * hift.config.samples_per_frame
    phases = _randomness(stage, "phase", (rows, sines, 1))
    noise = _randomness(stage, "noise", (rows, sines, samples))
    return hift.source(f0, phases=phases, noise=noise)[0]


def _source_given_f0(stage: StageInput) -> Tensor:
    return _source(stage, stage.arg("f0"))


def _up0(stage: StageInput) -> Tensor:
    hift = _hift(stage)
    out: Tensor = hift.ups[0](torch.nn.functional.leaky_relu(hift.conv_pre(stage.arg("mel")), hift.config.slope))
    return out


def _source_res0(stage: StageInput) -> Tensor:
    hift = _hift(stage)
    return hift.source_branch(0, hift.source_spectrum(stage.arg("source")))


def _waveform(stage: StageInput) -> Tensor:
    hift, mel = _hift(stage), stage.arg("mel")
    return hift.decode(mel, _source(stage, hift.f0(mel)))


def _of(part: Callable[[StageInput], Any], method: str, *names: str) -> StageFunction:
    def stage_function(stage: StageInput) -> Tensor:
        result: Tensor = getattr(part(stage), method)(*(stage.arg(name) for name in names))
        return result

    return stage_function


STAGES: dict[str, StageFunction] = {
    "speech_decoder.fixed_rows": _fixed_rows,
    "speech_decoder.speaker": _of(_decoder, "encode_speaker", "speaker_embeds"),
    "speech_decoder.text_encoded": _encoded("text_run", "text_encoder_affine_layer", "asr_token_ids"),
    "speech_decoder.audio_encoded": _encoded("audio_run", "audio_token_encoder_affine_layer", "audio_unit_embeds"),
    "speech_decoder.fused": _words,
    "speech_decoder.fused_lengths": lambda stage: _prompt_lengths(stage) - 3,
    "speech_decoder.lm_input": lambda stage: _prompt(stage)[0],
    "speech_decoder.lm_input_lengths": _prompt_lengths,
    "speech_decoder.min_len": _length_limit(0),
    "speech_decoder.max_len": _length_limit(1),
    "speech_decoder.prefill_hidden": _prefill_hidden,
    "speech_decoder.cache": _cache,
    "speech_decoder.steps_hidden": _steps_hidden,
    "speech_decoder.steps_logp": lambda stage: _decoder(stage).log_probs(_steps_hidden(stage)),
    "speech_decoder.teacher_forced_logits": _teacher_forced_logits,
    "speech_decoder.top25_probs": lambda stage: candidates(stage.arg("logp"), int(stage.params["top_k"]))[0],
    "speech_decoder.top25_ids": lambda stage: candidates(stage.arg("logp"), int(stage.params["top_k"]))[1],
    "speech_decoder.sampling_picks": _sampling_picks,
    "speech_decoder.sampling_eos": _sampling_eos,
    "speech_decoder.free_run": _free_run,
    "detokenize.audio_unit_embeds": lambda stage: _audio_unit_embeds(stage)[0],
    "detokenize.lengths": lambda stage: _audio_unit_embeds(stage)[1],
    "flow.speaker": _of(_flow, "encode_speaker", "embedding"),
    "flow.encoder_out": _of(_flow, "encode_units", "speech_token_ids"),
    "flow.encoder_proj": _encoder_proj,
    "flow.regulated": _of(_flow, "mean", "speech_token_ids"),
    "flow.mel_len": _mel_len,
    "flow.t": _times,
    "flow.velocity_cond": _velocity(0),
    "flow.velocity_uncond": _velocity(1),
    "flow.x_steps": _state_after_steps,
    "flow.mel": lambda stage: _states(stage)[-1],
    "vocoder.f0": _of(_hift, "f0", "mel"),
    "vocoder.voiced": lambda stage: _hift(stage).m_source.voiced(stage.arg("f0")).reshape(-1).float(),
    "vocoder.source": _source_given_f0,
    "vocoder.conv_pre": _of(_hift, "conv_pre", "mel"),
    "vocoder.up0": _up0,
    "vocoder.source_res0": _source_res0,
    "vocoder.conv_post": _of(_hift, "filter", "mel", "source"),
    "vocoder.waveform_given_source": _of(_hift, "decode", "mel", "source"),
    "vocoder.waveform": _waveform,
}
