"""What the training graph leaves out changes nothing."""

import numpy as np
import tensorflow as tf

from tests.tf_fpq.small_student import images, pair
from tf_fpq.placement.training_graph import training_graph
from tf_fpq.student_layers.quantized_layers import QuantizeActivation


def test_a_relu_before_a_quantizer_that_clips_at_zero_is_left_out_bit_for_bit():
    _, student = pair()
    merged, plain = training_graph(student), training_graph(student, merge_relus=False)
    left_out = {layer.name for layer in plain.layers} - {layer.name for layer in merged.layers}
    assert left_out == {"stem_relu", "add_relu"}  # ReLU6 clips at 6 as well, so it stays
    results = []
    for graph in (merged, plain):
        with tf.GradientTape() as tape:
            outputs = graph(images(), training=True)["predictions"]
            loss = tf.reduce_sum(outputs**2)
        results.append([outputs, *tape.gradient(loss, student.trainable_weights)])
    for a, b in zip(*results):
        np.testing.assert_array_equal(a, b)


def test_a_relu_that_is_shown_or_has_a_zero_point_stays():
    _, student = pair()
    graph = training_graph(student, shown=["stem_relu"])
    assert graph(images(), training=True)["features"]["stem_relu"].numpy().min() == 0.0
    layer = student.get_layer("stem_relu_quantize")
    assert isinstance(layer, QuantizeActivation)
    layer.variables_of_quantizer["zero_point"].assign(3.0)
    assert "stem_relu" in {layer.name for layer in training_graph(student).layers}
