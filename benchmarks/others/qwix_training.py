r"""What Qwix trains on a small network of convolutions, and the file that TensorFlow makes of it.

Qwix' own way to a file, `ai_edge_jax`, is not on PyPI. JAX 0.10.2 writes a StableHLO that is
too new for TensorFlow 2.21; it reads that of 0.8.1.

python -m venv elsewhere
elsewhere/bin/pip install qwix==0.1.8 jax==0.8.1 flax==0.12.0 optax \
    tensorflow==2.21.0 ai-edge-litert==2.3.0 scikit-learn
elsewhere/bin/python -m benchmarks.others.qwix_training
"""

from importlib import metadata
from typing import Any

from ai_edge_litert import interpreter as litert
from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.experimental import jax2tf
import numpy as np
import optax
import qwix
import tensorflow as tf

from benchmarks.others import small

# Types of weights and activations.
SCHEMES = (("int8", "int8"), ("int4", "int8"), ("int4", "int4"), ("int3", "int3"))


class Network(nn.Module):
    """That of `small.keras_network` with biases instead of batch norms."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits."""
        values = nn.relu(nn.Conv(16, (3, 3))(images))
        values = nn.relu(nn.Conv(32, (3, 3), strides=2)(values))
        return nn.Dense(10)(values.mean(axis=(1, 2)))


def train(network: Any, variables: dict[str, Any], epochs: int, rate: float) -> dict[str, Any]:
    """Trains the parameters; the ranges of activations follow as the network updates them."""
    images, labels, _, _ = small.digits()
    optimizer = optax.adam(rate)

    @jax.jit
    def step(variables, state, images, labels):
        rest = {name: v for name, v in variables.items() if name != "params"}

        def loss(params):
            logits, moved = network.apply({"params": params, **rest}, images, mutable=list(rest))
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), moved

        gradients, moved = jax.grad(loss, has_aux=True)(variables["params"])
        changes, state = optimizer.update(gradients, state)
        return {**rest, **moved, "params": optax.apply_updates(variables["params"], changes)}, state

    state = optimizer.init(variables["params"])
    order = np.random.default_rng(0)
    for _ in range(epochs):
        for batch in np.array_split(order.permutation(len(images)), len(images) // 64):
            variables, state = step(variables, state, images[batch], labels[batch])
    return variables


def file_of(network: Any, params: dict[str, Any]) -> bytes:
    """What the converter of TensorFlow makes of the annotated network."""
    applied = jax2tf.convert(lambda x: network.apply({"params": params}, x), with_gradient=False)
    image = tf.TensorSpec((1, 8, 8, 1), tf.float32)
    concrete = tf.function(applied, autograph=False).get_concrete_function(image)
    return tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module()).convert()


def main() -> None:
    """Float training, then each scheme from its weights: trained, evaluated, converted."""
    versions = [f"{name} {metadata.version(name)}" for name in ("qwix", "jax", "tensorflow")]
    print(", ".join(versions))
    _, _, test, answers = small.digits()
    test = jnp.asarray(test)  # Qwix takes a NumPy array for a weight
    network = Network()
    variables = train(network, network.init(jax.random.key(0), test[:1]), 20, 0.01)
    float_logits = np.array(network.apply(variables, test))
    print(f"float: accuracy {np.mean(float_logits.argmax(-1) == answers):.2%}")
    for types in SCHEMES:
        try:
            report(network, variables["params"], *types)
        except ValueError as error:
            print(f"{types}: {str(error).splitlines()[0]}")


def report(network: Any, params: dict[str, Any], weights: str, activations: str) -> None:
    """Trains one scheme from float weights, and converts it."""
    _, _, test, answers = small.digits()
    test = jnp.asarray(test)  # Qwix takes a NumPy array for a weight
    rules = [qwix.QuantizationRule(weight_qtype=weights, act_qtype=activations)]
    student = qwix.quantize_model(network, qwix.OdmlQatProvider(rules))
    start = {**student.init(jax.random.key(0), test[:1]), "params": params}
    trained = train(student, start, 10, 0.001)
    logits = np.array(student.apply(trained, test))
    learned = [
        jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(trained["params"])
    ]
    print(f"{weights}, {activations}: accuracy {np.mean(logits.argmax(-1) == answers):.2%}")
    print(f"  trained: {', '.join(learned)}")
    provider = qwix.OdmlConversionProvider(rules, trained["params"], trained["quant_stats"])
    try:
        contents = file_of(qwix.quantize_model(network, provider), trained["params"])
    except Exception as error:
        print(f"  no file: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
        return
    interpreter = small.started(litert.Interpreter, contents)
    print(f"  file: {small.operators(interpreter)}")
    print(f"  file: {small.compare(logits, interpreter, test, answers)}")


if __name__ == "__main__":
    main()
