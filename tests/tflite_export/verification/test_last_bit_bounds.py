"""Bounds of the operators that need not be equal: what they are, that verification uses them, and
that it fails beyond them."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.tflite_export.kernels import kernel_cases as cases
from tests.tflite_export.kernels.test_lookup import EVERY_CODE, grids, unary
import tf_fpq
from tf_fpq.keras_compat import keras
import tflite_export
from tflite_export import deployed, kernels
from tflite_export.runtimes import litert
from tflite_export.verification import last_bit_bounds, report_html

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(0, 1, (32, 8, 8, 2)).astype(np.float32)
GATE, PRODUCT, SCORES = "gate_quantize", "product_quantize", "scores_quantize"


@functools.cache
def student() -> keras.Model:
    """A map that a sigmoid gates, and a softmax."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 2), name="image")
    x = layers.ReLU(name="relu")(layers.Conv2D(4, 3, padding="same", name="conv")(image))
    gate = layers.Activation("sigmoid", name="gate")(layers.Conv2D(4, 1, name="gate_conv")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Multiply(name="product")([x, gate]))
    scores = layers.Activation("softmax", name="scores")(layers.Dense(3, name="logits")(x))
    model = tf_fpq.quantize_model(
        keras.Model(image, scores, name="gated"), [tf_fpq.QuantRule(".*")]
    )
    tf_fpq.calibrate(model, IMAGES, verbose=0)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return tflite_export.export(student(), tmp_path_factory.mktemp("bounds") / "x.tflite")


def verify(exported, **arguments):
    arguments = {
        "kernels": ("xnnpack", "reference"),
        "tensor_images": 16,
        "verbose": 0,
        **arguments,
    }
    return tflite_export.verify(student(), exported, IMAGES, min_top1_agreement=0.5, **arguments)


def failure(exported, **arguments):
    with pytest.raises(tflite_export.VerificationError) as caught:
        verify(exported, **arguments)
    return caught.value


def shift(monkeypatch, kind, lsb, where):
    """Moves the twin's codes of an operator by `lsb` where its input codes (of its first input)
    meet a condition."""
    original = kernels.KERNELS[kind]

    def shifted(operator, tensors, rounding):
        kernel = original(operator, tensors, rounding)

        def run(*codes):
            found = kernel(*codes)
            return tf.clip_by_value(found + lsb * tf.cast(where(codes[0]), tf.int32), -128, 127)

        return run

    monkeypatch.setitem(kernels.KERNELS, kind, shifted)


def rare_code(exported):
    """A code that the sigmoid reads in less than 1 % of the cases on the whole and on the first
    images."""
    codes = exported.twin.codes(IMAGES)["gate_conv_quantize"].numpy()
    values, counts = np.unique(codes[:16], return_counts=True)
    whole = [np.mean(codes == value) for value in values]
    chosen = [
        v
        for v, n, share in zip(values, counts, whole, strict=True)
        if 0 < n < 0.006 * codes[:16].size and share < 0.006
    ]
    return chosen[len(chosen) // 2]


def test_the_table_names_kernels_and_kernel_sets():
    assert set(last_bit_bounds.BOUNDS) <= set(kernels.KERNELS)
    assert {name for sets in last_bit_bounds.BOUNDS.values() for name in sets} <= set(
        litert.KERNEL_SETS
    )
    assert "reference" not in last_bit_bounds.BOUNDS["SOFTMAX"]


def test_a_bound_is_of_size_and_share():
    bound = last_bit_bounds.Bound(lsb=1, share=0.01)
    assert (
        bound.allows(1000, 10, 1) and not bound.allows(1000, 11, 1) and not bound.allows(1000, 1, 2)
    )
    assert bound.allows(20, 1, 1) and not bound.allows(20, 2, 1)


@pytest.mark.parametrize("kind", last_bit_bounds.BOUNDS)
@pytest.mark.parametrize(
    ("kernel_set", "rounding"), [("xnnpack", "single"), ("reference", "double")]
)
def test_kernels_keep_their_bounds_on_every_code(kind, kernel_set, rounding):
    bound = last_bit_bounds.BOUNDS[kind].get(kernel_set, last_bit_bounds.Bound(0, 0.0))
    differing = total = 0
    for scales, zeros in grids(7, 10):
        fixed = kind in ("LOGISTIC", "SOFTMAX")
        model = unary(
            kind,
            (scales[0], 1 / 256 if fixed else scales[1]),
            (zeros[0], -128 if fixed else zeros[1]),
        )
        count, codes, worst = cases.mismatches(model, {"x": EVERY_CODE["int8"]}, rounding)
        assert worst <= bound.lsb
        differing, total = differing + count, total + codes
    assert differing <= bound.share * total


def test_what_is_behind_a_tensor_follows_from_the_operators():
    """Two branches, of which one has a bounded operator; both meet again."""
    pairs = (
        ("CONV_2D", ("x", "w"), "a"),
        ("LOGISTIC", ("a",), "gate"),
        ("RELU", ("x",), "b"),
        ("MUL", ("b", "gate"), "c"),
        ("SOFTMAX", ("c",), "y"),
    )
    operators = tuple(deployed.Operator(kind, inputs, (output,)) for kind, inputs, output in pairs)
    model = deployed.DeployedModel({}, operators, ("x",), ("y",))
    assert last_bit_bounds.behind(model, ["gate"]) == {"c", "y"}
    assert last_bit_bounds.behind(model, ["b", "c"]) == {"c", "y"}
    assert last_bit_bounds.behind(model, ["w"]) == {"a", "gate", "c", "y"}
    assert last_bit_bounds.behind(model, []) == last_bit_bounds.behind(model, ["y"]) == set()
    bound = last_bit_bounds.Bound(lsb=1, share=0.01)
    assert last_bit_bounds.of_tensors(model, "xnnpack") == {"gate": bound, "y": bound}
    assert last_bit_bounds.of_tensors(model, "reference") == {"gate": bound}
    assert last_bit_bounds.of_tensors(model, "builtin") == {}


def test_an_operator_runs_on_the_codes_that_it_is_given(exported):
    model, whole = exported.deployed, exported.twin.codes(IMAGES)
    assert last_bit_bounds.behind(model, [GATE]) >= {PRODUCT, SCORES}
    assert not {GATE, "relu_quantize"} & last_bit_bounds.behind(model, [GATE])
    index = next(i for i, o in enumerate(model.operators) if PRODUCT in o.outputs)
    same = exported.twin.run_operator(index, whole)
    other = exported.twin.run_operator(index, {**whole, GATE: whole[GATE].numpy() // 2})
    assert set(same) == {PRODUCT}
    np.testing.assert_array_equal(same[PRODUCT], whole[PRODUCT])
    assert np.any(other[PRODUCT] != whole[PRODUCT])


def test_the_report_shows_the_bounds_of_the_files_operators_only(exported, tmp_path):
    report = verify(exported)
    assert [(b.kind, b.kernels, b.lsb, b.share) for b in report.bounds] == [
        ("LOGISTIC", "xnnpack", 1, 0.01),
        ("LOGISTIC", "reference", 1, 0.01),
        ("SOFTMAX", "xnnpack", 1, 0.01),
    ]
    assert "LOGISTIC on xnnpack 1 LSB in at most 1% of the codes; LOGISTIC on reference" in str(
        report
    )
    assert "SOFTMAX on xnnpack 1 LSB" in report_html.render(report)
    assert tflite_export.Report.from_dict(report.to_dict()) == report
    image = keras.Input((8, 8, 2))
    plain = tf_fpq.quantize_model(
        keras.Model(image, layers.Conv2D(2, 1)(image)), [tf_fpq.QuantRule(".*")]
    )
    tf_fpq.calibrate(plain, IMAGES, verbose=0)
    file = tflite_export.export(plain, tmp_path / "plain.tflite")
    report = tflite_export.verify(plain, file, IMAGES, kernels=("xnnpack",), verbose=0)
    assert report.bounds == () and "Bounds" not in str(report)


def test_a_last_bit_of_a_sigmoid_is_within_its_bound(exported, monkeypatch):
    code = rare_code(exported)
    shift(monkeypatch, "LOGISTIC", 1, lambda x: x == code)
    report = verify(exported)
    for pair in (("twin", "xnnpack"), ("twin_double", "reference")):
        differing = {
            c.tensor: c.max_lsb for c in report.tensors if (c.left, c.right) == pair and c.differing
        }
        # The difference is real, and ends where it begins.
        assert differing == {GATE: 1}


def test_beyond_the_bound_the_sigmoid_is_named(exported, monkeypatch):
    code = rare_code(exported)
    with monkeypatch.context() as patch:
        shift(patch, "LOGISTIC", 2, lambda x: x == code)
        error = failure(exported)
        assert [(f.check, f.tensor) for f in error.report.failures] == [("twin", GATE)] * 2
        assert "by up to 2 LSB" in str(error) and "bound of LOGISTIC" in str(error)
    shift(
        monkeypatch, "LOGISTIC", 1, lambda x: x >= 0
    )  # the size is within the bound, the share is not
    assert {f.tensor for f in failure(exported).report.failures} == {GATE}


def test_what_is_behind_a_sigmoid_must_still_be_exact(exported, monkeypatch):
    code = rare_code(exported)
    shift(monkeypatch, "LOGISTIC", 1, lambda x: x == code)
    shift(monkeypatch, "MUL", 1, lambda x: tf.equal(x, tf.reduce_max(x)))
    assert {f.tensor for f in failure(exported).report.failures} == {PRODUCT}


def test_an_operator_without_a_bound_has_none(exported, monkeypatch):
    shift(monkeypatch, "MEAN", 1, lambda x: tf.reduce_max(x, [1, 2]) == tf.reduce_max(x))
    assert {f.tensor for f in failure(exported).report.failures} == {"pool_quantize"}


def test_a_softmax_has_its_bound_on_xnnpack_and_none_on_the_reference_kernels(
    exported, monkeypatch
):
    shift(
        monkeypatch, "SOFTMAX", 1, lambda x: tf.equal(x, tf.reduce_min(x))
    )  # one code of a batch, another one of suspects
    report = verify(exported, kernels=("xnnpack",))
    assert report.output("twin", "xnnpack").max_lsb == 1
    assert [(f.tensor, "reference" in f.message) for f in failure(exported).report.failures] == [
        (SCORES, True)
    ]


def test_without_tensors_nothing_clears_a_difference(exported, monkeypatch):
    shift(monkeypatch, "LOGISTIC", 20, lambda x: x == x)
    found = failure(exported, tensor_images=0).report
    assert {f.tensor for f in found.failures} == {SCORES} and found.output(
        "twin", "xnnpack"
    ).differing > 0
    assert {f.tensor for f in failure(exported).report.failures} == {GATE}
