"""Random numbers as functions of (seed, stream, index)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taste_grpc.model.random import CounterRandom, Stream, pick

SEEDS = st.integers(-(2**70), 2**70)
weights = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=40).filter(lambda w: sum(w) > 1e-6)


@given(SEEDS, st.sampled_from(Stream), st.integers(0, 10**12), st.integers(0, 40), st.integers(0, 40))
def test_numbers_do_not_depend_on_how_they_are_asked_for(
    seed: int, stream: Stream, start: int, first: int, second: int
) -> None:
    random = CounterRandom(seed)
    whole = random.uniforms(stream, start, first + second)
    parts = [random.uniforms(stream, start, first), CounterRandom(seed).uniforms(stream, start + first, second)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert all(random.uniform(stream, start + k) == whole[k] for k in range(first))
    assert ((whole >= 0) & (whole < 1)).all()


@given(SEEDS, st.integers(0, 10**6), st.integers(0, 6), st.integers(0, 6), st.integers(1, 7))
def test_rows_of_normals_do_not_depend_on_how_they_are_asked_for(
    seed: int, start: int, first: int, second: int, width: int
) -> None:
    random = CounterRandom(seed)
    whole = random.normals(Stream.FLOW_NOISE, start, first + second, width)
    parts = [
        random.normals(Stream.FLOW_NOISE, start, first, width),
        random.normals(Stream.FLOW_NOISE, start + first, second, width),
    ]
    assert whole.shape == (first + second, width)
    assert whole.dtype == np.float32
    assert np.array_equal(whole, np.concatenate(parts))
    assert np.isfinite(whole).all()


def test_seeds_and_streams_are_independent() -> None:
    rows = [CounterRandom(seed).uniforms(stream, 0, 4000) for seed in (0, 1, 2**40) for stream in Stream]
    correlation = np.corrcoef(np.array(rows)) - np.eye(len(rows))
    assert np.abs(correlation).max() < 0.08


def test_seeds_are_taken_modulo_2_to_the_64() -> None:
    assert CounterRandom(-1).uniform(Stream.TEXT, 0) == CounterRandom(2**64 - 1).uniform(Stream.TEXT, 0)


def test_the_distributions_are_what_they_claim() -> None:
    random = CounterRandom(3)
    uniforms = random.uniforms(Stream.TEXT, 0, 100_000)
    assert abs(uniforms.mean() - 0.5) < 0.005
    assert abs(uniforms.var() - 1 / 12) < 0.002
    normals = random.normals(Stream.FLOW_NOISE, 0, 1000, 81)
    assert abs(normals.mean()) < 0.02
    assert abs(normals.std() - 1) < 0.02
    assert abs((np.abs(normals) < 1).mean() - 0.6827) < 0.01


@given(weights, st.floats(0, 1, exclude_max=True))
def test_the_pick_is_the_number_of_sums_below_the_target(given_weights: list[float], u: float) -> None:
    index = pick(given_weights, u)
    sums = np.cumsum(np.asarray(given_weights, dtype=np.float64))
    assert given_weights[index] > 0
    if u > 0:
        assert index == min(int((sums < u * sums[-1]).sum()), len(sums) - 1)


@pytest.mark.parametrize(("u", "index"), [(0.0, 1), (0.1, 1), (0.25, 1), (0.2501, 3), (0.999999, 3)])
def test_what_has_no_weight_is_never_picked(u: float, index: int) -> None:
    assert pick([0.0, 1.0, 0.0, 3.0, 0.0], u) == index
