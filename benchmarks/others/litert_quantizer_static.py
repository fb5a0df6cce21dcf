"""What LiteRT's own quantizer makes of a small float file, and how far it is from its network.

It was ai-edge-quantizer up to 0.10; `--package` takes either name.

python -m venv elsewhere
elsewhere/bin/pip install litert-quantizer==0.11.0 keras==3.15.1 tensorflow==2.21.0 scikit-learn
elsewhere/bin/python -m benchmarks.others.litert_quantizer_static litert_quantizer
"""

import importlib
from importlib import metadata
import sys
from typing import Any

from ai_edge_litert import interpreter as litert
import keras

from benchmarks.others import keras_quantize, small

# Bits of activations (None: float) and of weights.
SCHEMES = ((8, 8), (8, 4), (8, 2), (4, 4), (None, 4), (None, 2))


def quantized(package: str, contents: bytes, activations: int | None, weights: int) -> bytes:
    """The file with every operator that the quantizer knows on these bits."""
    package_quantizer = importlib.import_module(f"{package}.quantizer")
    names = importlib.import_module(f"{package}.qtyping").TFLOperationName
    made = package_quantizer.Quantizer(contents)
    if activations is None:
        made.add_dynamic_config(".*", names.ALL_SUPPORTED, num_bits=weights)
        return bytes(made.quantize().quantized_model)
    made.add_static_config(
        ".*",
        names.ALL_SUPPORTED,
        activation_num_bits=activations,
        weight_num_bits=weights,
    )
    images = small.digits()[0]
    [name] = litert.Interpreter(model_content=contents).get_signature_list()
    [argument] = litert.Interpreter(model_content=contents).get_signature_list()[name]["inputs"]
    samples = {name: [{argument: image[None]} for image in images[:200]]}
    return bytes(made.quantize(made.calibrate(samples)).quantized_model)


def main(package: str) -> None:
    """Each scheme from the same float file."""
    version = metadata.version(package.replace("_", "-"))
    print(f"{package} {version}, keras {keras.__version__}")
    network = keras_quantize.trained()
    _, _, test, answers = small.digits()
    logits: Any = network.predict(test, verbose=0)
    contents = keras_quantize.file_of(network)
    float_file = small.started(litert.Interpreter, contents)
    print(f"float: {small.compare(logits, float_file, test, answers)}")
    for activations, weights in SCHEMES:
        scheme = f"W{weights}" + (f"A{activations}" if activations else ", float activations")
        try:
            found = quantized(package, contents, activations, weights)
            interpreter = small.started(litert.Interpreter, found)
            print(f"{scheme}: {small.operators(interpreter)}")
            print(f"  {small.compare(logits, interpreter, test, answers)}, {len(found):,} bytes")
        except Exception as error:
            print(f"{scheme}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")


if __name__ == "__main__":
    main(sys.argv[1])
