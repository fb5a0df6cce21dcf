"""Arguments of functions and classes, and fields of an experiment."""

import functools

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf

from experiments.config import Config
from tests.bad_inputs.checks import refuses
from tests.tf_fpq.small_student import LOSS, images, network
from tests.tflite_export import small_student
import tf_fpq
from tf_fpq import quantizers
from tf_fpq.keras_compat import keras
import tflite_export

NAN = float("nan")
RULES = [tf_fpq.QuantRule()]
FEW = small_student.images(8)


class Subclassed(keras.Model):
    """A model without a graph."""

    def call(self, x):
        return x


def quantize(**arguments):
    return lambda m: tf_fpq.quantize_model(m.teacher, **{"rules": RULES, **arguments})


def rule(*arguments, **more):
    return lambda m: tf_fpq.QuantRule(*arguments, **more)


def trainer(*methods, teacher=True, **arguments):
    def make(m):
        found = m.teacher if teacher is True else teacher
        return tf_fpq.QatModel(m.student, found, list(methods), **arguments)

    return make


def compiled(optimizer, loss=LOSS):
    return lambda m: tf_fpq.QatModel(m.student).compile(optimizer, loss)


def made_by(function, *arguments, **more):
    return lambda m: function(*arguments, **more)


def calibrate(**arguments):
    return lambda m: tf_fpq.calibrate(m.student, images(), verbose=0, **arguments)


def export(**arguments):
    return lambda m: tflite_export.export(m.small, m.folder / "never.tflite", **arguments)


def verify(**arguments):
    return lambda m: tflite_export.verify(m.small, m.exported, FEW, verbose=0, **arguments)


def compare(**arguments):
    return lambda m: tflite_export.compare_files(m.tflite, m.tflite, verbose=0, **arguments)


def config(**fields):
    return lambda m: Config(**fields)


LIBRARY = {
    "model None": (lambda m: tf_fpq.quantize_model(None, RULES), "model must be a Keras model"),
    "model text": (lambda m: tf_fpq.quantize_model("resnet", RULES), "model must be a Keras model"),
    "model subclassed": (
        lambda m: tf_fpq.quantize_model(Subclassed(), RULES),
        "Functional|functional",
    ),
    "a student again": (
        lambda m: tf_fpq.quantize_model(m.student, RULES),
        "model must be a float network",
    ),
    "rules number": (quantize(rules=8), "rules must be a list of QuantRule"),
    "rules text": (quantize(rules="stem=W8A8"), "rules must be a list of QuantRule"),
    "rules dict": (quantize(rules={"stem": 8}), "rules must be a list of QuantRule"),
    "rule idle": (quantize(rules=[tf_fpq.QuantRule("stam")]), "match no layer with a kernel"),
    "quantizer name": (quantize(quantizer="lsqq"), "quantizer.*lsq"),
    "quantizer number": (quantize(quantizer=4), "quantizer"),
    "weight bits 1": (rule(weight_bits=1), "weight_bits must be an integer from 2 to 8"),
    "weight bits 9": (rule(weight_bits=9), "weight_bits must be an integer from 2 to 8"),
    "weight bits 2.5": (rule(weight_bits=2.5), "weight_bits must be an integer"),
    "weight bits text": (rule(weight_bits="4"), "weight_bits must be an integer"),
    "activation bits 0": (rule(activation_bits=0), "activation_bits must be an integer"),
    "pattern": (rule("stem("), "pattern must be a regular expression"),
    "layer type": (rule(layer_type=3), "layer_type must be a class, its name or None"),
    "per channel": (rule(per_channel="yes"), "per_channel must be True, False or None"),
    "config": (rule(config=3), "config must be an instance of a QuantizeConfig"),
    "estimator": (calibrate(estimator="mean"), "estimator must be one of"),
    "weight estimator": (calibrate(weight_estimator="mean"), "weight_estimator must be one of"),
    "calibration batch 0": (calibrate(batch_size=0), "batch_size must be at least 1"),
    "float to calibrate": (
        lambda m: tf_fpq.calibrate(m.teacher, images(), verbose=0),
        "no quantizers|quantize_model",
    ),
    "percent 50": (
        lambda m: quantizers.range_estimators.percentile(np.ones(3), None, percent=50),
        "percent must be above 50",
    ),
    "momentum 1": (
        made_by(quantizers.MinMaxQuantizer, 8, momentum=1.0),
        "momentum must be at least 0 and below 1",
    ),
    "delta": (made_by(quantizers.EwgsQuantizer, 4, delta=-1.0), "delta must not be negative"),
    "delta nan": (made_by(quantizers.EwgsQuantizer, 4, delta=NAN), "delta must not be negative"),
    "l2": (made_by(quantizers.PactQuantizer, 4, l2=-1.0), "l2 must not be negative"),
    "checked None": (lambda m: tf_fpq.check(None), "model must be a Keras model"),
    "summary None": (lambda m: tf_fpq.summary(None), "model must be a functional tf_keras"),
}

TRAINING = {
    "no teacher": (trainer(*tf_fpq.fpq(), teacher=None), "teacher must be given: csd"),
    "methods text": (trainer("fpq"), "methods must be tf_fpq methods"),
    "methods twice": (trainer(*tf_fpq.fpq(), *tf_fpq.fpq()), "at most one of each class"),
    "factor 0": (trainer(step_size_learning_rate_factor=0.0), "factor must be positive"),
    "factor negative": (trainer(step_size_learning_rate_factor=-1.0), "factor must be positive"),
    "factor nan": (trainer(step_size_learning_rate_factor=NAN), "factor must be positive"),
    "teacher dtype": (
        trainer(*tf_fpq.fpq(), teacher_dtype="float64"),
        "teacher_dtype must be one of",
    ),
    "cache for nothing": (trainer(cache_teacher=True), "cache_teacher=True needs a method"),
    "teacher text": (
        trainer(*tf_fpq.fpq(), teacher="float.keras"),
        "teacher must be a Keras model",
    ),
    "teacher of other classes": (
        lambda m: trainer(tf_fpq.KnowledgeDistillation(), teacher=network(classes=7))(m),
        "output must have the shape of the student's",
    ),
    "teacher of other layers": (
        lambda m: trainer(
            tf_fpq.ChannelStandardizedDistillation(), teacher=small_student.float_model()
        )(m),
        "depthwise|pointwise|project",
    ),
    "student None": (lambda m: tf_fpq.QatModel(None), "student must be a model"),
    "probability 1.5": (made_by(tf_fpq.FeaturePerturbation, 1.5), "between 0 and 1"),
    "probability nan": (made_by(tf_fpq.FeaturePerturbation, NAN), "between 0 and 1"),
    "position": (made_by(tf_fpq.FeaturePerturbation, position="mid"), "position must be one of"),
    "noise seed": (made_by(tf_fpq.FeaturePerturbation, seed=-1), "seed must be from 0"),
    "csd weight": (
        made_by(tf_fpq.ChannelStandardizedDistillation, -1.0),
        "weight must not be negative",
    ),
    "csd weight nan": (
        made_by(tf_fpq.ChannelStandardizedDistillation, NAN),
        "weight must not be negative",
    ),
    "csd epsilon": (
        made_by(tf_fpq.ChannelStandardizedDistillation, epsilon=NAN),
        "epsilon must be positive",
    ),
    "temperature 0": (
        made_by(tf_fpq.KnowledgeDistillation, temperature=0.0),
        "temperature must be positive",
    ),
    "temperature nan": (
        made_by(tf_fpq.KnowledgeDistillation, temperature=NAN),
        "temperature must be positive",
    ),
    "decay 1": (
        made_by(tf_fpq.ConsistencyRegularization, decay=1.0),
        "decay must be at least 0 and below 1",
    ),
    "decay nan": (
        made_by(tf_fpq.ConsistencyRegularization, decay=NAN),
        "decay must be at least 0 and below 1",
    ),
    "divergence": (
        made_by(tf_fpq.ConsistencyRegularization, divergence="js2"),
        "divergence must be one of",
    ),
    "ramp up": (
        made_by(tf_fpq.ConsistencyRegularization, ramp_up=-1),
        "ramp_up must not be negative",
    ),
    "latent layer": (
        trainer(tf_fpq.ConsistencyRegularization(latent_weight=1.0, latent_layer="nowhere")),
        "latent_layer must be a layer of the student",
    ),
    "rho": (made_by(tf_fpq.SharpnessAwareMinimization, NAN), "rho must not be negative"),
    "dampening": (made_by(tf_fpq.OscillationDampening, -1.0), "weight must not be negative"),
    "freezing": (made_by(tf_fpq.OscillationFreezing, NAN), "threshold must not be negative"),
    "freezing momentum": (
        made_by(tf_fpq.OscillationFreezing, momentum=0.0),
        "momentum must be above 0",
    ),
    "method name": (made_by(tf_fpq.methods_from_names, "fqp"), "methods must be out of"),
    "preset": (made_by(tf_fpq.fpq, "best"), "preset must be one of tuned, paper"),
    "coefficient": (
        lambda m: tf_fpq.FeaturePerturbation().set_coefficient("rate", 1.0),
        "has the coefficients",
    ),
    "optimizer of Keras 3": (
        compiled(keras3.optimizers.SGD(0.1)),
        "optimizer must be a name or one of tf_keras",
    ),
    "saved as h5": (lambda m: m.trainer.save("x.h5"), "filepath must end in .keras"),
    "loaded from a student": (
        lambda m: tf_fpq.QatModel.load(m.folder / "student.keras"),
        "path must be a file of a QatModel",
    ),
    "shift": (made_by(tf_fpq.WeakAugmentation, shift=2.0), "shift must be between 0 and 1"),
    "cutout nan": (made_by(tf_fpq.StrongAugmentation, cutout=NAN), "cutout must be between"),
    "operations": (made_by(tf_fpq.StrongAugmentation, operations=-1), "operations must not be"),
    "views without labels": (
        lambda m: tf_fpq.two_views(tf.data.Dataset.from_tensor_slices(images()).batch(8)),
        "labeled must hold batches",
    ),
    "views of single images": (
        lambda m: tf_fpq.two_views(tf.data.Dataset.from_tensor_slices((images(), images()))),
        "labeled must hold batches of images",
    ),
}

EXPORT = {
    "export a float model": (
        lambda m: tflite_export.export(m.teacher, m.folder / "never.tflite"),
        "quant",
    ),
    "export None": (
        lambda m: tflite_export.export(None, m.folder / "never.tflite"),
        "student must be a model from tf_fpq.quantize_model",
    ),
    "export a trainer": (
        lambda m: tflite_export.export(m.trainer, m.folder / "never.tflite"),
        "export its `.student` instead",
    ),
    "input type": (export(input_type="int4"), "input_type must be one of"),
    "output type": (export(output_type="float16"), "output_type must be one of"),
    "weights": (export(weights="int2"), "weights must be 'int8' or 'int4'"),
    "target": (export(target="ios"), "target must be one of"),
    "labels count": (export(labels=["a", "b"]), "labels must be one per class, 5"),
    "labels text": (export(labels="abcde"), "labels must be a list of strings"),
    "labels numbers": (export(labels=[1, 2, 3, 4, 5]), "labels must be a list of strings"),
    "labels lines": (export(labels=["a", "b\nc", "d", "e", "f"]), "A label is one line of text"),
    "normalization alone": (export(normalization=127.5), "must be a pair"),
    "normalization std 0": (export(normalization=(0.0, 0.0)), "one positive number"),
    "normalization nan": (export(normalization=(NAN, 1.0)), "mean of the normalization"),
    "normalization channels": (export(normalization=([1, 2, 3], 1.0)), "one per channel"),
    "kernels unknown": (verify(kernels=("gpu",)), "kernels must be some of"),
    "kernels none": (verify(kernels=()), "kernels must be some of"),
    "kernels text": (verify(kernels="xnnpack"), "kernels must be some of"),
    "agreement nan": (verify(min_top1_agreement=NAN), "min_top1_agreement must be a share"),
    "agreement 1.5": (verify(min_top1_agreement=1.5), "min_top1_agreement must be a share"),
    "agreement -1": (verify(min_top1_agreement=-1), "min_top1_agreement must be a share"),
    "twin codes -1": (verify(max_twin_codes=-1), "max_twin_codes must not be negative"),
    "student lsb -1": (verify(max_student_lsb=-1), "max_student_lsb must not be negative"),
    "tensor images -1": (verify(tensor_images=-1), "tensor_images must not be negative"),
    "reference images": (verify(reference_images=-1), "reference_images must not be negative"),
    "verify batch 0": (verify(batch_size=0), "batch_size"),
    "report ending": (verify(save="report.pdf"), "path must end in .json, .html or .txt"),
    "verify a float model": (
        lambda m: tflite_export.verify(m.teacher, m.tflite, FEW),
        "quant",
    ),
    "pair agreement nan": (compare(min_top1_agreement=NAN), "between 0 and 1"),
    "pair agreement 2": (compare(min_top1_agreement=2), "between 0 and 1"),
    "pair lsb -1": (compare(max_lsb=-1), "max_lsb must not be negative"),
    "pair abs nan": (compare(max_abs=NAN), "max_abs must not be negative"),
    "pair kernels": (compare(kernels=("",)), "kernels must be some of"),
    "twin rounding": (
        lambda m: tflite_export.IntegerTwin(m.exported.deployed, "up"),
        "rounding must be one of",
    ),
}

EXPERIMENT = {
    "dataset": (config(dataset="mnist"), "dataset must be one of digits"),
    "network": (config(model="vgg"), "model must be one of"),
    "width 0": (config(width=0), "width must be at least 1"),
    "scheme": (config(weight_bits=1), "weight_bits must be an integer"),
    "methods none and more": (config(methods=("none", "fpq")), "methods must be 'none' alone"),
    "no methods": (config(methods=()), "methods must be 'none' alone"),
    "methods": (config(methods=("fqp",)), "methods must be one of"),
    "noise probability": (config(noise_probability=2.0), "probability must be between 0 and 1"),
    "csd weight nan": (config(csd_weight=NAN), "weight must not be negative"),
    "epochs": (config(epochs=-1), "epochs must not be negative"),
    "batch size": (config(batch_size=0), "batch_size must be at least 1"),
    "learning rate 0": (config(learning_rate=0.0), "learning_rate must be positive and finite"),
    "learning rate nan": (config(learning_rate=NAN), "learning_rate must be positive and finite"),
    "learning rate inf": (config(float_learning_rate=float("inf")), "must be positive and finite"),
    "weight decay nan": (config(weight_decay=NAN), "weight_decay must not be negative"),
    "seed": (config(seed=-1), "seed must not be negative"),
    "train examples": (config(train_examples=0), "train_examples must be at least 1"),
    "calibration examples": (config(calibration_examples=0), "must be at least 1"),
    "precision": (config(precision="float16"), "precision must be one of"),
    "kernel sets none": (config(kernels=()), "kernels must contain xnnpack"),
    "kernel sets empty": (config(kernels=("",)), "kernels must be one of"),
    "agreement": (config(min_top1_agreement=NAN), "min_top1_agreement must be between 0 and 1"),
    "teacher": (config(teacher="nowhere.keras"), "teacher must be a saved"),
    "quantizer": (config(quantizer="lsqq"), "quantizer"),
}


def parametrized(table):
    return pytest.mark.parametrize(("call", "message"), table.values(), ids=table.keys())


@parametrized(LIBRARY | TRAINING | EXPORT | {f"config: {k}": v for k, v in EXPERIMENT.items()})
def test_an_argument_is_refused(made, call, message):
    refuses(functools.partial(call, made), message)
