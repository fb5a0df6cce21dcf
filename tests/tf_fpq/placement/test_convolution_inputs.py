"""Convolutions behind joins, padding and pooling have a view of their own of what they read."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.small_student import images
import tf_fpq
from tf_fpq import graph
from tf_fpq.keras_compat import keras
from tf_fpq.methods.feature_perturbation import FeaturePerturbation, PerturbedInput
from tf_fpq.placement.training_graph import training_graph

layers = keras.layers


def conv(x, name, size=1, activation="relu", **arguments):
    return layers.Conv2D(4, size, padding="same", activation=activation, name=name, **arguments)(x)


def inception(x):
    """Branches on a joined tensor, one of them behind a pooling; the next join is read by a padded
    convolution, a pooled one and a sum."""
    joined = layers.Concatenate(name="join")([conv(x, "a"), conv(x, "b", 3)])
    pooled = layers.MaxPooling2D(2, 1, "same", name="pool")(joined)
    joined = layers.Concatenate(name="join2")([conv(joined, "c"), conv(pooled, "d")])
    padded = layers.Conv2D(8, 3, name="e")(layers.ZeroPadding2D(1, name="pad")(joined))
    return layers.Add(name="sum")([padded, joined])


def densenet(x):
    for name in "abc":
        x = layers.Concatenate(name=f"join_{name}")([x, conv(x, name, 3)])
    return layers.Add(name="sum")([conv(x, "d"), conv(x, "e")])


def unet(x):
    """The skip tensor goes through a Dropout, so it is on no grid in training."""
    skip = conv(x, "down", 3)
    deep = conv(layers.MaxPooling2D(name="pool")(skip), "deep", 3)
    up = layers.UpSampling2D(name="up")(deep)
    joined = layers.Concatenate(name="join")([layers.Dropout(0.5, name="drop")(skip), up])
    return layers.Add(name="sum")([conv(joined, "merge", 3), conv(up, "side")])


def selected(x):
    joined = layers.Maximum(name="largest")([conv(x, "a"), conv(x, "b", 3)])
    lowest = layers.Minimum(name="lowest")([joined, x])
    return layers.Add(name="sum")([conv(lowest, "c"), joined])


def student_of(block, bits=4, **rule):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = block(conv(image, "stem", 3))
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    model = keras.Model(image, layers.Dense(4, name="logits")(x))
    rule = {"weight_bits": bits, "activation_bits": bits, **rule}
    student = tf_fpq.quantize_model(model, [tf_fpq.QuantRule(".*", **rule)])
    if rule["activation_bits"]:
        tf_fpq.calibrate(student, images(), verbose=0)
    return student


def views(model):
    calls = [call for call in graph.calls(model) if isinstance(call.layer, PerturbedInput)]
    return {call.name: call for call in calls}


@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize(
    ("block", "convolutions"),
    [
        (inception, "stem a b c d e"),
        (densenet, "stem a b c d e"),
        (selected, "stem a b c"),
        (unet, "stem down deep merge merge_1 side"),
    ],
)
def test_noise_is_on_the_convolutions_own_view_and_others_read_the_clean_tensor(
    block, convolutions, position
):
    student = student_of(block)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = training_graph(student, [FeaturePerturbation(1.0, position, seed=1).rewrite])
    found = views(model)
    assert set(found) == {f"{name}_sfp" for name in convolutions.split()}
    for name, call in found.items():
        view = call.layer
        if view.join is None and position == "pre":
            # The only reader of a quantizer: nothing else can see the noise.
            continue
        *raw, clean = call.inputs
        noisy, clean, *raw = keras.Model(model.inputs, [call.outputs[0], clean, *raw])(
            images(64), training=True
        )
        step = float(view.quantize.quantizer.grid(view.quantize.variables_of_quantizer)[0])
        difference = (noisy - clean).numpy() / step
        if position == "post":
            assert -0.501 < difference.min() < -0.49 and 0.49 < difference.max() < 0.501, name
            continue
        codes = noisy.numpy() / step
        np.testing.assert_allclose(codes, np.round(codes), atol=1e-3, err_msg=name)
        assert (difference != 0).any() and np.abs(difference).max() < 1.001, name
        # Stochastic rounding: right on average inside the range, also behind a maximum.
        raw = tf.nn.relu(view.join(raw)).numpy() / step
        inside = (raw > 1) & (raw < 14) & (np.abs(codes) < 14.5)
        error = (codes - raw)[inside]
        assert abs(error.mean()) < 5 * 0.5 / np.sqrt(error.size), name
    # Sums read what they read in the student.
    add = next(call for call in graph.calls(model) if call.name == "sum")
    sources = [graph.producer(tensor) for tensor in add.inputs]
    assert not any(isinstance(source, PerturbedInput) for source in sources)


def test_padding_is_not_perturbed():
    student = student_of(inception)
    model = training_graph(student, [FeaturePerturbation(1.0, "post", seed=1).rewrite])
    call = next(call for call in graph.calls(model) if call.name == "e")
    padded = keras.Model(model.inputs, call.inputs[0])(images(4), training=True).numpy()
    assert (padded[:, 0] == 0).all() and (padded[:, :, -1] == 0).all()
    assert (padded[:, 1:-1, 1:-1] != 0).any()


def test_a_join_behind_a_dropout_keeps_the_dropouts_scale():
    student = student_of(unet)
    model = training_graph(student, [FeaturePerturbation(1.0, seed=1).rewrite])
    call = next(call for call in graph.calls(model) if call.name == "merge")
    skip = keras.Model(model.inputs, call.inputs[0])(images(64), training=True)[..., :4]
    drop = next(call for call in graph.calls(student) if call.name == "drop")
    layer = graph.producer(drop.inputs[0])
    step = float(layer.quantizer.grid(layer.variables_of_quantizer)[0])
    codes = skip.numpy() / step
    # Kept values are doubled, so their codes are even; the grid has 16 and these reach beyond.
    np.testing.assert_allclose(codes / 2, np.round(codes / 2), atol=1e-3)
    assert codes.max() > 15.5


def test_one_warning_names_the_convolutions_that_no_noise_reaches():
    student = student_of(inception, activation_bits=None)
    with pytest.warns(UserWarning) as caught:
        training_graph(student, [FeaturePerturbation(1.0).rewrite])
    assert len(caught) == 1
    assert str(caught[0].message).startswith(
        "sfp does not reach these convolutions, because no quantizer holds what they read: stem, a,"
        " b, c, d and 1 more."
    )
