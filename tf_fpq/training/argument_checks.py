"""Checks of what `QatModel` is made of."""

from collections.abc import Sequence
from typing import Any
import warnings

from tf_fpq import graph
from tf_fpq.calibration import grids_from_images
from tf_fpq.keras_compat import keras
from tf_fpq.methods.base import Method
from tf_fpq.student_layers.quantized_layers import QuantizeActivation


def check_methods(methods: Sequence[Any]) -> None:
    """Raises TypeError for what is no method, ValueError for a method that is given twice."""
    for method in methods:
        if not isinstance(method, Method):
            raise TypeError(
                "methods must be tf_fpq methods, such as FeaturePerturbation(). Received:"
                f" methods=[..., {method!r}]."
            )
    for attribute in (lambda method: type(method).__name__, lambda method: method.name):
        names = [attribute(method) for method in methods]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                "methods must have at most one of each class and of each name. Received twice:"
                f" {', '.join(twice)}."
            )


def check_student(student: keras.Model) -> None:
    """Raises TypeError for what is no model, and warns if a range is the one it was made with."""
    if not isinstance(student, keras.Model):
        raise TypeError(
            f"student must be a model from tf_fpq.quantize_model. Received: student={student!r}."
        )
    if names := grids_from_images.uncalibrated(student):
        warnings.warn(
            f"Not calibrated: {', '.join(names)}. Call tf_fpq.calibrate(student, images) first.",
            stacklevel=3,
        )


def check_teacher(
    methods: Sequence[Method], teacher: keras.Model | None, cache_teacher: bool
) -> None:
    """Raises ValueError if there is no teacher and a method needs it, or a cache and none does.

    Raises TypeError for a teacher that is no model.
    """
    if teacher is not None and not hasattr(teacher, "layers"):
        raise TypeError(f"teacher must be a Keras model. Received: teacher={teacher!r}.")
    needing = [method.name for method in methods if method.needs_teacher]
    if needing and teacher is None:
        raise ValueError(
            f"teacher must be given: {', '.join(needing)} compares the student with it. A file of a"
            " QatModel holds none: QatModel.load(path, teacher) or set_teacher(teacher) gives it."
            " Received: teacher=None."
        )
    if cache_teacher and not needing:
        raise ValueError(
            "cache_teacher=True needs a method that compares with the teacher. Received: methods"
            " without one."
        )


def check_outputs(student: keras.Model, methods: Sequence[Method], loss: Any) -> None:
    """Raises ValueError if a method would take other numbers for the class scores it compares.

    Warns if the loss would.
    """
    readers = [method for method in methods if hasattr(method, "from_logits")]
    if readers and len(student.outputs) > 1:
        raise ValueError(
            f"{', '.join(method.name for method in readers)} compares the class scores of one"
            f" output. Received: a student with the outputs {', '.join(student.output_names)}."
            " Leave the method out, or write a Method that compares them as they should be."
        )
    if not _ends_in_softmax(student):
        return
    wrong = [method.name for method in readers if method.from_logits]
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)} must get from_logits=False: the student ends in a softmax, so its"
            " outputs are probabilities. Received: from_logits=True."
        )
    if isinstance(loss, keras.losses.Loss) and loss.get_config().get("from_logits"):
        warnings.warn(
            f"{type(loss).__name__}(from_logits=True) takes the softmax of a student that ends in"
            " a softmax; give it from_logits=False.",
            stacklevel=3,
        )


def _ends_in_softmax(student: keras.Model) -> bool:
    calls = {id(output): call for call in graph.calls(student) for output in call.outputs}
    call = calls.get(id(student.outputs[0]))
    while call is not None and isinstance(call.layer, QuantizeActivation):
        call = calls.get(id(call.inputs[0]))
    return call is not None and (
        isinstance(call.layer, keras.layers.Softmax)
        or getattr(call.layer, "activation", None) is keras.activations.softmax
    )
