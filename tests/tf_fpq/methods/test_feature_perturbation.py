"""SFP: where the noise is, how much, how often, and where it is not."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.small_student import LOSS, bytes_of, fit, images, labels, pair
import tf_fpq
from tf_fpq import callbacks, graph
from tf_fpq.keras_compat import keras
from tf_fpq.methods.feature_perturbation import FeaturePerturbation, PerturbedInput
from tf_fpq.methods.forks import Fork
from tf_fpq.methods.sharpness_aware import SharpnessAwareMinimization
from tf_fpq.native import tracing
from tf_fpq.placement.training_graph import training_graph
from tf_fpq.quantizers.min_max import MinMaxQuantizer
from tf_fpq.training.qat_model import QatModel


def grid(student: keras.Model, name: str) -> float:
    layer = student.get_layer(name)
    return float(layer.quantizer.grid(layer.variables_of_quantizer)[0])


def views(student: keras.Model, perturbation: FeaturePerturbation) -> keras.Model:
    """Model whose outputs are what the convolutions read, and what those views were made of
    (`<name>_input`)."""
    model = training_graph(student, [perturbation.rewrite])
    noisy = calls_of(model)
    inputs = {f"{name}_input": call.inputs[0] for name, call in noisy.items()}
    outputs = {name: call.outputs[0] for name, call in noisy.items()}
    return keras.Model(model.inputs, {**outputs, **inputs})


def calls_of(model: keras.Model) -> dict[str, graph.Call]:
    """The calls of `PerturbedInput` layers by name."""
    return {
        call.name: call for call in graph.calls(model) if isinstance(call.layer, PerturbedInput)
    }


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
    model = training_graph(student, [FeaturePerturbation(1.0, position, seed=0).rewrite])
    skip = next(call for call in graph.calls(model) if call.name == "add").inputs[1]
    view = calls_of(model)["depthwise_sfp"]
    skip, noisy, source = keras.Model(model.inputs, [skip, view.outputs[0], view.inputs[0]])(
        images(), training=True
    )
    clean = student.get_layer("stem_relu_quantize")(source) if position == "pre" else source
    np.testing.assert_array_equal(skip, clean)
    assert (noisy != clean).numpy().any()


@pytest.mark.parametrize("position", ["pre", "post"])
def test_noise_changes_training_and_nothing_at_inference(position):
    _, student = pair()
    model = training_graph(student, [FeaturePerturbation(1.0, position).rewrite])
    x = images()
    np.testing.assert_array_equal(
        model(x, training=False)["predictions"], student(x, training=False)
    )
    assert np.abs(model(x, training=True)["predictions"] - student(x, training=True)).max() > 0


@pytest.mark.parametrize("probability, seed", [(0.1, 5), (0.5, None)])
def test_gate_rate_and_independence_of_layers(probability, seed):
    _, student = pair()
    method = FeaturePerturbation(probability, "post", seed=seed)
    model = views(student, method)
    names = ["stem_sfp", "depthwise_sfp", "pointwise_sfp"]

    @tf.function
    def drawn(x):
        values = model(x, training=True)
        method.add_step_losses(None)
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
            if perturbation is not None:
                view = PerturbedInput(perturbation, layer, "here", None)
                noisy = view(quantized, training=True)
                assert (noisy != quantized).numpy().any()
                quantized = noisy
            loss = tf.reduce_sum(quantized)
        return tape.gradient(loss, step).numpy()

    assert gradient(FeaturePerturbation(1.0, "post")) == gradient(None)


def test_seed_repeats_the_noise():
    def outputs(seed):
        keras.utils.set_random_seed(7)
        _, student = pair()
        return training_graph(student, [FeaturePerturbation(1.0, seed=seed).rewrite])(
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


def test_a_schedule_raises_the_probability_from_zero():
    weights = []
    for highest in (0.0, 1.0):
        _, student = pair()
        noise = FeaturePerturbation(0.0, seed=1)
        schedule = callbacks.Schedule(noise, "probability", lambda done, p=highest: p)
        model = QatModel(student, methods=[noise])
        model.compile(keras.optimizers.SGD(0.05), loss=LOSS, run_eagerly=True)
        model.fit(images(), labels(), verbose=0, callbacks=[schedule])
        weights.append(bytes_of(student))
    assert weights[0] != weights[1]


def test_a_resumed_training_repeats_the_draws():
    def trainer():
        _, student = pair()
        model = QatModel(student, methods=[FeaturePerturbation(0.5)])
        model.compile(keras.optimizers.SGD(0.05), loss=LOSS, run_eagerly=True)
        return model

    def train(model):
        model.fit(images(), labels(), batch_size=16, shuffle=False, verbose=0)

    keras.utils.set_random_seed(1)
    whole = trainer()
    train(whole)
    middle = whole.get_weights()
    train(whole)
    keras.utils.set_random_seed(2)
    resumed = trainer()
    assert resumed.methods[0].seed is None
    resumed.set_weights(middle)
    train(resumed)
    assert bytes_of(resumed) == bytes_of(whole)
    assert whole.methods[0].key().numpy()[1] == 4  # passes: two epochs of two steps


def test_the_seed_follows_that_of_keras():
    keys = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(seed)
        keys.append(tuple(FeaturePerturbation().key().numpy()))
    assert keys[0] == keys[1] != keys[2]


def test_both_passes_of_sharpness_aware_minimization_draw():
    _, student = pair()
    noise = FeaturePerturbation(1.0, seed=0)
    model = QatModel(student, methods=[noise, SharpnessAwareMinimization()])
    model.compile(keras.optimizers.SGD(0.05), loss=LOSS, run_eagerly=True)
    model.fit(images(), labels(), batch_size=16, verbose=0)
    assert noise.key().numpy()[1] == 4  # two steps of two passes


def test_passes_and_places_draw_different_numbers_and_equal_ones_the_same():
    method = FeaturePerturbation(0.5, seed=7)
    like, step = tf.zeros([100]), tf.constant(1.0)
    key = method.key()
    first = method.noise(like, key, step, "a")
    np.testing.assert_array_equal(first, method.noise(like, key, step, "a"))
    compiled = tf.function(method.noise, jit_compile=True)
    np.testing.assert_array_equal(*(compiled(like, key, step, "a") for _ in range(2)))
    method.add_step_losses(None)
    for other in (
        method.noise(like, key, step, "b"),
        method.noise(like, method.key(), step, "a"),
        FeaturePerturbation(seed=8).noise(like, FeaturePerturbation(seed=8).key(), step, "a"),
    ):
        assert (first != other).numpy().all()


@pytest.mark.parametrize("position", ["pre", "post"])
def test_a_range_is_observed_once_in_a_step(position, monkeypatch):
    teacher, _ = pair()
    student = tf_fpq.quantize_model(teacher, [tf_fpq.QuantRule(".*")], quantizer="min_max")
    tf_fpq.calibrate(student, images(), verbose=0)
    model = training_graph(student, [FeaturePerturbation(1.0, position, seed=0).rewrite])
    seen = {}
    observe = MinMaxQuantizer._observe

    def counted(self, inputs, training, variables):
        name = variables["range_min"].name
        seen.setdefault(name, []).append(inputs.numpy())
        observe(self, inputs, training, variables)

    monkeypatch.setattr(MinMaxQuantizer, "_observe", counted)
    model(images(), training=True)
    assert len(seen) >= 8 and {len(tensors) for tensors in seen.values()} == {1}
    # What is observed of the first tensor are the images, without noise.
    np.testing.assert_array_equal(seen["image_quantize/activation_range_min:0"][0], images())


def test_noise_is_added_to_what_a_relu_returns_whether_it_is_left_out_or_not():
    _, student = pair()
    results = []
    for merge in (True, False):
        method = FeaturePerturbation(1.0, seed=3)
        model = training_graph(student, [method.rewrite], merge_relus=merge)
        assert ("stem_relu" in {layer.name for layer in model.layers}) != merge
        with tf.GradientTape() as tape:
            predictions = model(images(), training=True)["predictions"]
            loss = tf.reduce_sum(predictions**2)
        results.append([predictions, *tape.gradient(loss, student.trainable_weights)])
    for a, b in zip(*results):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_one_zero_stands_for_the_gradient_that_a_view_does_not_have(probability, monkeypatch):
    _, student = pair()

    def gradients() -> list[tf.Tensor]:
        model = training_graph(student, [FeaturePerturbation(probability, seed=3).rewrite])
        assert any(isinstance(layer, Fork) for layer in model.layers)

        @tf.function
        def run(x: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(x, training=True)["predictions"] ** 2)
            return tape.gradient(loss, student.trainable_weights)

        return run(images())

    ours = gradients()
    # Where there is a GPU or XLA, zeros are tensors of their own.
    monkeypatch.setattr(tracing, "on_cpu_kernels", lambda: False)
    for a, b in zip(ours, gradients(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())
