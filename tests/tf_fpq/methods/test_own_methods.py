"""A method of one's own plugs in like those of the library: none is known by its class."""

import numpy as np
import tensorflow as tf

from tests.tf_fpq.small_student import LOSS, images, labels, pair
from tf_fpq import roles
from tf_fpq.keras_compat import keras
from tf_fpq.methods.base import Gradients, Method
from tf_fpq.methods.feature_perturbation import FeaturePerturbation
from tf_fpq.placement.training_graph import training_graph
from tf_fpq.training.qat_model import QatModel


class Doubled(Method):
    """Doubles what every convolution reads."""

    def rewrite(self, student, make):
        def doubled(call, args, kwargs):
            if roles.is_convolution(call.layer):
                args = (keras.layers.Rescaling(2.0)(args[0]), *args[1:])
            return make(call, args, kwargs)

        return doubled


class Elsewhere(Method):
    """Takes gradients at minus the weights."""

    def gradients(self, variables, compute):
        saved = [tf.identity(variable) for variable in variables]
        for variable, value in zip(variables, saved):
            variable.assign(-value)
        result = compute()
        for variable, value in zip(variables, saved):
            variable.assign(value)
        return result


class Signed(Method):
    """Keeps the signs of the gradients."""

    def gradients(self, variables, compute):
        predictions, values = compute()
        return Gradients(predictions, [tf.sign(value) for value in values])


def outputs(student, *methods, training=True):
    model = training_graph(student, [method.rewrite for method in methods])
    return model(images(), training=training)["predictions"].numpy()


def test_methods_that_rewrite_the_graph_compose_in_either_order():
    _, student = pair()

    def noise():
        return FeaturePerturbation(1.0, seed=3)

    plain = outputs(student)
    both = outputs(student, noise(), Doubled())
    np.testing.assert_array_equal(both, outputs(student, Doubled(), noise()))
    results = [plain, both, outputs(student, noise()), outputs(student, Doubled())]
    for index, one in enumerate(results):
        assert all((one != other).any() for other in results[index + 1 :])
    # The student itself stays as it is.
    np.testing.assert_array_equal(plain, student(images(), training=True))


def test_a_graph_of_ones_own_trains_in_a_qat_model():
    _, student = pair()
    layer = student.get_layer("stem").layer
    before = layer.kernel.numpy()
    model = QatModel(student, methods=[Doubled()])
    model.compile(keras.optimizers.SGD(0.1), loss=LOSS, run_eagerly=True)
    model.fit(images(), labels(), verbose=0)
    assert (layer.kernel.numpy() != before).any()


def test_methods_that_move_where_gradients_are_taken_compose():
    rate, x, y = 0.1, images(16), labels(16)
    _, reference = pair()
    weights = reference.trainable_weights
    start = [weight.numpy() for weight in weights]
    for weight in weights:
        weight.assign(-weight)
    with tf.GradientTape() as tape:
        loss = LOSS(y, reference(x, training=True))
    gradients = [gradient.numpy() for gradient in tape.gradient(loss, weights)]

    _, student = pair()
    model = QatModel(student, methods=[Elsewhere(), Signed()], step_size_learning_rate_factor=1.0)
    model.compile(keras.optimizers.SGD(rate), loss=LOSS, run_eagerly=True)
    model.fit(x, y, batch_size=16, verbose=0)
    compared = 0
    for weight, old, gradient in zip(student.trainable_weights, start, gradients, strict=True):
        clear = np.abs(gradient) > 1e-5  # where float rounding does not decide the sign
        compared += clear.sum()
        expected = (old - rate * np.sign(gradient))[clear]
        np.testing.assert_allclose(weight.numpy()[clear], expected, rtol=1e-6, atol=1e-7)
    assert compared > 200
