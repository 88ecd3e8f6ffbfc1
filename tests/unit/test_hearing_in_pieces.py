"""Hearing in pieces: the same codes as in one go, no piece more than some rows of a layer, others in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from taste_grpc.errors import CallAbortedError, InvalidInputError
from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.audio_tower.config import AudioTowerConfig
from taste_grpc.model.audio_tower.pieces import Pieces, drain, row_spans
from taste_grpc.model.audio_tower.pooling_decoder import PoolingDecoderConfig
from taste_grpc.model.audio_tower.rvq import ResidualVQConfig
from taste_grpc.model.audio_tower.tower import AudioTower, AudioTowerOutput, WhisperSpecialIds
from taste_grpc.streaming import taste_tokenize
from taste_grpc.streaming.tokenize import tokenize_in_pieces
from taste_grpc.streaming.work import Turn, Work
from tests.conftest import Loaded

SPECIAL = WhisperSpecialIds(start=90, language=91, task=92, no_timestamps=93, end=94)
ROWS, LAYERS, VALUE_LAYER = 40, 5, 3
IDS, WORDS = [377, 487, 315, 13, 377], [0, 1, 1, 1, 2]  # " Hello", " wor", "ld", ".", " Hello"


def small_tower(kind: str = "sdpa", dtype: torch.dtype = torch.float32) -> AudioTower:
    """A tower of 40 rows whose attention looks at some of them more than at others."""
    torch.manual_seed(0)
    config = AudioTowerConfig(
        encoder_layers=LAYERS,
        encoder_heads=3,
        encoder_ffn_dim=40,
        n_mels=10,
        max_source_positions=ROWS,
        value_layer=VALUE_LAYER,
        decoder=PoolingDecoderConfig(24, 2, 3, 40, 100, 30, attn_implementation=kind),
        quantizer=ResidualVQConfig(24, 8, 16, 3),
    )
    tower = AudioTower(config).eval()
    for name, tensor in tower.state_dict().items():
        if tensor.dim() > 1 or name.endswith("bias"):
            tensor.normal_(std=0.3)
    tower.audio_joint_encoder_segmenter.to(dtype)
    return tower


def heard(
    tower: AudioTower, rows: int | None = None, abort: AbortCheck = never_abort, tokens: int = 12
) -> Pieces[AudioTowerOutput]:
    """Two clips, one of which has less text."""
    generator = torch.Generator().manual_seed(1)
    return tower.in_pieces(
        torch.randn(2, 2 * ROWS - 3, 10, generator=generator),
        torch.tensor([70, 60]),
        torch.randint(1, 90, (2, tokens), generator=generator),
        torch.tensor([tokens, tokens - 3]),
        torch.arange(tokens).expand(2, -1) // 2,
        SPECIAL,
        rows=rows,
        abort=abort,
    )


def off(found: Tensor, expected: Tensor) -> float:
    """The greatest difference, relative to the greatest number."""
    return float((found - expected).abs().max() / expected.abs().max())


# --- spans


@given(st.integers(0, 2000), st.integers(1, 2500))
def test_spans_cover_all_rows_in_order(count: int, rows: int) -> None:
    spans = row_spans(count, rows)
    assert [row for span in spans for row in range(span.start, span.stop)] == list(range(count))
    lengths = [span.stop - span.start for span in spans]
    assert max(lengths) <= rows
    assert max(lengths) - min(lengths) <= 1
    assert len(spans) == max(1, -(-count // rows))


def test_without_a_limit_there_is_one_span() -> None:
    assert row_spans(1500, None) == [slice(0, 1500)]
    assert row_spans(0, None) == row_spans(0, 7) == [slice(0, 0)]
    with pytest.raises(ValueError, match="rows is 0"):
        row_spans(5, 0)


# --- the same numbers


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", [1, 2, 7, 16, 39, 1000])
def test_pieces_agree_with_the_whole(kind: str, rows: int) -> None:
    tower = small_tower(kind)
    whole, pieced = drain(heard(tower)), drain(heard(tower, rows))
    assert pieced.quantized_indices.equal(whole.quantized_indices)
    assert len(whole.quantized_indices.unique(dim=1)[0]) > 3  # or it could not be told apart
    assert off(pieced.states.for_key, whole.states.for_key) < 1e-5
    assert off(pieced.states.for_value, whole.states.for_value) < 1e-5
    assert off(pieced.decoder_last_hidden, whole.decoder_last_hidden) < 1e-5
    assert off(pieced.word_averaged, whole.word_averaged) < 1e-5
    assert off(pieced.audio_unit_embeds, whole.audio_unit_embeds) < 1e-5
    assert pieced.decoder_input_ids.equal(whole.decoder_input_ids)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", [None, 7])
def test_the_encoder_is_that_of_transformers(kind: str, rows: int | None) -> None:
    tower = small_tower(kind)
    audio_encoder = tower.audio_joint_encoder_segmenter.audio_encoder
    features = torch.randn(2, 2 * ROWS, 10, generator=torch.Generator().manual_seed(2))
    entering: list[Tensor] = []
    tapped: Any = audio_encoder.encoder.layers[VALUE_LAYER]
    tapped.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    expected = audio_encoder.encoder(features.transpose(1, 2)).last_hidden_state
    states = drain(audio_encoder.in_pieces(features, rows=rows))
    assert off(states.for_key, expected) < 1e-5
    assert off(states.for_value, entering[0]) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("rows", [None, 7])
def test_the_tap_does_not_see_the_layers_behind_it(rows: int | None) -> None:
    tower = small_tower()
    before = drain(heard(tower, rows)).states
    layers: Any = tower.audio_joint_encoder_segmenter.audio_encoder.encoder.layers
    layers[VALUE_LAYER].fc2.weight.normal_()
    after = drain(heard(tower, rows)).states
    assert after.for_value.equal(before.for_value)
    assert not after.for_key.equal(before.for_key)
    layers[VALUE_LAYER - 1].fc2.weight.normal_()
    assert not drain(heard(tower, rows)).states.for_value.equal(before.for_value)


@torch.inference_mode()
def test_a_smaller_type_agrees_with_itself() -> None:
    tower = small_tower(dtype=torch.bfloat16)
    whole, pieced = drain(heard(tower)), drain(heard(tower, 7))
    assert pieced.states.for_key.dtype == torch.bfloat16
    assert off(pieced.states.for_key.float(), whole.states.for_key.float()) < 0.02
    assert off(pieced.word_averaged.float(), whole.word_averaged.float()) < 0.02


@torch.inference_mode()
def test_no_text_has_no_codes() -> None:
    tower = small_tower()
    empty = torch.zeros(1, 0, dtype=torch.long)
    pieces = tower.in_pieces(torch.zeros(1, 8, 10), torch.tensor([8]), empty, torch.tensor([0]), empty, SPECIAL, rows=7)
    assert drain(pieces).quantized_indices.shape == (1, 0, 3)


# --- bounded pieces


@contextmanager
def watched(tower: AudioTower) -> Iterator[list[tuple[str, int]]]:
    """Collects the calls of linear layers: name, and rows of each clip."""
    calls: list[tuple[str, int]] = []
    hooks = [
        module.register_forward_hook(lambda _, inputs, __, name=name: calls.append((name, inputs[0].shape[1])))
        for name, module in tower.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def test_a_piece_is_some_rows_of_a_layer() -> None:
    tower, pieces = small_tower(), 0
    everything: Counter[str] = Counter()
    with watched(tower) as calls:
        for _ in heard(tower, 7):
            assert calls, "a piece in which nothing was computed"
            assert max(rows for _, rows in calls) <= 7
            assert set(Counter(name for name, _ in calls).values()) == {1}  # each weight once
            layers = {name.split(".layers.")[1][:1] for name, _ in calls if name.endswith("fc1")}
            assert len(layers) <= 1
            everything.update(dict(calls))
            calls.clear()
            pieces += 1
        assert set(Counter(name for name, _ in calls).values()) == {1}  # the last piece
    # convolutions and layers, then what the decoder's layers hear, then they themselves, then the quantiser
    assert pieces + 1 == 6 * (1 + LAYERS) + 6 + 3 * 2 + 2
    encoder = "audio_joint_encoder_segmenter.audio_encoder.encoder.layers"
    decoder = "audio_joint_encoder_segmenter.audio_segmenter.decoder.layers"
    assert everything[f"{encoder}.0.self_attn.k_proj"] == everything[f"{encoder}.{LAYERS - 1}.fc2"] == ROWS
    assert everything[f"{decoder}.1.encoder_attn.v_proj"] == ROWS
    assert everything[f"{decoder}.1.fc2"] == 12 + 5


@torch.inference_mode()
def test_whole_layers_are_pieces_too() -> None:
    assert sum(1 for _ in heard(small_tower())) + 1 == 1 + LAYERS + 1 + 2 + 1


@torch.inference_mode()
@pytest.mark.parametrize("rows", [None, 9])
def test_an_abort_ends_it_before_the_next_piece(rows: int | None) -> None:
    tower = small_tower()
    checks = 0

    def count() -> None:
        nonlocal checks
        checks += 1

    pieces = sum(1 for _ in heard(tower, rows, count)) + 1
    assert checks == pieces
    for last in range(pieces):
        done = 0

        def abort(last: int = last) -> None:
            nonlocal done
            if done == last:
                calls.clear()
                raise CallAbortedError("enough")
            done += 1

        with watched(tower) as calls, pytest.raises(CallAbortedError):
            drain(heard(tower, rows, abort))
        assert done == last
        assert not calls


# --- in company


@torch.inference_mode()
def test_others_in_between_change_nothing() -> None:
    tower = small_tower()
    alone = drain(heard(tower, 7))
    running = [heard(tower, 7), heard(tower, 7, tokens=9), heard(tower, 11), heard(tower, 7)]
    ended: dict[int, AudioTowerOutput] = {}
    while len(ended) < len(running):
        for index, pieces in enumerate(running):
            try:
                next(pieces)
            except StopIteration as stopped:
                ended.setdefault(index, stopped.value)
    for index in (0, 3):
        assert ended[index].states.for_key.equal(alone.states.for_key)
        assert ended[index].projected.equal(alone.projected)
        assert ended[index].quantized_indices.equal(alone.quantized_indices)
    assert ended[1].quantized_indices.shape[1] == 9


def clip(seconds: float = 1.0) -> Tensor:
    return torch.randn(1, int(16_000 * seconds), generator=torch.Generator().manual_seed(1)) * 0.1


def tokenizing(loaded: Loaded, rows: int | None, ids: list[int] = IDS, **options: Any) -> Work[Tensor]:
    features = loaded.processor.features(clip()[0].numpy())
    return tokenize_in_pieces(loaded.model, loaded.processor, features, ids, WORDS[: len(ids)], rows=rows, **options)


def finish(work: Work[Tensor]) -> tuple[int, Tensor]:
    """Turns and result of `work`."""
    turns = 0
    while True:
        try:
            assert next(work) == Turn()
        except StopIteration as stopped:
            return turns, stopped.value
        turns += 1


@pytest.mark.parametrize("rows", [None, 256, 600])
def test_tokenizing_in_turns_gives_the_same_codes(tiny: Loaded, rows: int | None) -> None:
    turns, codes = finish(tokenizing(tiny, rows))
    assert codes.equal(taste_tokenize(tiny.model, tiny.processor, clip(), torch.tensor([IDS])))
    tower = tiny.model.config.audio_tower
    spans = len(row_spans(tower.max_source_positions, rows))
    assert turns + 1 == spans * (tower.encoder_layers + 2) + tower.decoder.layers + 1


def test_numbers_of_words_need_not_begin_at_nought(tiny: Loaded) -> None:
    features = tiny.processor.features(clip()[0].numpy())
    work = tokenize_in_pieces(tiny.model, tiny.processor, features, IDS, [3 * word + 4 for word in WORDS])
    assert finish(work)[1].equal(finish(tokenizing(tiny, None))[1])


def test_words_are_refused_before_anything_is_computed(tiny: Loaded) -> None:
    (blank,) = tiny.processor.text_tokenizer.encode(" ")
    checks = 0

    def count() -> None:
        nonlocal checks
        checks += 1

    for ids, reason in ([blank], "spell no word"), ([377] * 600, "at most 443"):
        features = tiny.processor.features(clip()[0].numpy())
        work = tokenize_in_pieces(tiny.model, tiny.processor, features, ids, [0] * len(ids), abort=count)
        with pytest.raises(InvalidInputError, match=reason):
            next(work)
    assert checks == 0


def test_tokenizing_can_be_stopped_at_every_turn(tiny: Loaded) -> None:
    work = tokenizing(tiny, 500)
    next(work)
    next(work)
    work.close()
    with pytest.raises(StopIteration):
        next(work)

    wanted = True

    def abort() -> None:
        if not wanted:
            raise CallAbortedError("enough")

    work = tokenizing(tiny, 500, abort=abort)
    for _ in range(4):
        next(work)
    wanted = False
    with pytest.raises(CallAbortedError):
        next(work)
