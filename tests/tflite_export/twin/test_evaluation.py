import numpy as np
import pytest
import tensorflow as tf

from tests.tflite_export import small_student
from tests.tflite_export.verification import test_several_inputs as several
import tf_fpq
from tf_fpq.keras_compat import keras
import tflite_export
from tflite_export import exported_model
from tflite_export.runtimes import litert

IMAGES = small_student.images(96)
LABELS = (IMAGES.mean((1, 2)) @ np.array([[1, 0, -1, 0.5, 0.2], [0, 1, 0.3, -1, 0.4]])).argmax(-1)


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit(model, *callbacks, epochs=1, **arguments):
    keras.utils.set_random_seed(3)
    model.compile(keras.optimizers.SGD(0.05), loss(), metrics=["accuracy"])
    return model.fit(
        IMAGES, LABELS, 32, epochs=epochs, verbose=0, callbacks=list(callbacks), **arguments
    )


def of_file(student, path):
    """Accuracy and loss of the exported file on XNNPACK."""
    exported = tflite_export.export(student, path, round_biases=False)
    (codes,) = litert.Interpreter(exported.path).run(IMAGES).values()
    grid = exported.deployed.tensors[exported.deployed.outputs[0]]
    logits = litert.dequantize(codes, float(grid.scale), grid.zero_point)
    return (logits.argmax(-1) == LABELS).mean(), float(loss()(LABELS, logits))


@pytest.mark.parametrize("wrap", [lambda student: student, tf_fpq.QatModel])
def test_it_logs_what_the_file_scores_and_leaves_the_student_alone(tmp_path, wrap):
    plain, student = small_student.make_student(2, 3), small_student.make_student(2, 3)
    seen = []
    spy = keras.callbacks.LambdaCallback(on_epoch_end=lambda _, logs: seen.append(dict(logs)))
    fit(wrap(plain))
    history = fit(wrap(student), tflite_export.TwinEvaluation((IMAGES, LABELS)), spy).history
    accuracy, value = of_file(student, tmp_path / "x.tflite")
    assert history["val_twin_accuracy"] == [pytest.approx(accuracy)]
    assert history["val_twin_loss"] == [pytest.approx(value, rel=1e-5)]
    assert seen[0]["val_twin_accuracy"] == history["val_twin_accuracy"][0]
    for left, right in zip(plain.weights, student.weights, strict=True):
        np.testing.assert_array_equal(left, right)


def test_it_evaluates_some_epochs_of_a_dataset_with_the_models_own_metrics():
    student = small_student.make_student()
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(40)
    metric = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")
    student.compile("sgd", loss(), metrics=[metric])
    twin = tflite_export.TwinEvaluation(data, every=2, steps=1, rounding="double")
    history = student.fit(
        IMAGES, LABELS, epochs=3, verbose=0, callbacks=[twin], validation_data=data
    ).history
    assert len(history["val_twin_top2"]) == 2 and len(history["val_top2"]) == 3
    deployed = tflite_export.IntegerTwin(exported_model.deployed_model(student), "double")
    logits = deployed(IMAGES[:40])
    again = keras.metrics.sparse_top_k_categorical_accuracy(LABELS[:40], logits, 2)
    assert history["val_twin_top2"][-1] == pytest.approx(float(np.mean(again)))


def test_losses_by_output_name_reach_the_twin():
    student = several.quantized(several.network(), [several.STATE, several.IMAGE])
    student.compile("sgd", {name: "mse" for name in student.output_names}, loss_weights=[1.0, 1.0])
    x = [several.STATE, several.IMAGE]
    y = [np.zeros((several.COUNT, 3)), np.ones((several.COUNT, 2))]
    history = student.fit(
        x, y, epochs=1, verbose=0, callbacks=[tflite_export.TwinEvaluation((x, y))]
    ).history
    scores, position = tflite_export.IntegerTwin(exported_model.deployed_model(student))(x)
    found = [float(np.square(scores).mean()), float(np.square(position - 1).mean())]
    names = [f"val_twin_{name}_loss" for name in student.output_names]
    np.testing.assert_allclose([history[name][0] for name in names], found, rtol=1e-5)


@pytest.mark.parametrize("arguments", [{"every": 0}, {"batch_size": 0}, {"rounding": "half"}])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        tflite_export.TwinEvaluation((IMAGES, LABELS), **arguments)
