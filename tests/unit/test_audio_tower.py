"""The audio tower: published names and sizes, padding, limits, and what its two attentions read."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from taste_grpc.errors import CallAbortedError, CheckpointError, InvalidInputError
from taste_grpc.model.audio_tower.encoder import EncoderStates
from taste_grpc.model.audio_tower.tower import AudioTower, AudioTowerConfig, AudioTowerOutput, WhisperSpecialIds

SPECIAL = WhisperSpecialIds(start=90, language=91, task=92, no_timestamps=93, end=94)
FRAMES = 24  # of the small encoder


def published_config(**asr: Any) -> dict[str, Any]:
    """The fields of config.json the tower reads, at a small size unless overridden."""
    recogniser = {
        "d_model": 16,
        "encoder_layers": 8,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_layers": 32,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 20,
        "num_mel_bins": 10,
        "max_source_positions": FRAMES // 2,
        "max_target_positions": 20,
        "vocab_size": 100,
        "activation_function": "gelu",
        "scale_embedding": False,
    } | asr
    quantizer = {"dim": recogniser["d_model"], "codebook_dim": 6, "codebook_size": 9, "num_quantizers": 4}
    return {"asr_config": recogniser, "audio_tower_config": {"kwargs_for_quantizer": quantizer}}


def small_tower(seed: int = 0, attn_implementation: str = "sdpa") -> AudioTower:
    torch.manual_seed(seed)
    tower = AudioTower(AudioTowerConfig.from_published(published_config(), None, attn_implementation)).eval()
    for name, tensor in tower.state_dict().items():
        if tensor.dim() > 1 or "embed" in name:
            tensor.normal_(std=0.3)
    return tower


@pytest.fixture
def tower() -> AudioTower:
    return small_tower()


def inputs(batch: int = 1, tokens: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "audio_features": torch.randn(batch, FRAMES, 10, generator=generator),
        "audio_feature_lengths": torch.full((batch,), 20),
        "asr_token_ids": torch.randint(1, 90, (batch, tokens), generator=generator),
        "asr_token_lengths": torch.full((batch,), tokens),
        "asr_word_ids": torch.tensor([0, 0, 1, 2, 2, 3, 4, 4][:tokens]).expand(batch, tokens),
    }


def run(tower: AudioTower, **changes: Tensor) -> AudioTowerOutput:
    with torch.inference_mode():
        output: AudioTowerOutput = tower(**(inputs() | changes), special_ids=SPECIAL)
    return output


def test_the_published_size_has_the_published_names_and_shapes() -> None:
    config = published_config(
        d_model=1280,
        encoder_layers=32,
        encoder_attention_heads=20,
        encoder_ffn_dim=5120,
        decoder_attention_heads=20,
        decoder_ffn_dim=5120,
        num_mel_bins=128,
        max_source_positions=1500,
        max_target_positions=448,
        vocab_size=51866,
    )
    config["audio_tower_config"]["kwargs_for_quantizer"] |= {"codebook_dim": 256, "codebook_size": 512}
    sizes = AudioTowerConfig.from_published(config)
    assert sizes == AudioTowerConfig()
    with torch.device("meta"):
        state = AudioTower(sizes).state_dict()

    joint = "audio_joint_encoder_segmenter"
    expected = {
        f"{joint}.audio_encoder.encoder.conv1.weight": (1280, 128, 3),
        f"{joint}.audio_encoder.encoder.embed_positions.weight": (1500, 1280),
        f"{joint}.audio_encoder.encoder.layers.31.self_attn.v_proj.bias": (1280,),
        f"{joint}.audio_encoder.encoder.layers.0.fc1.weight": (5120, 1280),
        f"{joint}.audio_segmenter.decoder.embed_tokens.weight": (51866, 1280),
        f"{joint}.audio_segmenter.decoder.embed_positions.weight": (448, 1280),
        f"{joint}.audio_segmenter.decoder.layers.1.encoder_attn.v_proj.weight": (1280, 1280),
        f"{joint}.audio_segmenter.decoder.layers.1.fc2.weight": (1280, 5120),
        "vq.rvq.project_in.weight": (256, 1280),
        "vq.rvq.layers.3._codebook.initted": (1,),
        "vq.rvq.layers.3._codebook.cluster_size": (1, 512),
        "vq.rvq.layers.0._codebook.embed_avg": (1, 512, 256),
        "vq.rvq.mlps.2.proj_in.weight": (256, 512),
        "vq.rvq.mlps.2.layers.3.2.bias": (256,),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected
    assert not [name for name in state if name.endswith("k_proj.bias")]

    def total(prefix: str) -> int:
        return sum(math.prod(tensor.shape) for name, tensor in state.items() if name.startswith(prefix))

    assert total(f"{joint}.audio_encoder.") == 636_968_960
    assert total(f"{joint}.audio_segmenter.") == 119_436_800
    assert total("vq.") == 3_680_516
    assert total("") == 636_968_960 + 119_436_800 + 3_680_516


def test_layer_counts_come_from_the_tensors() -> None:
    config = AudioTowerConfig.from_published(published_config())
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, layers=3))
    with torch.device("meta"):
        state = AudioTower(config).state_dict()
    shapes = {f"audio_tower.{name}": tuple(tensor.shape) for name, tensor in state.items()}
    assert AudioTowerConfig.from_published(published_config(), shapes) == config


@pytest.mark.parametrize(
    ("field", "value", "tensor"),
    [
        ("d_model", 32, "embed_tokens"),
        ("encoder_layers", 9, "audio_encoder.encoder.layers"),
        ("num_mel_bins", 80, "conv1"),
        ("vocab_size", 101, "embed_tokens"),
        ("max_source_positions", 1500, "embed_positions"),
        ("max_target_positions", 448, "embed_positions"),
        ("encoder_ffn_dim", 25, "fc1"),
    ],
)
def test_a_configuration_its_tensors_contradict_is_refused(field: str, value: int, tensor: str) -> None:
    with torch.device("meta"):
        state = AudioTower(AudioTowerConfig.from_published(published_config())).state_dict()
    shapes = {f"audio_tower.{name}": tuple(found.shape) for name, found in state.items()}
    with pytest.raises(CheckpointError, match=rf"{field} = {value}.*{tensor}"):
        AudioTowerConfig.from_published(published_config(**{field: value}), shapes)


def test_variants_without_a_network_here_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"encoder_layers = 6"):
        AudioTowerConfig.from_published(published_config(encoder_layers=6))
    config = published_config()
    config["audio_tower_config"]["kwargs_for_joint_encoder_segmenter"] = {"is_word_level": False}
    with pytest.raises(CheckpointError, match=r"is_word_level = False"):
        AudioTowerConfig.from_published(config)
    config = published_config()
    del config["asr_config"]["d_model"]
    with pytest.raises(CheckpointError, match="d_model"):
        AudioTowerConfig.from_published(config)


def test_attention_kernels_agree() -> None:
    eager, fused = (run(small_tower(attn_implementation=kind)) for kind in ("eager", "sdpa"))
    torch.testing.assert_close(eager.states.for_key, fused.states.for_key, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(eager.word_averaged, fused.word_averaged, atol=1e-5, rtol=1e-4)
    assert eager.quantized_indices.equal(fused.quantized_indices)


def test_tokens_of_a_word_share_their_codes(tower: AudioTower) -> None:
    output = run(tower)
    codes = output.quantized_indices[0]
    assert codes[0].equal(codes[1])
    assert codes[3].equal(codes[4])
    assert len({tuple(row.tolist()) for row in codes}) > 1
    assert output.audio_unit_embeds.shape == (1, 6, 16)
    torch.testing.assert_close(output.audio_unit_embeds, tower.rvq.output_from_indices(output.quantized_indices))


def test_the_decoder_reads_prefix_tokens_end(tower: AudioTower) -> None:
    batch = inputs(batch=2)
    batch["asr_token_lengths"] = torch.tensor([6, 4])
    batch["asr_token_ids"][1, 4:] = 77  # padding of any value
    with torch.inference_mode():
        ids = tower(**batch, special_ids=SPECIAL).decoder_input_ids
    assert ids[0].tolist() == [90, 91, 92, 93, *batch["asr_token_ids"][0].tolist(), 94]
    assert ids[1].tolist() == [90, 91, 92, 93, *batch["asr_token_ids"][1, :4].tolist(), 0, 0, 94]


def test_a_row_gives_the_same_alone_and_padded(tower: AudioTower) -> None:
    batch = inputs(batch=2)
    short = {
        "audio_features": batch["audio_features"][1:],
        "audio_feature_lengths": batch["audio_feature_lengths"][1:],
        "asr_token_ids": batch["asr_token_ids"][1:, :4],
        "asr_token_lengths": torch.tensor([4]),
        "asr_word_ids": batch["asr_word_ids"][1:, :4],
    }
    batch["asr_token_lengths"] = torch.tensor([6, 4])
    batch["asr_word_ids"] = torch.tensor([[0, 0, 1, 2, 2, 3], [0, 0, 1, 2, 0, 0]])
    with torch.inference_mode():
        together = tower(**batch, special_ids=SPECIAL)
        alone = tower(**short, special_ids=SPECIAL)
    assert together.quantized_indices[1, :4].equal(alone.quantized_indices[0])
    assert (together.quantized_indices[1, 4:] == -1).all()
    assert together.audio_unit_lengths.tolist() == [6, 4]
    torch.testing.assert_close(together.word_averaged[1, :4], alone.word_averaged[0, :4], atol=1e-5, rtol=1e-4)


def test_missing_frames_are_zeros(tower: AudioTower) -> None:
    features = inputs()["audio_features"]
    padded = torch.cat([features[:, :9], torch.zeros(1, FRAMES - 9, 10)], dim=1)
    lengths = torch.tensor([9])
    short = run(tower, audio_features=features[:, :9], audio_feature_lengths=lengths)
    full = run(tower, audio_features=padded, audio_feature_lengths=lengths)
    assert short.states.for_key.equal(full.states.for_key)


def test_values_come_from_the_tapped_layer_and_keys_from_the_last(tower: AudioTower) -> None:
    before = run(tower)
    encoder = tower.audio_joint_encoder_segmenter.audio_encoder.encoder
    with torch.no_grad():
        encoder.layers[6].fc2.weight.normal_()
    after = run(tower)
    assert after.states.for_value.equal(before.states.for_value)
    assert not after.states.for_key.equal(before.states.for_key)
    with torch.no_grad():
        encoder.layers[5].fc2.weight.normal_()
    assert not run(tower).states.for_value.equal(before.states.for_value)


def test_the_decoder_searches_in_the_keys_and_reads_the_values(tower: AudioTower) -> None:
    decoder = tower.audio_joint_encoder_segmenter.audio_segmenter.decoder
    ids = inputs()["asr_token_ids"]
    changing, other, constant = torch.randn(1, 12, 16), torch.randn(1, 12, 16), torch.randn(1, 1, 16).expand(1, 12, 16)

    @torch.inference_mode()
    def read(keys: Tensor, values: Tensor) -> Tensor:
        hidden: Tensor = decoder(ids, EncoderStates(for_key=keys, for_value=values))
        return hidden

    # Where all frames read the same, it does not matter where one looks; where all look the
    # same, it does not matter in which order the frames stand.
    torch.testing.assert_close(read(changing, constant), read(other, constant))
    torch.testing.assert_close(read(constant, changing), read(constant, changing.flip(1)))
    assert not torch.allclose(read(changing, other), read(changing, other.flip(1)), atol=1e-3)
    assert not torch.allclose(read(constant, changing), read(constant, other), atol=1e-3)


def test_the_stored_value_projection_is_used(tower: AudioTower) -> None:
    before = run(tower)
    with torch.no_grad():
        tower.get_parameter(
            "audio_joint_encoder_segmenter.audio_segmenter.decoder.layers.1.encoder_attn.v_proj.weight"
        ).normal_()
    assert not torch.allclose(run(tower).decoder_last_hidden, before.decoder_last_hidden)


def test_no_tokens_give_no_rows(tower: AudioTower) -> None:
    empty = torch.zeros(1, 0, dtype=torch.long)
    output = run(tower, asr_token_ids=empty, asr_word_ids=empty, asr_token_lengths=torch.tensor([0]))
    assert output.audio_unit_embeds.shape == (1, 0, 16)
    assert output.quantized_indices.shape == (1, 0, 4)


LONG = torch.zeros(1, 16, dtype=torch.long)


@pytest.mark.parametrize(
    ("argument", "changes", "named"),
    [
        ("audio_features", {"audio_features": torch.zeros(1, FRAMES + 1, 10)}, str(FRAMES + 1)),
        ("audio_features", {"audio_features": torch.zeros(1, FRAMES, 11)}, "11"),
        ("audio_features", {"audio_features": torch.zeros(FRAMES, 10)}, "B, F, bins"),
        ("audio_features", {"audio_features": torch.zeros(2, FRAMES, 10)}, "2"),
        ("asr_token_ids", {"asr_token_ids": LONG, "asr_word_ids": LONG}, "at most 15"),
        ("asr_token_ids", {"asr_token_ids": torch.full((1, 6), 100)}, "100"),
        ("asr_token_ids", {"asr_token_ids": torch.full((1, 6), -1)}, "-1"),
        ("asr_word_ids", {"asr_word_ids": torch.zeros(1, 5, dtype=torch.long)}, "5"),
        ("asr_token_lengths", {"asr_token_lengths": torch.tensor([7])}, "7"),
        ("asr_token_lengths", {"asr_token_lengths": torch.tensor([6, 6])}, "2"),
        ("audio_feature_lengths", {"audio_feature_lengths": torch.tensor([FRAMES + 1])}, str(FRAMES + 1)),
    ],
)
def test_a_wrong_argument_is_named(tower: AudioTower, argument: str, changes: dict[str, Tensor], named: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        run(tower, **changes)
    assert caught.value.field == argument
    assert named in caught.value.description


def test_the_longest_text_is_accepted(tower: AudioTower) -> None:
    ids = torch.zeros(1, 15, dtype=torch.long)
    output = run(tower, asr_token_ids=ids, asr_word_ids=ids, asr_token_lengths=torch.tensor([15]))
    assert output.decoder_input_ids.shape == (1, 20)


def test_work_can_be_aborted_between_layers(tower: AudioTower) -> None:
    reached: list[int] = []

    def abort() -> None:
        if reached == [0, 1]:
            raise CallAbortedError("cancelled")

    for index, layer in enumerate(tower.audio_joint_encoder_segmenter.audio_encoder.encoder.layers):
        layer.fc2.register_forward_hook(lambda *_, index=index: reached.append(index))
    with pytest.raises(CallAbortedError), torch.inference_mode():
        tower(**inputs(), special_ids=SPECIAL, abort=abort)
    assert reached == [0, 1]
