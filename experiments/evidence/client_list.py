"""The runtimes of others that experiments.evidence.clients runs: what to install, and how each one
runs a file.

A script gets the paths of a `.tflite` file, of its input (`.npy`) and of its output. It saves the
output codes or scores, one row per image, and prints what else is to be known. It runs in the
client's own environment and imports nothing of this repository.
"""

from collections.abc import Mapping
import dataclasses

_HEAD = "import sys\nimport numpy as np\nmodel, source, result = sys.argv[1:]\n"
_IMAGES = _HEAD + "images = np.load(source)\n"

_INTERPRETER = (
    _IMAGES
    + """
from tflite_runtime.interpreter import Interpreter
interpreter = Interpreter(model)
interpreter.allocate_tensors()
(key,) = interpreter.get_input_details()
(out,) = interpreter.get_output_details()
found = []
for image in images:
    interpreter.set_tensor(key["index"], image[None])
    interpreter.invoke()
    found.append(interpreter.get_tensor(out["index"])[0])
np.save(result, np.stack(found))
"""
)

_COMPILED = (
    _IMAGES
    + """
from ai_edge_litert.compiled_model import CompiledModel
compiled = CompiledModel.from_file(model)
inputs, outputs = compiled.create_input_buffers(0), compiled.create_output_buffers(0)
(signature,) = compiled.get_signature_list().values()
details = compiled.get_output_tensor_details("serving_default")
count = int(np.prod(details[signature["outputs"][0]]["shape"]))
found = []
for image in images:
    inputs[0].write(image[None])
    compiled.run_by_index(0, inputs, outputs)
    found.append(outputs[0].read(count, images.dtype))
np.save(result, np.stack(found))
print("signature", signature["inputs"], signature["outputs"])
"""
)

_MICRO = (
    _IMAGES
    + """
from tflite_micro.python.tflite_micro import runtime
micro = runtime.Interpreter.from_file(model, arena_size=2**22)
found = []
for image in images:
    micro.set_input(image[None], 0)
    micro.invoke()
    found.append(np.array(micro.get_output(0))[0])
np.save(result, np.stack(found))
"""
)

_ONNX = (
    _IMAGES
    + """
import onnxruntime, tf2onnx
tf2onnx.convert.from_tflite(model, output_path=result + ".onnx", opset=18)
session = onnxruntime.InferenceSession(result + ".onnx")
(key,) = session.get_inputs()
np.save(result, np.stack([session.run(None, {key.name: image[None]})[0][0] for image in images]))
"""
)

_SCORES = """
def scores(categories, count=10):
    found = np.zeros(count, np.float64)
    for category in categories:
        found[category.index] = category.score
    return found
"""

_TASK_LIBRARY = (
    _IMAGES
    + _SCORES
    + """
from tflite_support.task import core, processor, vision
options = vision.ImageClassifierOptions(
    core.BaseOptions(file_name=model), processor.ClassificationOptions(max_results=-1))
classifier = vision.ImageClassifier.create_from_options(options)
tensors = [vision.TensorImage.create_from_array(image) for image in images]
results = [classifier.classify(tensor).classifications[0].categories for tensor in tensors]
np.save(result, np.stack([scores(categories) for categories in results]))
print("labels", *sorted({category.category_name for category in results[0]}))
"""
)

_MEDIAPIPE = (
    _IMAGES
    + _SCORES
    + """
import mediapipe
from mediapipe.tasks.python import BaseOptions, vision
options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=model))
classifier = vision.ImageClassifier.create_from_options(options)
frames = [mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=image) for image in images]
results = [classifier.classify(frame).classifications[0].categories for frame in frames]
np.save(result, np.stack([scores(categories) for categories in results]))
print("labels", *sorted({category.category_name for category in results[0]}))
"""
)

_VELA = (
    _HEAD
    + """
import os, re, subprocess
vela = os.path.join(os.path.dirname(sys.executable), "vela")
command = [vela, "--accelerator-config=ethos-u55-128", "--output-dir=" + result + ".d", model]
done = subprocess.run(command, capture_output=True, text=True)
if done.returncode:
    sys.exit(done.stderr.strip() or done.stdout.strip())
print(*re.findall(r"[CN]PU operators = [^\\n]*", done.stdout), sep=", ")
"""
)


@dataclasses.dataclass(frozen=True)
class Client:
    """A runtime of others.

    Attributes:
      name: What the flags call it.
      title: What the table calls it.
      requirements: What pip installs into its environment.
      script: Runs a file; see the module.
      target: The profile of `tflite_export.targets` that its files are exported for.
      kernels: Kernel set of LiteRT that has its arithmetic.
      allowed: Share of the codes that may differ from them.
      scores: Whether it takes pixels and gives scores, as classifiers do, instead of codes.
      package: The package whose version the table shows.
    """

    name: str
    title: str
    requirements: tuple[str, ...]
    script: str
    target: str
    kernels: str = "xnnpack"
    allowed: float = 0.0
    scores: bool = False

    @property
    def package(self) -> str:
        """Package and version."""
        return self.requirements[0].replace("==", " ")


CLIENTS: Mapping[str, Client] = {
    client.name: client
    for client in (
        Client(
            "litert",
            "LiteRT CompiledModel",
            ("ai-edge-litert==2.3.0",),
            _COMPILED,
            "litert",
        ),
        Client(
            "tflite_runtime",
            "tflite-runtime",
            ("tflite-runtime==2.14.0", "numpy==1.26.4"),
            _INTERPRETER,
            "tflite_2_14",
            kernels="builtin",
        ),
        Client(
            "task_library",
            "Task Library ImageClassifier",
            ("tflite-support==0.4.4", "numpy==1.26.4"),
            _TASK_LIBRARY,
            "task_library",
            scores=True,
        ),
        Client(
            "mediapipe",
            "MediaPipe Tasks ImageClassifier",
            ("mediapipe==1.2.3",),
            _MEDIAPIPE,
            "mediapipe",
            scores=True,
        ),
        Client(
            "tflm",
            "TensorFlow Lite for Microcontrollers",
            ("tflite-micro==0.dev20261023182759",),
            _MICRO,
            "tflm",
            kernels="reference",
            allowed=0.01,  # of its FULLY_CONNECTED: see tflite_export/runtimes/micro.py
        ),
        Client("vela", "Arm Vela, Ethos-U55-128", ("ethos-u-vela==5.2.0",), _VELA, "vela"),
        Client(
            "onnx",
            "ONNX Runtime through tf2onnx 1.17.0",
            ("onnxruntime==1.32.0", "tf2onnx==1.17.0", "tensorflow-cpu==2.21.0", "numpy==1.26.4"),
            _ONNX,
            "litert",
            allowed=0.01,  # tf2onnx writes float operators between quantizers; sums round otherwise
        ),
    )
}
