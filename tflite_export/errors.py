"""Errors that several rooms raise. Needs no TensorFlow."""


class InterpreterError(RuntimeError):
    """A runtime cannot open or run a file."""
