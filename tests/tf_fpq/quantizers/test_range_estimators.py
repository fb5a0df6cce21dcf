"""Where grids start, against brute force."""

import functools
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf

from tf_fpq import quantizers
from tf_fpq.quantizers import range_estimators
from tf_fpq.quantizers.range_estimators import Reservoir, Samples
from tf_fpq.quantizers.spec import QuantSpec

WEIGHT = QuantSpec(num_bits=4, symmetric=True, narrow_range=True)
ACTIVATION = QuantSpec(num_bits=4)
VALUES = np.random.default_rng(0).normal(0.3, 1.0, (3, 4000)) * [[1.0], [10.0], [0.01]]


def _error(values, spec, s, z):
    return range_estimators.squared_error(values, s, z, spec)


def test_min_max_is_fpq_equation_6():
    # s = (6 - -2) / 15, z = round(15 - 6 / s) = round(3.75)
    s, z = range_estimators.min_max(Samples.of(np.array([[-2.0, 6.0]])), ACTIVATION)
    np.testing.assert_allclose(s, 8 / 15)
    np.testing.assert_array_equal(z, 4)
    s, z = range_estimators.min_max(Samples.of(np.array([[-2.0, 1.0]])), WEIGHT)
    np.testing.assert_allclose([s[0], z[0]], [2 / 7, 0])


@pytest.mark.parametrize("values", [[1.0, 3.0], [-3.0, -1.0], [0.0, 0.0], [2.0, 2.0]])
def test_zero_is_on_every_grid(values):
    for estimator in range_estimators.ESTIMATORS.values():
        _, z = estimator(Samples.of(np.array([values])), ACTIVATION)
        assert ACTIVATION.qmin <= z[0] <= ACTIVATION.qmax and z[0] == np.rint(z[0])


@pytest.mark.parametrize("values", [[1.0, 3.0], [-3.0, -1.0], [-1.0, 3.0]])
@pytest.mark.parametrize("spec", [WEIGHT, ACTIVATION], ids=["weight", "activation"])
def test_all_values_are_the_whole_range_which_0_belongs_to(spec, values):
    samples = Samples.of(np.array([values]))
    found = range_estimators.percentile(samples, spec, percent=100.0)
    np.testing.assert_array_equal(found, range_estimators.min_max(samples, spec))


def test_percentiles_are_of_each_side_or_of_the_magnitudes():
    values = np.stack([np.arange(-100.0, 201.0), np.arange(-200.0, 101.0)])
    step, zero = range_estimators.percentile(Samples.of(values), ACTIVATION, percent=90)
    np.testing.assert_allclose(step, [(170 + 70) / 15, (70 + 170) / 15])
    np.testing.assert_array_equal(zero, [4, 11])
    step, zero = range_estimators.percentile(Samples.of(values), WEIGHT, percent=90)
    np.testing.assert_allclose(step * 7, [170, 170])
    assert range_estimators.percentile(Samples.of(values), WEIGHT, 50.5)[0][0] > 0


@pytest.mark.parametrize(
    ("low", "high", "spec", "expected"),
    [
        (-1.0, 2.0, ACTIVATION, (0.2, 5)),
        (0.0, 3.0, ACTIVATION, (0.2, 0)),
        (-3.0, 0.0, ACTIVATION, (0.2, 15)),
        (0.0, 0.0, ACTIVATION, (0.0, 15)),
        (-1.0, 1.8, QuantSpec(num_bits=4, narrow_range=True), (0.2, 6)),
        (-2.0, 1.0, WEIGHT, (2 / 7, 0)),
        (-1.0, 2.0, WEIGHT, (2 / 7, 0)),
    ],
)
def test_the_grid_of_a_range(low, high, spec, expected):
    step, zero = range_estimators.grids_of_range(np.array([low]), np.array([high]), spec)
    assert (step[0], zero[0]) == (pytest.approx(expected[0]), expected[1])


def test_the_exact_range_outlives_subsampling():
    samples = Samples(np.array([[0.0, 1.0]]), np.array([-5.0]), np.array([9.0]))
    np.testing.assert_allclose(range_estimators.min_max(samples, ACTIVATION)[0], 14 / 15)


def test_a_reservoir_keeps_the_exact_range_and_all_values_while_they_are_few():
    reservoir = Reservoir()
    reservoir.add(np.float32([0.0, 1.0]), -5.0, 9.0)
    reservoir.add(np.float32([-7.0, 0.5]), -7.0, 0.5)
    samples = reservoir.samples()
    assert (samples.low[0], samples.high[0]) == (-7, 9)
    np.testing.assert_array_equal(samples.values, [[0.0, 1.0, -7.0, 0.5]])
    reservoir = Reservoir()
    reservoir.add(np.float32([3.0, 4.0]), 3.0, 4.0)
    assert reservoir.samples().low[0] == 0, "0 is on every grid"


def test_a_full_reservoir_is_a_fair_sample_of_all_batches(monkeypatch):
    monkeypatch.setattr(range_estimators, "MAX_SAMPLES", 6000)
    reservoir = Reservoir()
    for batch, size in enumerate((10000, 1000, 30000, 19000)):
        reservoir.add(np.full(size, batch, np.float32), batch, batch)
    values = reservoir.samples().values[0]
    counts = np.bincount(values.astype(int))
    assert counts.sum() == 6000
    # 1 in 10 of each batch, give or take four standard deviations of the draw.
    np.testing.assert_allclose(counts, [1000, 100, 3000, 1900], atol=4 * 3000**0.5)
    assert 60 < counts[1] < 140


def test_a_reservoir_that_is_just_full_keeps_the_order(monkeypatch):
    monkeypatch.setattr(range_estimators, "MAX_SAMPLES", 5)
    reservoir = Reservoir()
    reservoir.add(np.float32([5, 1, 4, 2, 3]), 1.0, 5.0)
    assert reservoir.samples().values.tolist() == [[5, 1, 4, 2, 3]]
    reservoir.add(np.float32([6]), 6.0, 6.0)
    values = reservoir.samples().values[0].tolist()
    assert len(values) == 5 and values == [value for value in [5, 1, 4, 2, 3, 6] if value in values]


def test_a_full_reservoir_still_measures_the_percentile_that_is_kept():
    """65 values lie beyond it on either side, of a quarter of a megabyte."""
    reservoir = Reservoir()
    for _ in range(2):
        reservoir.add(np.zeros(50000, np.float32), 0.0, 0.0)
    values = reservoir.samples().values
    assert values.nbytes == 2**18
    assert 65 < values.size * (1 - range_estimators.KEPT_PERCENT / 100) < 66


@pytest.mark.parametrize("spec", [WEIGHT, ACTIVATION], ids=["weight", "activation"])
def test_mse_is_the_best_fraction_of_the_range(spec):
    samples = Samples.of(VALUES)
    s, z = range_estimators.mse(samples, spec)
    full, _ = range_estimators.min_max(samples, spec)
    best = np.min(
        [_error(VALUES, spec, full * ratio, z) for ratio in np.linspace(0.05, 1, 400)], axis=0
    )
    assert np.all(_error(VALUES, spec, s, z) <= 1.01 * best)
    assert np.all(_error(VALUES, spec, s, z) < _error(VALUES, spec, full, z))


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 2), (7, -3), (12, 3)])
def test_mse_tries_25_fractions_of_the_range_and_then_11_around_the_best(first, second):
    """Fractions lie on `0.05^(k / 24)`, and within 10 % of one of them on `1.1^(j / 5)`."""
    fraction = 0.05 ** (first / 24) * 1.1 ** (-second / 5)
    spec = QuantSpec(num_bits=2)
    values = np.array([0.0, 1 / 3, 2 / 3, 1.0]) * fraction * 6.0
    samples = Samples.of(np.append(np.tile(values, 1000), 6.0)[None])
    step_size, zero_point = range_estimators.mse(samples, spec)
    np.testing.assert_allclose(step_size, fraction * 6 / 3, rtol=1e-12)
    assert zero_point == 0


def test_mse_takes_no_more_than_the_whole_range():
    """Here 1.02 of it would be better."""
    samples = Samples.of(np.array([[1.0, 0.9, 0.9, 0.9]]))
    step_size, _ = range_estimators.mse(samples, WEIGHT)
    assert step_size == 1 / 7
    wider = _error(samples.values, WEIGHT, step_size * 1.02, np.zeros(1))
    assert wider < _error(samples.values, WEIGHT, step_size, np.zeros(1))


@pytest.mark.parametrize(("low", "high"), [(0, 4), (2, 5), (5, 1), (12, 3), (4, 13)])
def test_offset_mse_tries_15_fractions_of_each_end(low, high):
    """Fractions lie on `0.1^(k / 14)`."""
    lowest, highest = -3.0 * 0.1 ** (low / 14), 5.0 * 0.1 ** (high / 14)
    grid = range_estimators.grids_of_range(np.array([lowest]), np.array([highest]), ACTIVATION)
    values = (np.arange(16) - grid[1]) * grid[0]
    samples = Samples.of(np.append(np.tile(values, 1000), [-3.0, 5.0])[None])
    found = range_estimators.offset_mse(samples, ACTIVATION)
    np.testing.assert_allclose(found, grid, rtol=1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (1, 70000), (4, 33000)])
def test_the_squared_error_is_that_of_each_grid_however_many_values_it_has(rows, columns):
    values = np.random.default_rng(0).normal(0.3, 1.0, (rows, columns))
    step, zero = np.linspace(0.1, 0.4, rows), np.arange(rows) + 5.0
    expected = [
        np.square(s * (np.clip(np.rint(row / s) + z, 0, 15) - z) - row).sum()
        for row, s, z in zip(values, step, zero, strict=True)
    ]
    np.testing.assert_allclose(_error(values, ACTIVATION, step, zero), expected, rtol=1e-10)


def test_the_squared_error_of_many_grids_takes_little_memory():
    """Three temporaries of half a megabyte, of 16 times as many values."""
    values, ones = np.ones((256, 4096)), np.ones(256)
    tracemalloc.start()
    _error(values, ACTIVATION, ones, ones)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**21 < values.nbytes / 3


def test_a_grid_without_a_step_has_the_error_of_zeros():
    error = _error(np.array([[3.0, 4.0], [0.0, 0.0]]), WEIGHT, np.zeros(2), np.zeros(2))
    assert error.tolist() == [0.0, 0.0]


def test_offset_mse_beats_mse_where_the_ends_differ():
    values = np.concatenate([np.random.default_rng(1).uniform(0, 1, 4000), [-4.0]])[None]
    samples = Samples.of(values)
    moved, fixed = (
        _error(values, ACTIVATION, *f(samples, ACTIVATION))
        for f in (range_estimators.offset_mse, range_estimators.mse)
    )
    assert moved < 0.8 * fixed


@pytest.mark.parametrize(
    "estimator",
    [
        range_estimators.min_max,
        range_estimators.percentile,
        range_estimators.mse,
        range_estimators.offset_mse,
    ],
)
def test_in_another_unit_the_grid_is_the_same(estimator):
    """A unit of 1/1024 changes no bit but those of the exponents."""
    values = VALUES[:, :400]
    step_size, zero_point = estimator(Samples.of(values), ACTIVATION)
    thousand, same = estimator(Samples.of(values * 1024), ACTIVATION)
    np.testing.assert_array_equal(thousand, step_size * 1024)
    np.testing.assert_array_equal(same, zero_point)


def test_percentile_ignores_outliers():
    values = np.concatenate([np.linspace(-1, 1, 20001), [100.0, -300.0]])[None]
    for spec in (WEIGHT, ACTIVATION):
        s, _ = range_estimators.percentile(Samples.of(values), spec)
        assert s * (spec.qmax - min(spec.qmin, 0)) == pytest.approx(2.0, rel=0.1)
        everything, _ = range_estimators.percentile(Samples.of(values), spec, percent=100.0)
        np.testing.assert_allclose(
            everything, range_estimators.min_max(Samples.of(values), spec)[0]
        )
    for percent in (50, 100.1):
        message = rf"^percent must be above 50 and at most 100\. Received: percent={percent}\.$"
        with pytest.raises(ValueError, match=message):
            range_estimators.percentile(Samples.of(values), WEIGHT, percent=percent)


def _start(quantizer_class, spec, values=VALUES, estimator="paper"):
    quantizer = quantizer_class(4, symmetric=spec.symmetric, narrow_range=spec.narrow_range)
    return quantizer.estimate(Samples.of(values), estimator)


def test_published_starts():
    # LSQ, section 2.1: 2 mean|v| / sqrt(Q_P)
    np.testing.assert_allclose(
        _start(quantizers.LsqQuantizer, WEIGHT)[0], 2 * np.abs(VALUES).mean(axis=1) / np.sqrt(7)
    )
    # LSQ+, section 4: max |mu +- 3 sigma| / 2^(b - 1)
    mu, sigma = VALUES.mean(axis=1), VALUES.std(axis=1)
    expected = np.maximum(np.abs(mu - 3 * sigma), np.abs(mu + 3 * sigma)) / 8
    np.testing.assert_allclose(_start(quantizers.LsqPlusQuantizer, WEIGHT)[0], expected)
    best = _error(VALUES, ACTIVATION, *_start(quantizers.LsqPlusQuantizer, ACTIVATION))
    assert np.all(
        best
        <= 1.02 * _error(VALUES, ACTIVATION, *range_estimators.mse(Samples.of(VALUES), ACTIVATION))
    )
    # PACT: alpha = 10
    np.testing.assert_allclose(_start(quantizers.PactQuantizer, ACTIVATION)[0], 10 / 15)
    # DoReFa: weights in [-1, 1], activations in [0, 1]
    for spec in (WEIGHT, ACTIVATION):
        s, z = _start(quantizers.DoReFaQuantizer, spec, np.abs(VALUES))
        np.testing.assert_allclose(s * spec.qmax, 1.0)
        assert not z.any()
    # EWGS' code: u = 3 std for weights, 3 std / sqrt(1 - 2 / pi) and l = min for activations
    np.testing.assert_allclose(_start(quantizers.EwgsQuantizer, WEIGHT)[0] * 7, 3 * sigma)
    s, _ = _start(quantizers.EwgsQuantizer, ACTIVATION, np.abs(VALUES))
    np.testing.assert_allclose(s * 15, 3 * np.abs(VALUES).std(axis=1) / np.sqrt(1 - 2 / np.pi))


def test_dorefa_keeps_the_scale_of_trained_weights():
    s, z = _start(quantizers.DoReFaQuantizer, WEIGHT, estimator="mse")
    np.testing.assert_allclose(s, np.abs(VALUES).max(axis=1) / 7, rtol=1e-6)
    assert not z.any()


@pytest.mark.parametrize("axis", [0, 1])
def test_dorefa_starts_from_latent_weights_that_are_squashed_to_the_trained_ones(axis):
    quantizer = quantizers.DoReFaQuantizer(4, symmetric=True, narrow_range=True, axis=(axis,))
    weights = np.random.default_rng(0).normal(0, [0.01, 1.0, 30.0, 0.0], (50, 4)).astype(np.float32)
    weights = np.moveaxis(weights, 1, axis)
    latent = quantizer.latent(weights)
    assert np.isfinite(latent).all() and np.abs(latent).max() < 3.01
    step_size = np.abs(weights).max(axis=1 - axis, keepdims=True) / 7
    variables = {"step_size": tf.constant(step_size), "zero_point": tf.zeros_like(step_size)}
    restored = quantizer.unrounded(tf.constant(latent), variables).numpy()
    np.testing.assert_allclose(restored, weights, rtol=2e-4, atol=1e-6)


def test_an_estimator_may_be_a_function():
    wide = functools.partial(range_estimators.percentile, percent=99.99)
    expected = wide(Samples.of(VALUES), WEIGHT)
    np.testing.assert_array_equal(
        _start(quantizers.LsqQuantizer, WEIGHT, estimator=wide)[0], expected[0]
    )
    range_estimators.check_estimator("estimator", wide)
    for estimator in ("mean", None, 3):
        with pytest.raises(
            ValueError, match="estimator must be one of mse, min_max, percentile, paper"
        ):
            range_estimators.check_estimator("estimator", estimator)
