"""ADD, SUB, MUL, MAXIMUM, MINIMUM of the twin against the interpreter, on every pair of codes."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tflite_export.kernels import kernel_cases as cases
from tflite_export.twin import integer_twin as twin_lib

# Scales of a, b, y: alike, spread, far apart.
SCALES = [
    (0.05, 0.05, 0.05),
    (0.05, 0.02, 0.09),
    (1.0, 2.0**-6, 0.7),
    (2.0**-6, 3.1, 2.0**-4),
    (0.5, 0.25, 1.0),
]


def every_pair() -> dict[str, np.ndarray]:
    """All 65,536 pairs of int8 codes, as two tensors of shape [256, 256]."""
    a, b = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128))
    return {"a": a.astype(np.int8), "b": b.astype(np.int8)}


def binary(kind, scales, zeros=(-11, 4, 23), **options):
    a, b, y = (
        cases.activation(n, (1, 256), s, z)
        for n, s, z in zip(("a", "b", "y"), scales, zeros, strict=True)
    )
    return cases.one_operator(kind, [a, b], y, **options)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("kind", ["ADD", "SUB"])
def test_add_and_sub_are_exact_on_every_pair(kind, scales):
    cases.assert_exact(binary(kind, scales), every_pair())


def test_random_adds_are_exact():
    rng = np.random.default_rng(0)
    for _ in range(12):
        scales = 2.0 ** rng.uniform(-3, 3, 3)
        zeros = rng.integers(-128, 128, 3)
        model = binary(
            "ADD",
            scales,
            [int(z) for z in zeros],
            activation=str(rng.choice(["NONE", "RELU", "RELU6"])),
        )
        cases.assert_exact(model, every_pair())


@pytest.mark.parametrize(
    "scales", [(0.05, 0.02, 0.001), (0.05, 0.02, 0.013), (1.0, 2.0**-6, 0.5), (0.5, 0.5, 0.25)]
)
def test_mul_is_exact_on_every_pair(scales):
    cases.assert_exact(binary("MUL", scales), every_pair())


def test_the_reference_multiplier_is_divided_in_float32():
    # 18161 times its float64 quotient and times its float32 quotient lie on two sides of a tie of
    # the second rounding.
    cases.assert_exact(
        binary("MUL", (0.030846938490867615, 0.00390625, 0.018011486157774925), (0, -128, -3)),
        every_pair(),
    )


def test_random_muls_are_exact():
    rng = np.random.default_rng(0)
    for _ in range(12):
        a, b, ratio = 2.0 ** rng.uniform([-8, -8, -10], [0, 0, -4])
        cases.assert_exact(
            binary("MUL", (a, b, a * b / ratio), [int(z) for z in rng.integers(-128, 128, 3)]),
            every_pair(),
        )


@pytest.mark.parametrize(
    ("kind", "scales"),
    [
        ("ADD", (1e-4, 2.0, 1.9)),
        ("SUB", (0.9, 0.1, 0.003)),
        ("MUL", (1e-7, 0.5, 0.9)),
        ("MUL", (0.9, 0.7, 0.002)),
    ],
)
def test_refuses_scales_outside_xnnpack_limits(kind, scales):
    with pytest.raises(ValueError, match=f"{kind} -> 'y'.*XNNPACK's limits"):
        twin_lib.IntegerTwin(binary(kind, scales))


@pytest.mark.parametrize("activation", ["RELU", "RELU6", "RELU_N1_TO_1"])
@pytest.mark.parametrize("kind", ["ADD", "SUB", "MUL"])
def test_fused_activations_are_exact(kind, activation):
    cases.assert_exact(
        binary(kind, (0.05, 0.06, 0.08), (-11, 4, -20), activation=activation), every_pair()
    )


@pytest.mark.parametrize("kind", ["ADD", "SUB", "MUL"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 6), (1, 5, 4, 1), (1,)])
@pytest.mark.parametrize("first", [False, True])
def test_broadcast_constants_are_exact(kind, shape, first):
    """Squeeze-and-excite factors, `x + 1`, `1 - x`: a constant on either side, broadcast in any
    axis."""
    rng = np.random.default_rng(1)
    x = cases.activation("a", (1, 5, 4, 6), 0.04, -9)
    constant = cases.constant(
        "b", rng.integers(-128, 128, shape).astype(np.int8), 0.03, zero_point=7
    )
    output = cases.activation("y", (1, 5, 4, 6), 0.02 if kind == "MUL" else 0.06, 3)
    model = cases.one_operator(kind, [constant, x] if first else [x, constant], output)
    cases.assert_exact(model, cases.random_codes(rng, model, 40))


def test_broadcast_activations_are_exact():
    rng = np.random.default_rng(2)
    inputs = [
        cases.activation("a", (1, 5, 4, 6), 0.04, -9),
        cases.activation("b", (1, 1, 1, 6), 1 / 256, -128),
    ]
    model = cases.one_operator("MUL", inputs, cases.activation("y", (1, 5, 4, 6), 0.03, -9))
    cases.assert_exact(model, cases.random_codes(rng, model, 40))


@pytest.mark.parametrize(
    ("kind", "single", "double"),
    [("ADD", [4, -2, 127, -128], [4, -3, 127, -128]), ("SUB", [0, 1, 1, 1], [-1, 1, 1, 1])],
)
def test_a_tie_of_a_sum_goes_upward_or_away_from_zero(kind, single, double):
    """`(a +- b) / 2` on equal scales."""
    model = binary(kind, (0.5, 0.5, 1.0), (0, 0, 0))
    a = tf.constant([[4, -3, 127, -128]])
    b = tf.constant([[3, -2, 127, -128]]) if kind == "ADD" else a + tf.constant([[1, -1, -1, -1]])
    for rounding, expected in (("single", single), ("double", double)):
        assert cases.kernel_of(model, rounding)(a, b).numpy().tolist() == [expected]


def test_operands_at_the_limits_of_their_scales_are_exact():
    for kind, scales in (
        ("ADD", (2.0**-10, 1.0, 1.0)),
        ("SUB", (1.0, 2.0**-10, 1.0)),
        ("ADD", (255.9, 255.9, 1.0)),
        ("SUB", (2.0**-10, 2.0**-10, 1.0)),
        ("MUL", (2.0**-8, 2.0**-8, 1.0)),
        ("MUL", (15.9, 16.0, 1.0)),
    ):
        cases.assert_exact(binary(kind, scales), every_pair())


@pytest.mark.parametrize("kind", ["MAXIMUM", "MINIMUM"])
def test_extrema_are_exact(kind):
    model = binary(kind, (0.05,) * 3, (-11,) * 3)
    cases.assert_exact(model, every_pair())
    clip = cases.constant("b", np.array([-3], np.int8), 0.05, zero_point=-11)
    model = cases.one_operator(kind, [model.tensors["a"], clip], model.tensors["y"])
    cases.assert_exact(model, {"a": every_pair()["a"]})


@pytest.mark.parametrize(
    ("scales", "zeros"), [((0.05, 0.05, 0.06), (0, 0, 0)), ((0.05, 0.05, 0.05), (0, 0, 1))]
)
def test_extrema_need_one_grid(scales, zeros):
    with pytest.raises(ValueError, match=r"MAXIMUM -> 'y'.*requantize first"):
        twin_lib.IntegerTwin(binary("MAXIMUM", scales, zeros))
