"""Random nested models keep every bit when they are flattened, saved and loaded."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tests.tf_fpq.conversion.flat_models import assert_flat_and_equal, samples_of, scramble
from tf_fpq.keras_compat import keras

layers = keras.layers


@pytest.fixture(autouse=True)
def _fresh_names():
    keras.backend.reset_uids()


@st.composite
def _models(draw, depth: int = 3) -> keras.Model:
    """A functional or Sequential model on 4 features, with branches, sharing, operators and nested
    models."""
    if draw(st.booleans()):
        kinds = draw(
            st.lists(
                st.sampled_from(["dense", "norm", "relu", "model"]),
                min_size=1,
                max_size=3,
            )
        )
        return keras.Sequential(
            [keras.Input((4,)), *[draw(_blocks(kind, depth)) for kind in kinds]]
        )
    tensors, used = [keras.Input((4,))], []
    for kind in draw(
        st.lists(
            st.sampled_from(["dense", "norm", "model", "again", "pair", "scalar", "act"]),
            min_size=1,
            max_size=5,
        )
    ):
        x, y = draw(st.sampled_from(tensors)), draw(st.sampled_from(tensors))
        if kind == "pair":
            operator = draw(
                st.sampled_from(
                    [
                        lambda a, b: a + b,
                        lambda a, b: a - b,
                        lambda a, b: a * b,
                        tf.maximum,
                    ]
                )
            )
            tensors.append(operator(x, y))
        elif kind == "scalar":
            constant = draw(st.floats(0.125, 3.0, width=32))
            operator = draw(
                st.sampled_from(
                    [
                        lambda a, c: a + c,
                        lambda a, c: c - a,
                        lambda a, c: a * c,
                        lambda a, c: a / c,
                    ]
                )
            )
            tensors.append(operator(x, constant))
        elif kind == "act":
            tensors.append(draw(st.sampled_from([tf.nn.relu, tf.nn.relu6, tf.sigmoid, tf.abs]))(x))
        else:
            block = (
                draw(st.sampled_from(used))
                if kind == "again" and used
                else draw(_blocks(kind, depth))
            )
            used.append(block)
            tensors.append(block(x))
    return keras.Model(tensors[0], tensors[-1])


@st.composite
def _blocks(draw, kind: str, depth: int) -> keras.layers.Layer:
    name = draw(st.sampled_from(["body", "head", "tail"]))
    if kind == "model" and depth > 0:
        return draw(_models(depth=depth - 1))
    if kind == "norm":
        return layers.BatchNormalization()
    return (
        layers.ReLU()
        if kind == "relu"
        else layers.Dense(4, name=f"{name}_{keras.backend.get_uid(name)}")
    )


@hypothesis.given(_models())
@hypothesis.settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_random_nested_models(tmp_path_factory, model):
    _check_random(tmp_path_factory, model)


@pytest.mark.slow
@hypothesis.given(_models())
@hypothesis.settings(
    max_examples=200, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
def test_two_hundred_random_nested_models(tmp_path_factory, model):
    _check_random(tmp_path_factory, model)


def _check_random(tmp_path_factory, model: keras.Model) -> None:
    flat = assert_flat_and_equal(scramble(model))
    path = tmp_path_factory.mktemp("flat") / "flat.keras"
    flat.save(path)
    samples = samples_of(flat)
    np.testing.assert_array_equal(keras.models.load_model(path)(samples), flat(samples))
