"""SFP: where the noise is, how much, how often, and where it is not."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.small_student import bytes_of, fit, images, pair
from tf_fpq.keras_compat import keras
from tf_fpq.methods.feature_perturbation import FeaturePerturbation, PerturbedInput
from tf_fpq.placement.training_graph import training_graph
from tf_fpq.training.qat_model import QatModel


def grid(student: keras.Model, name: str) -> float:
    layer = student.get_layer(name)
    return float(layer.quantizer.grid(layer.variables_of_quantizer)[0])


def views(student: keras.Model, perturbation: FeaturePerturbation) -> keras.Model:
    """Model whose outputs are what the convolutions read, and what those views were made of
    (`<name>_input`)."""
    graph = training_graph(student, perturbation)
    noisy = [layer for layer in graph.layers if isinstance(layer, PerturbedInput)]
    inputs = {f"{layer.name}_input": tf.nest.flatten(layer.input)[0] for layer in noisy}
    return keras.Model(graph.inputs, {**{layer.name: layer.output for layer in noisy}, **inputs})


@pytest.mark.parametrize("position", ["pre", "post"])
def test_every_convolution_is_perturbed_and_the_head_is_not(position):
    _, student = pair()
    model = views(student, FeaturePerturbation(1.0, position))
    assert {name for name in model.output if name.endswith("_sfp")} == {
        "stem_sfp",
        "depthwise_sfp",
        "pointwise_sfp",
    }


def test_post_noise_is_uniform_on_half_a_step_to_both_sides():
    _, student = pair()
    model = views(student, FeaturePerturbation(1.0, "post", seed=3))
    values = model(images(64), training=True)
    step = grid(student, "stem_relu_quantize")
    noise = (values["depthwise_sfp"] - values["depthwise_sfp_input"]).numpy().ravel() / step
    assert -0.5001 < noise.min() < -0.49 and 0.49 < noise.max() < 0.5001
    # 32,768 draws: the mean of U[-1/2, 1/2] has a standard error of 0.2887 / 181, its variance 1/12
    # one of 0.0745 / 181.
    assert abs(noise.mean()) < 4 * 0.2887 / 181
    assert abs(noise.var() - 1 / 12) < 4 * 0.0745 / 181


def test_pre_noise_is_stochastic_rounding_on_the_grid():
    _, student = pair()
    model = views(student, FeaturePerturbation(1.0, "pre", seed=3))
    values = model(images(64), training=True)
    layer, step = (
        student.get_layer("depthwise_relu_quantize"),
        grid(student, "depthwise_relu_quantize"),
    )
    noisy, raw = values["pointwise_sfp"].numpy(), values["pointwise_sfp_input"]
    clean, raw = layer(raw).numpy(), raw.numpy()
    np.testing.assert_allclose(noisy / step, np.round(noisy / step), atol=1e-4)
    assert np.abs(noisy - clean).max() <= step * 1.0001
    assert (noisy != clean).any()
    inside = (raw > step) & (raw < 14 * step)
    # E[round(v + U[-1/2, 1/2])] = v: unbiased where nothing clips.
    error = (noisy - raw)[inside] / step
    assert error.size > 1000
    assert abs(error.mean()) < 4 * 0.5 / np.sqrt(error.size)


@pytest.mark.parametrize("position", ["pre", "post"])
def test_a_residual_branch_sees_the_clean_tensor(position):
    _, student = pair()
    graph = training_graph(student, FeaturePerturbation(1.0, position, seed=0))
    skip, view = graph.get_layer("add").get_input_at(-1)[1], graph.get_layer("depthwise_sfp")
    source = tf.nest.flatten(view.input)[0]
    skip, noisy, source = keras.Model(graph.inputs, [skip, view.output, source])(
        images(), training=True
    )
    clean = student.get_layer("stem_relu_quantize")(source) if position == "pre" else source
    np.testing.assert_array_equal(skip, clean)
    assert (noisy != clean).numpy().any()


@pytest.mark.parametrize("position", ["pre", "post"])
def test_noise_changes_training_and_nothing_at_inference(position):
    _, student = pair()
    graph = training_graph(student, FeaturePerturbation(1.0, position))
    x = images()
    np.testing.assert_array_equal(
        graph(x, training=False)["predictions"], student(x, training=False)
    )
    assert np.abs(graph(x, training=True)["predictions"] - student(x, training=True)).max() > 0


@pytest.mark.parametrize("probability, seed", [(0.1, 5), (0.5, None)])
def test_gate_rate_and_independence_of_layers(probability, seed):
    _, student = pair()
    model = views(student, FeaturePerturbation(probability, "post", seed=seed))
    names = ["stem_sfp", "depthwise_sfp", "pointwise_sfp"]

    @tf.function
    def drawn(x):
        values = model(x, training=True)
        return tf.stack([tf.reduce_any(values[name] != values[f"{name}_input"]) for name in names])

    x = tf.constant(images(2))
    gates = np.array([drawn(x).numpy() for _ in range(1000)], float)
    sigma = np.sqrt(probability * (1 - probability) / len(gates))
    assert (np.abs(gates.mean(axis=0) - probability) < 4 * sigma).all()
    # Independent: the correlation of two layers' gates has a standard error of 1 / sqrt(1000).
    correlation = np.corrcoef(gates.T)[np.triu_indices(3, 1)]
    assert (np.abs(correlation) < 4 / np.sqrt(len(gates))).all()


def test_no_gradient_reaches_the_step_size_through_the_noise():
    _, student = pair()
    layer = student.get_layer("stem_relu_quantize")
    raw = tf.random.uniform([4, 8, 8, 8])
    step = layer.variables_of_quantizer["step_size"]

    def gradient(perturbation):
        keras.utils.set_random_seed(0)
        with tf.GradientTape() as tape:
            quantized = layer(raw)
            view = (
                quantized
                if perturbation is None
                else perturbation.perturb(quantized, layer, "here")
            )
            loss = tf.reduce_sum(view)
        return tape.gradient(loss, step).numpy()

    assert gradient(FeaturePerturbation(1.0, "post")) == gradient(None)


def test_seed_repeats_the_noise():
    def outputs(seed):
        keras.utils.set_random_seed(7)
        _, student = pair()
        return training_graph(student, FeaturePerturbation(1.0, seed=seed))(
            images(), training=True
        )["predictions"]

    np.testing.assert_array_equal(outputs(1), outputs(1))
    assert (outputs(1) != outputs(2)).numpy().any()


def test_probability_zero_is_plain_training_bit_for_bit():
    weights = []
    for methods in ([], [FeaturePerturbation(0.0)]):
        _, student = pair()
        fit(QatModel(student, methods=methods))
        weights.append(bytes_of(student))
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"probability": 1.5}, "probability must be between 0 and 1. Received: probability=1.5"),
        ({"probability": -0.1}, "Received: probability=-0.1"),
        ({"position": "mid"}, "position must be one of pre, post. Received: position='mid'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FeaturePerturbation(**arguments)


def test_config_makes_an_equal_method():
    method = FeaturePerturbation(0.3, "post", seed=4, name="noise")
    again = FeaturePerturbation.from_config(method.get_config())
    assert (again.probability, again.position, again.seed, again.name) == (0.3, "post", 4, "noise")
