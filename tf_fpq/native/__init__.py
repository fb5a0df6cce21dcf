"""Operations in C++ for training on a CPU. They are optional, and compiled where they run:

    python -m tf_fpq.native

Without them, on a GPU and under XLA, the same numbers come from TensorFlow's own operations.
"""
