"""What `model.quantize` of Keras 3 does to a small network of convolutions, and what its file is.

python -m venv elsewhere
elsewhere/bin/pip install keras==3.15.1 tensorflow==2.21.0 ai-edge-litert==2.3.0 scikit-learn
elsewhere/bin/python -m benchmarks.others.keras_quantize
"""

import pathlib
import re
import tempfile
from typing import Any
import warnings

from ai_edge_litert import interpreter as litert
import keras
import numpy as np

from benchmarks.others import small

MODES = ("int8", "int4", "float8")  # "gptq" and "awq" are for Dense layers of language models


def dtypes(network: Any) -> str:
    """The type of each kernel, and whether it trains."""
    return ", ".join(
        f"{layer.name} {w.dtype}{'' if w.trainable else ' (frozen)'}"
        for layer in network.layers
        for w in layer.weights
        if "kernel" in w.name and "scale" not in w.name
    )


def file_of(network: Any) -> bytes:
    """What `export` writes for LiteRT."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        network.export(path, format="litert", verbose=False)
        return path.read_bytes()


def trained() -> Any:
    """The network with the same weights each time."""
    keras.utils.set_random_seed(0)
    network = small.keras_network(keras)
    images, labels, _, _ = small.digits()
    network.fit(images, labels, batch_size=64, epochs=10, verbose=0)
    return network


def report(network: Any, mode: str) -> None:
    """Prints what one mode does."""
    images, labels, test, answers = small.digits()
    float_accuracy = network.evaluate(test, answers, verbose=0)[1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network.quantize(mode)
    refused = sorted({name for w in caught for name in re.findall(r"Layer (\w+)", str(w.message))})
    print(f"{mode}: {dtypes(network)}; says that it leaves {', '.join(refused)}")
    small.compile_network(keras, network, rate=1e-3)
    print(f"  accuracy {float_accuracy:.2%} -> {network.evaluate(test, answers, verbose=0)[1]:.2%}")
    try:
        interpreter = small.started(litert.Interpreter, file_of(network))
        print(f"  file: {small.operators(interpreter)}")
        logits = network.predict(test, verbose=0)
        print(f"  file: {small.compare(logits, interpreter, test, answers)}")
    except Exception as error:
        print(f"  no file: {type(error).__name__}: ...{str(error).splitlines()[0][-120:]}")
    before = [w.numpy() for w in network.weights]
    network.fit(images, labels, batch_size=64, epochs=1, verbose=0)
    kernels = [
        f"{w.path} {'moves' if np.any(w.numpy() != b) else 'stays'}"
        for w, b in zip(network.weights, before)
        if w.name == "kernel"
    ]
    print(f"  with a further epoch {', '.join(kernels)}")


def main() -> None:
    """Each mode on a network of its own."""
    print(f"keras {keras.__version__}")
    for mode in MODES:
        report(trained(), mode)


if __name__ == "__main__":
    main()
