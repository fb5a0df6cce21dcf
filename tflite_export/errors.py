"""Errors that several rooms raise. Needs no TensorFlow."""


class InterpreterError(RuntimeError):
    """A runtime cannot open or run a file.

        except tflite_export.InterpreterError as error:
            print(error)  # what the runtime says

    The message is the runtime's own.
    """
