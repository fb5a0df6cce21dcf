"""What the programs of this folder share: digits, a small network and a look into a file."""

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn import datasets

TRAINING = 1400  # of 1,797 images


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images of 8x8x1 in [0, 1] and labels: of training, then of the test."""
    images, labels = datasets.load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    return images[:TRAINING], labels[:TRAINING], images[TRAINING:], labels[TRAINING:]


def keras_network(keras: Any) -> Any:
    """Two convolutions with batch norms, an average over positions, a Dense layer; compiled."""
    layers = keras.layers
    inputs = values = keras.Input((8, 8, 1))
    for filters, strides in ((16, 1), (32, 2)):
        values = layers.Conv2D(filters, 3, strides, "same", use_bias=False)(values)
        values = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(values))
    outputs = layers.Dense(10)(layers.GlobalAveragePooling2D()(values))
    network = keras.Model(inputs, outputs)
    compile_network(keras, network)
    return network


def compile_network(keras: Any, network: Any, rate: float = 0.01) -> None:
    """Adam, cross entropy, accuracy."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])


def started(make_interpreter: Callable[..., Any], contents: bytes) -> Any:
    """An interpreter for one image a time."""
    interpreter = make_interpreter(model_content=contents)
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], (1, 8, 8, 1))
    interpreter.allocate_tensors()
    return interpreter


def operators(interpreter: Any) -> str:
    """The operators of a file with the types of image (or values), weights and result."""
    types = {t["index"]: np.dtype(t["dtype"]).name for t in interpreter.get_tensor_details()}
    found = collections.Counter(
        f"{op['op_name']}({', '.join(types.get(i, '-') for i in op['inputs'][:2])})"
        f" -> {types[op['outputs'][0]]}"
        for op in interpreter._get_ops_details()
        if op["op_name"] != "DELEGATE"
    )
    return "; ".join(f"{count} {name}" for name, count in found.items())


def outputs(interpreter: Any, images: np.ndarray) -> np.ndarray:
    """Logits of a file, as floats whatever the types of its borders."""
    [source], [result] = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for image in images:
        interpreter.set_tensor(source["index"], to_codes(image[np.newaxis], source))
        interpreter.invoke()
        rows.append(interpreter.get_tensor(result["index"])[0])
    step, zero_point = result["quantization"]
    values = np.stack(rows).astype(np.float32)
    return (values - zero_point) * step if step else values


def to_codes(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """Values on the grid of a tensor of a file; unchanged if it is float."""
    step, zero_point = tensor["quantization"]
    if not step:
        return values
    limits = np.iinfo(tensor["dtype"])
    codes = np.rint(values / np.float32(step)) + zero_point
    return np.clip(codes, limits.min, limits.max).astype(tensor["dtype"])


def compare(trained: np.ndarray, interpreter: Any, images: np.ndarray, labels: np.ndarray) -> str:
    """Accuracy of a file, and how far its outputs are those of the network it came from."""
    found = outputs(interpreter, images)
    [tensor] = interpreter.get_output_details()
    step, _ = tensor["quantization"]
    text = (
        f"accuracy {np.mean(found.argmax(-1) == labels):.2%}, same class as its network"
        f" {np.mean(found.argmax(-1) == trained.argmax(-1)):.2%}"
    )
    if not step:
        return text + f", largest difference {np.abs(found - trained).max():.3g}"
    codes, theirs = to_codes(trained, tensor).astype(int), to_codes(found, tensor).astype(int)
    same = int(np.sum(codes == theirs))
    return text + f", equal output codes {same:,} of {codes.size:,} ({same / codes.size:.1%})"
