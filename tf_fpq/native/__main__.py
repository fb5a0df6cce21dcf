"""Compiles the operations for training on a CPU, in some seconds; training works without them.

    python -m tf_fpq.native

Needs a C++ compiler. Run it again after another TensorFlow was installed.
"""

import sys

from absl import flags

from tf_fpq import programs

_REMOVE = flags.DEFINE_bool("remove", False, "Remove what was compiled instead.")


def main(argv: list[str]) -> None:
    """Builds, and says where."""
    del argv
    from tf_fpq.native import library  # slow: it imports TensorFlow, which --help does not need

    if _REMOVE.value:
        library.path().unlink(missing_ok=True)
        print("Training on a CPU uses TensorFlow's own operations.")
        return
    try:
        print(f"Training on a CPU uses {library.build()}")
    except library.BuildError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    programs.run(main)
