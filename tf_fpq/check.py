"""Lists what quantization would do with every layer of a saved model.

Exit code: 0, 1 if a layer is not supported, 2 if the file cannot be read.

The file may come from Keras 2 or Keras 3 (`.keras`, `.h5`, or with --trust a SavedModel folder of
Keras 2). In Python: `tf_fpq.check(model, rules)`.

Examples:

  W8A8 everywhere.
    tf-fpq check model.keras

  W4A4 with an 8-bit first and last layer, as JSON. The first rule that matches a layer's whole name
  wins; 32 is float.
    tf-fpq check model.keras --rules='stem|logits=W8A8' --rules='.*=W4A4' --json

  A model with layer classes of your own, which my_layers.py in this folder registers with Keras.
    tf-fpq check model.keras --imports=my_layers
"""

from collections.abc import Sequence
import importlib
import sys

from absl import app, flags

from tf_fpq import programs
from tf_fpq.conversion import loading
from tf_fpq.placement import preflight

# The file cannot be read; 1 says that a layer of it is not supported.
EXIT_ERROR = 2

FLAGS = flags.FLAGS
flags.DEFINE_multi_string(
    "rules", [], "PATTERN=W<bits>A<bits>, once per rule; W8A8 for all layers by default."
)
flags.DEFINE_list(
    "imports",
    [],
    "Python modules to import first: those that register your own classes with Keras.",
)
flags.DEFINE_bool("trust", False, loading.TRUST)
flags.DEFINE_bool("json", False, "Print JSON instead of a table.")


def main(argv: Sequence[str]) -> None:
    """Prints the report of the file that the command line names."""
    if len(argv) != 2:
        raise app.UsageError(f"One model file is needed. Received: {argv[1:]}.")
    try:
        rules = [preflight.parse_rule(text) for text in FLAGS.rules]
    except ValueError as error:
        raise app.UsageError(f"--rules: {error}") from error
    try:
        for module in FLAGS.imports:
            importlib.import_module(module)
        report = preflight.check(loading.load_model(argv[1], trust=FLAGS.trust), rules or None)
    except (OSError, ImportError, TypeError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
    print(report.to_json() if FLAGS.json else report)
    sys.exit(0 if report.ok else 1)


if __name__ == "__main__":
    programs.run(main)
