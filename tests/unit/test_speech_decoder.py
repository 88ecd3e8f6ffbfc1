"""The speech decoder: prompts, slots, length rule, resuming."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from taste_grpc.errors import CallAbortedError, CheckpointError, InvalidInputError
from taste_grpc.model.layers.shapes import PieceSize
from taste_grpc.model.speech_decoder.decoder import SpeechDecoder, SpeechDecoderConfig, length_rule
from taste_grpc.model.speech_decoder.prompt_building import PromptBuilding
from taste_grpc.model.speech_decoder.taste_rows import audio_unit_embeds
from taste_grpc.model.speech_decoder.unit_reading import UnitReading
from taste_grpc.model.speech_decoder.unit_sampler import UnitSampler

PUBLISHED: dict[str, Any] = {
    "audio_encoder_input_size": 1280,
    "encoder__attention_heads": 8,
    "encoder__input_layer": "linear",
    "encoder__linear_units": 2048,
    "encoder__num_blocks": 3,
    "encoder__static_chunk_size": 1,
    "encoder_input_size": 512,
    "llm__attention_heads": 8,
    "llm__input_layer": "linear_legacy",
    "llm__linear_units": 2048,
    "llm__num_blocks": 7,
    "llm__static_chunk_size": 1,
    "llm_input_size": 1024,
    "llm_output_size": 1024,
    "speech_token_size": 4096,
    "spk_embed_dim": 192,
    "text_token_size": 51866,
}
TINY = PUBLISHED | {
    "audio_encoder_input_size": 12,
    "encoder__attention_heads": 2,
    "encoder__linear_units": 20,
    "encoder__num_blocks": 1,
    "encoder_input_size": 6,
    "llm__attention_heads": 2,
    "llm__linear_units": 24,
    "llm__num_blocks": 2,
    "llm_input_size": 16,
    "llm_output_size": 16,
    "speech_token_size": 40,
    "spk_embed_dim": 5,
    "text_token_size": 30,
}


@pytest.fixture(scope="module")
def decoder() -> SpeechDecoder:
    torch.manual_seed(3)
    return SpeechDecoder(SpeechDecoderConfig.from_published({"speech_decoder_config": TINY}, None)).eval()


def prompt_of(decoder: SpeechDecoder, tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([tokens])
    return decoder.build_prompt(
        torch.randn(1, 5, generator=generator),
        torch.randn(1, tokens, 12, generator=generator),
        lengths,
        torch.randint(0, 30, (1, tokens), generator=generator),
        lengths,
    )[0]


def with_end_of_speech_bias(bias: float) -> SpeechDecoder:
    torch.manual_seed(3)
    decoder = SpeechDecoder(SpeechDecoderConfig.from_published({"speech_decoder_config": TINY}, None)).eval()
    with torch.no_grad():
        decoder.llm_decoder.bias[decoder.end_of_speech] = bias
    return decoder


def test_the_published_size_has_the_published_tensors() -> None:
    with torch.device("meta"):
        decoder = SpeechDecoder(SpeechDecoderConfig.from_published({"speech_decoder_config": PUBLISHED}, None))
    shapes = {name: tuple(value.shape) for name, value in decoder.state_dict().items()}

    def total(prefix: str) -> int:
        return sum(torch.Size(shape).numel() for name, shape in shapes.items() if name.startswith(prefix))

    assert total("text_e") == 56_485_888
    assert total("audio_") == 21_135_872
    assert total("llm") == 71_408_641
    assert total("sp") == 4_391_936
    assert total("fuse") == 2
    assert shapes["text_encoder.encoders.2.norm_ff.bias"] == (1024,)
    assert shapes["llm.encoders.6.norm2.weight"] == (1024,)
    assert shapes["llm.encoders.0.self_attn.pos_bias_u"] == (8, 128)
    assert shapes["audio_embed_affine_layer.weight"] == (512, 1280)
    assert shapes["llm_decoder.weight"] == (4097, 1024)
    stored = {f"speech_decoder.{name}": shape for name, shape in shapes.items()}
    read = SpeechDecoderConfig.from_published({"speech_decoder_config": PUBLISHED}, stored)
    assert read == decoder.config


def test_a_configuration_that_contradicts_the_tensors_names_both(decoder: SpeechDecoder) -> None:
    stored = {f"speech_decoder.{name}": tuple(value.shape) for name, value in decoder.state_dict().items()}
    config = {"speech_decoder_config": TINY | {"llm__attention_heads": 4}}
    with pytest.raises(CheckpointError, match=r"llm__attention_heads = 4, but .*llm\.encoders\.0.*pos_bias_u"):
        SpeechDecoderConfig.from_published(config, stored)
    with pytest.raises(CheckpointError, match="encoder__use_cnn_module = True; only False is supported"):
        SpeechDecoderConfig.from_published({"speech_decoder_config": TINY | {"encoder__use_cnn_module": True}}, stored)


def test_a_batch_of_prompts_is_each_prompt_padded_with_minus_one(decoder: SpeechDecoder) -> None:
    speakers, embeds = torch.randn(2, 5), torch.randn(2, 6, 12)
    ids, lengths = torch.randint(0, 30, (2, 6)), torch.tensor([6, 4])
    prompts, rows = decoder.build_prompt(speakers, embeds, lengths, ids, lengths)
    assert rows.tolist() == [9, 7]
    assert prompts.shape == (2, 9, 16)
    assert (prompts[1, 7:] == -1).all()
    alone, _ = decoder.build_prompt(speakers[1:], embeds[1:, :4], lengths[1:], ids[1:, :4], lengths[1:])
    torch.testing.assert_close(prompts[1:, :7], alone)
    torch.testing.assert_close(prompts[0, 0], decoder.llm_embedding.weight[0])
    torch.testing.assert_close(prompts[0, 8], decoder.llm_embedding.weight[1])


def test_a_prompt_is_built_layer_by_layer(decoder: SpeechDecoder) -> None:
    lengths = torch.tensor([5])
    inputs = (torch.randn(1, 5), torch.randn(1, 5, 12), lengths, torch.randint(0, 30, (1, 5)), lengths)
    building = PromptBuilding(decoder, *inputs)
    counts = []

    def counted() -> None:
        counts.append(1)

    pieces = 1
    while not building.advance(1, counted):
        assert len(counts) == pieces
        pieces += 1
    # one layer of text, two of audio
    assert pieces == len(counts) == 3
    assert torch.equal(building.prompt[0], decoder.build_prompt(*inputs)[0])


def test_rows_are_read_in_pieces_of_rows_and_layers(decoder: SpeechDecoder) -> None:
    prompt = prompt_of(decoder, 9)[0]
    wanted = decoder.prefill(prompt[None], [12], decoder.new_cache(1, 20), [0])
    cache = decoder.new_cache(2, 20)
    reading = UnitReading(decoder, prompt, cache, 1, PieceSize(rows=5, layers=1))
    lengths = []
    while not reading.advance():
        lengths.append(cache.lengths[1])
        with pytest.raises(RuntimeError, match="not been read to their end"):
            _ = reading.log_probs
    assert lengths == [0, 5, 5, 10, 10]
    assert reading.advance()
    torch.testing.assert_close(reading.log_probs, wanted, atol=1e-5, rtol=1e-5)


def test_a_prompt_needs_one_audio_row_per_token(decoder: SpeechDecoder) -> None:
    with pytest.raises(InvalidInputError, match="audio_unit_lengths"):
        decoder.build_prompt(
            torch.randn(1, 5), torch.randn(1, 3, 12), torch.tensor([3]), torch.zeros(1, 4).long(), torch.tensor([4])
        )
    with pytest.raises(InvalidInputError, match="asr_token_ids: 30 is not below 30"):
        decoder.encode_words(torch.randn(1, 1, 12), torch.tensor([1]), torch.tensor([[30]]), torch.tensor([1]))


def test_steps_over_slots_equal_steps_of_one_slot(decoder: SpeechDecoder) -> None:
    prompts = {5: prompt_of(decoder, 3, 1), 1: prompt_of(decoder, 7, 2), 2: prompt_of(decoder, 5, 3)}
    units = {slot: torch.randint(0, 40, (6,)).tolist() for slot in prompts}
    wanted = {}
    for slot, prompt in prompts.items():
        cache = decoder.new_cache(1, 40)
        rows = [decoder.prefill(prompt, [prompt.shape[1]], cache, [0])]
        rows += [decoder.step(torch.tensor([unit]), cache, [0]) for unit in units[slot]]
        wanted[slot] = torch.cat(rows)
    cache, slots = decoder.new_cache(6, 40), list(prompts)
    lengths = [prompts[slot].shape[1] for slot in slots]
    padded = torch.full((3, max(lengths), 16), -1.0)
    for row, slot in enumerate(slots):
        padded[row, : lengths[row]] = prompts[slot]
    got = [decoder.prefill(padded, lengths, cache, slots)]
    got += [decoder.step(torch.tensor([units[slot][i] for slot in slots]), cache, slots) for i in range(6)]
    for row, slot in enumerate(slots):
        torch.testing.assert_close(torch.stack([step[row] for step in got]), wanted[slot], atol=1e-5, rtol=1e-5)


def test_cached_steps_equal_a_full_pass(decoder: SpeechDecoder) -> None:
    prompt, units = prompt_of(decoder, 4), [3, 17, 0, 39]
    full = decoder.log_probs(decoder.llm(torch.cat([prompt, decoder.embed_units(units)[None]], 1)))[0, -5:]
    cache = decoder.new_cache(1, 20)
    steps = [decoder.prefill(prompt, [7], cache, [0])] + [decoder.step(torch.tensor([u]), cache, [0]) for u in units]
    torch.testing.assert_close(torch.cat(steps), full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampler", [UnitSampler(seed=11), UnitSampler(greedy=True)])
def test_a_resumed_run_goes_on_as_if_never_interrupted(sampler: UnitSampler) -> None:
    decoder = with_end_of_speech_bias(1.0)
    prompt = prompt_of(decoder, 4)
    whole = list(decoder.decode_units(prompt, sampler))
    assert len(whole) >= 14
    for cut in (1, 9, len(whole) - 1):
        resumed = list(decoder.decode_units(prompt, sampler, previous_units=whole[:cut]))
        assert whole[:cut] + resumed == whole


def test_a_shared_cache_slot_changes_nothing(decoder: SpeechDecoder) -> None:
    prompt, sampler = prompt_of(decoder, 3), UnitSampler(seed=2)
    wanted = list(islice(decoder.decode_units(prompt, sampler), 20))
    cache = decoder.new_cache(3, 200)
    decoder.prefill(prompt_of(decoder, 9), [12], cache, [1])
    assert list(islice(decoder.decode_units(prompt, sampler, cache=cache, slot=1), 20)) == wanted


def test_the_index_of_a_unit_in_its_stream_picks_its_numbers(decoder: SpeechDecoder) -> None:
    prompt = prompt_of(decoder, 3)

    def run(first_index: int) -> list[int]:
        return list(islice(decoder.decode_units(prompt, UnitSampler(seed=2), first_index=first_index), 12))

    assert run(0) != run(500)


def test_end_of_speech_is_rejected_below_the_least_length() -> None:
    prompt_rows = 7
    least, most = length_rule(prompt_rows)
    assert (least, most) == (14, 140)
    for bias in (6.0, 1000.0):  # likely; the only one with any probability
        decoder = with_end_of_speech_bias(bias)
        for sampler in (UnitSampler(seed=1), UnitSampler(greedy=True)):
            units = list(decoder.decode_units(prompt_of(decoder, 4), sampler))
            assert len(units) == least
            assert decoder.end_of_speech not in units


def test_the_least_length_counts_units_of_this_prompt_wherever_the_stream_stands() -> None:
    decoder = with_end_of_speech_bias(1000.0)
    units = list(decoder.decode_units(prompt_of(decoder, 4), UnitSampler(), previous_units=[1, 2], first_index=500))
    assert len(units) == length_rule(7)[0] - 2


def test_when_only_end_of_speech_is_probable_the_best_other_unit_is_taken() -> None:
    certain = with_end_of_speech_bias(1000.0)
    prompt = prompt_of(certain, 4)
    assert list(certain.decode_units(prompt, UnitSampler(seed=1))) == list(
        certain.decode_units(prompt, UnitSampler(greedy=True))
    )


def test_a_run_ends_at_the_greatest_length_previous_units_included() -> None:
    decoder = with_end_of_speech_bias(-1000.0)
    prompt = prompt_of(decoder, 1)
    units = list(decoder.decode_units(prompt, UnitSampler(seed=1)))
    assert len(units) == 80
    assert list(decoder.decode_units(prompt, UnitSampler(seed=1), previous_units=units)) == []
    assert len(list(decoder.decode_units(prompt, UnitSampler(seed=1), previous_units=units[:50]))) == 30


def test_abort_stops_between_units(decoder: SpeechDecoder) -> None:
    wanted = True

    def abort() -> None:
        if not wanted:
            raise CallAbortedError("stop")

    run = decoder.decode_units(prompt_of(decoder, 4), UnitSampler(), abort=abort)
    next(run)
    wanted = False
    with pytest.raises(CallAbortedError):
        next(run)


def test_previous_units_out_of_range_are_named(decoder: SpeechDecoder) -> None:
    with pytest.raises(InvalidInputError, match=r"prev_speech_ids: 40 is not a speech unit \(0 to 39\)"):
        list(decoder.decode_units(prompt_of(decoder, 2), UnitSampler(), previous_units=[1, 40]))


def test_a_words_row_stands_at_each_of_its_tokens_and_padding_is_zero() -> None:
    rows = torch.tensor([[[1, 2], [-1, -1], [3, 4], [-1, -1]], [[5, 6], [-1, -1], [-1, -1], [-1, -1]]])
    words = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])
    embeds, lengths = audio_unit_embeds(rows, words, torch.tensor([5, 2]), lambda i: i.float() + 100)
    assert lengths.tolist() == [5, 2]
    assert embeds[0, :, 0].tolist() == [101, 101, 103, 103, 103]
    assert embeds[1].tolist() == [[105, 106], [105, 106], [0, 0], [0, 0], [0, 0]]


def test_as_many_rows_as_words_are_needed() -> None:
    with pytest.raises(InvalidInputError, match="taste_ids: 2 rows of codes for 1 words"):
        audio_unit_embeds(torch.ones(1, 2, 4).long(), torch.zeros(1, 3).long(), torch.tensor([3]), lambda i: i.float())
