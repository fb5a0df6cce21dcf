"""Calibration of whole students; the estimators themselves are in test_estimators.py."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq import small_student
import tf_fpq
from tf_fpq.calibration import grids_from_images
from tf_fpq.keras_compat import keras
from tf_fpq.student_layers.quantized_layers import QuantizeActivation, QuantizedLayer

X = small_student.images()


def _student(quantizer="lsq", bits=4, network=small_student.network):
    keras.utils.set_random_seed(0)
    return tf_fpq.quantize_model(
        network(), [tf_fpq.QuantRule(weight_bits=bits, activation_bits=bits)], quantizer
    )


def _grids(student):
    layers = [layer for layer in student.layers if isinstance(layer, QuantizeActivation)]
    return {
        la.name: tuple(float(v) for v in la.quantizer.grid(la.variables_of_quantizer))
        for la in layers
    }


def _weight_steps(student):
    return [
        quantizer.grid(variables)[0].numpy().tobytes()
        for layer in student.layers
        if isinstance(layer, QuantizedLayer)
        for _, _, quantizer, variables in layer.quantized_weights()
    ]


def test_ranges_are_the_float_networks():
    model = small_student.network()
    student = tf_fpq.quantize_model(model, [tf_fpq.QuantRule()])
    tf_fpq.calibrate(student, X, estimator="min_max", verbose=0)
    relu = keras.Model(model.input, model.get_layer("stem_relu").output)(X).numpy()
    s, z = _grids(student)["stem_relu_quantize"]
    assert s == pytest.approx(relu.max() / 255, rel=1e-5) and z == 0
    logits = model(X).numpy()
    s, z = _grids(student)["logits_quantize"]
    width = max(logits.max(), 0) - min(logits.min(), 0)
    assert s == pytest.approx(width / 255, rel=1e-4)
    assert z == np.rint(255 - max(logits.max(), 0) / np.float32(s))


def test_arrays_and_datasets_and_batch_sizes_agree():
    results = []
    dataset = tf.data.Dataset.from_tensor_slices((X, small_student.labels())).batch(8)
    for images, batch_size in ((X, 64), (X, 5), (dataset, 64), (dataset.map(lambda x, y: x), 64)):
        student = _student()
        tf_fpq.calibrate(student, images, estimator="min_max", batch_size=batch_size, verbose=0)
        results.append(_grids(student))
    for result in results[1:]:
        for name, grid in result.items():
            np.testing.assert_allclose(grid, results[0][name], rtol=1e-5)


@pytest.mark.parametrize("quantizer", ["lsq", "lsq_plus", "pact", "dorefa", "ewgs", "min_max"])
def test_every_estimator_is_alive_for_every_quantizer(quantizer):
    student = _student(quantizer)
    weights, seen = _weight_steps(student), []
    for estimator in ("mse", "min_max", "percentile", "paper"):
        tf_fpq.calibrate(student, X, estimator=estimator, verbose=0)
        assert _weight_steps(student) == weights, "weights are left alone"
        seen.append(tuple(_grids(student).values()))
    # Min-max has no start but the data, and LSQ+ prescribes the least squared error for
    # activations.
    assert len(set(seen)) >= (3 if quantizer in ("min_max", "lsq_plus") else 4)
    steps = set()
    for estimator in ("mse", "min_max", "percentile", "paper"):
        tf_fpq.calibrate(student, X, weight_estimator=estimator, verbose=0)
        steps.add(tuple(_weight_steps(student)))
    # The range is all there is to estimate for weights of min-max, and for those that DoReFa
    # squashes into it.
    assert len(steps) == (3 if quantizer in ("min_max", "dorefa", "pact") else 4)


def test_own_estimator():
    student = _student()
    tf_fpq.calibrate(
        student, X, estimator=lambda samples, spec: (np.array([0.25]), np.array([3.0])), verbose=0
    )
    assert set(_grids(student).values()) == {(0.25, 3.0)}


def test_progress_bar(capsys):
    tf_fpq.calibrate(_student(), X, batch_size=16)
    assert "batch" in capsys.readouterr().out
    tf_fpq.calibrate(_student(), X, verbose=0)
    assert capsys.readouterr().out == ""


def test_dead_and_constant_tensors_are_named():
    with pytest.warns(UserWarning, match="were 0 for every calibration image: image_quantize"):
        tf_fpq.calibrate(_student(), X * 0, verbose=0)
    with pytest.warns(UserWarning, match="one and the same value everywhere.*: image_quantize"):
        tf_fpq.calibrate(_student(), X * 0 + 0.5, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "All batch norms")
        tf_fpq.calibrate(_student(), X, verbose=0)


def test_unmoved_ranges_are_named():
    def stay(samples, spec):
        return np.array([12 / spec.qmax]), np.array([round(spec.qmax / 2)])

    student = _student()
    assert len(grids_from_images.uncalibrated(student)) == len(_grids(student))
    with pytest.warns(
        UserWarning, match="still have the range they were made with: image_quantize"
    ):
        tf_fpq.calibrate(student, X, estimator=stay, verbose=0)
    tf_fpq.calibrate(student, X, verbose=0)
    assert grids_from_images.uncalibrated(student) == []


@pytest.mark.parametrize("quantizer", ["lsq", "lsq_plus", "ewgs", "min_max"])
def test_eight_bits_are_close_to_float_by_calibration_alone(quantizer):
    keras.utils.set_random_seed(3)
    model = small_student.network()
    student = tf_fpq.quantize_model(model, [tf_fpq.QuantRule()], quantizer)
    tf_fpq.calibrate(student, X, verbose=0)
    expected = model(X).numpy()
    assert np.abs(student(X) - expected).max() < 0.03 * np.ptp(expected)


def test_nothing_but_the_grids_changes():
    student = _student()
    before = {v.name: v.numpy() for v in student.variables}
    tf_fpq.calibrate(student, X, verbose=0)
    moved = {v.name for v in student.variables if not np.array_equal(before[v.name], v)}
    assert moved and all(
        "activation_step_size" in name or "activation_zero_point" in name for name in moved
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"images": X[:0]}, "images is empty"),
        ({"images": X * np.nan}, "NaN or infinity"),
        ({"images": X[:, :4]}, "images must have shape"),
        ({"images": 3}, "must be an array"),
        (
            {"images": X, "estimator": "mean"},
            "estimator must be one of mse, min_max, percentile, paper",
        ),
        ({"images": X, "weight_estimator": "mean"}, "weight_estimator must be one of"),
    ],
)
def test_bad_arguments_change_nothing(arguments, message):
    student = _student()
    before = small_student.bytes_of(student)
    with pytest.raises(ValueError, match=message):
        tf_fpq.calibrate(student, verbose=0, **arguments)
    assert small_student.bytes_of(student) == before


def test_models_without_quantizers_and_broken_weights():
    with pytest.raises(ValueError, match="has no activation quantizers"):
        tf_fpq.calibrate(small_student.network(), X)
    student = _student()
    kernel = student.get_layer("stem").layer.kernel
    kernel.assign(kernel * np.nan)
    with pytest.raises(ValueError, match="of layer 'stem' contains NaN"):
        tf_fpq.start_weights(student)


def test_batch_norms_that_never_saw_an_image_are_a_warning():
    image = keras.Input((4, 4, 2))
    model = keras.Model(
        image, keras.layers.BatchNormalization(name="norm")(keras.layers.Conv2D(2, 1)(image))
    )
    images = np.random.default_rng(0).normal(0, 1, (16, 4, 4, 2)).astype(np.float32)
    with pytest.warns(UserWarning, match="All batch norms have the statistics they were made with"):
        tf_fpq.calibrate(tf_fpq.quantize_model(model, [tf_fpq.QuantRule()]), images, verbose=0)
    model(images, training=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tf_fpq.calibrate(tf_fpq.quantize_model(model, [tf_fpq.QuantRule()]), images, verbose=0)
