"""The quantiser: greedy search, masks, and the way back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from taste_grpc.errors import CheckpointError
from taste_grpc.model.audio_tower.rvq import ResidualVQ, ResidualVQConfig

SMALL = ResidualVQConfig(dim=12, codebook_dim=6, codebook_size=9, quantizers=3)


@pytest.fixture
def rvq() -> ResidualVQ:
    torch.manual_seed(0)
    quantizer = ResidualVQ(SMALL).eval()
    for name, buffer in quantizer.named_buffers():
        if name.endswith("._codebook.embed"):
            buffer.normal_()
    return quantizer


def tables(rvq: ResidualVQ) -> list[Tensor]:
    return [rvq.state_dict()[f"layers.{level}._codebook.embed"][0] for level in range(SMALL.quantizers)]


@torch.inference_mode()
def test_each_table_codes_what_is_left_over(rvq: ResidualVQ) -> None:
    code = torch.randn(2, 5, 6)
    indices = rvq.indices_from_code(code)
    assert indices.shape == (2, 5, 3)
    assert indices.dtype == torch.int64
    for row in range(2):
        for position in range(5):
            residual = code[row, position]
            for level, table in enumerate(tables(rvq)):
                nearest = int((table - residual).norm(dim=1).argmin())
                assert indices[row, position, level] == nearest
                residual = residual - table[nearest]


@torch.inference_mode()
def test_of_equal_codes_the_first_is_taken(rvq: ResidualVQ) -> None:
    for table in tables(rvq):
        table[5] = table[2]  # a view into the buffer
    indices = rvq.indices_from_code(torch.randn(400, 6))
    assert (indices == 2).any()
    assert not (indices == 5).any()


@torch.inference_mode()
def test_codes_of_a_row_do_not_depend_on_its_company(rvq: ResidualVQ) -> None:
    code = torch.randn(33, 6)
    together = rvq.indices_from_code(code)
    alone = torch.cat([rvq.indices_from_code(row[None]) for row in code])
    assert together.equal(alone)


@torch.inference_mode()
def test_masked_rows_have_no_code_and_decode_to_the_bias(rvq: ResidualVQ) -> None:
    mask = torch.tensor([[True, True, False]])
    x = torch.randn(1, 3, 12)
    output = rvq(x, mask)
    assert output.indices[0, 2].tolist() == [-1, -1, -1]
    bias = rvq.state_dict()["project_out.bias"]
    torch.testing.assert_close(output.quantized[0, 2], bias)
    unmasked = rvq(x)
    assert unmasked.indices[0, :2].equal(output.indices[0, :2])
    torch.testing.assert_close(unmasked.quantized[0, :2], output.quantized[0, :2])


@torch.inference_mode()
def test_a_missing_level_adds_nothing(rvq: ResidualVQ) -> None:
    first, second, third = tables(rvq)
    code = rvq.code_from_indices(torch.tensor([[4, -1, 7], [0, 1, 2]]))
    torch.testing.assert_close(code, torch.stack([first[4] + third[7], first[0] + second[1] + third[2]]))
    torch.testing.assert_close(rvq.output_from_indices(torch.tensor([4, -1, 7])), rvq.project_out(code[0]))


@torch.inference_mode()
def test_the_search_stays_in_float32_when_the_model_does_not(rvq: ResidualVQ) -> None:
    code = torch.randn(50, 6).bfloat16()
    expected = rvq.to(torch.bfloat16).indices_from_code(code)
    assert expected.equal(rvq.float().indices_from_code(code.float()))
    assert rvq.to(torch.bfloat16)(torch.randn(1, 2, 12)).quantized.dtype == torch.bfloat16


def test_sizes_come_from_the_tensors_where_the_configuration_is_silent() -> None:
    config = {
        "audio_tower_config": {
            "kwargs_for_quantizer": {"dim": 12, "codebook_dim": 6, "codebook_size": 9, "num_quantizers": 3}
        }
    }
    with torch.device("meta"):
        stored = ResidualVQ(ResidualVQConfig(12, 6, 9, 3, mlp_layers=2)).state_dict()
    shapes = {f"audio_tower.vq.rvq.{name}": tuple(tensor.shape) for name, tensor in stored.items()}
    assert ResidualVQConfig.from_published(config, shapes) == ResidualVQConfig(12, 6, 9, 3, mlp_layers=2)
    assert ResidualVQConfig.from_published(config).mlp_layers == ResidualVQConfig().mlp_layers
    shapes["audio_tower.vq.rvq.layers.0._codebook.embed"] = (1, 10, 6)
    with pytest.raises(CheckpointError, match=r"codebook_size = 9.*layers\.0\._codebook\.embed"):
        ResidualVQConfig.from_published(config, shapes)
