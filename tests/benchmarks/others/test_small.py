"""The look into other tools' files. The tools themselves are in environments of their own."""

import pathlib

from ai_edge_litert import interpreter as litert
import numpy as np

from benchmarks.others import small

DATA = pathlib.Path(__file__).parents[2] / "tflite_export/data"
GRID = {"quantization": (0.5, -1), "dtype": np.int8}


class Reading:
    """Answers like an interpreter whose output is twice its input, in codes of GRID."""

    def get_input_details(self):
        return [{"index": 0, "quantization": (0.0, 0), "dtype": np.float32}]

    def get_output_details(self):
        return [{"index": 1, **GRID}]

    def set_tensor(self, index, values):
        self.values = values

    def invoke(self):
        self.codes = small.to_codes(2 * self.values, GRID)

    def get_tensor(self, index):
        return self.codes


def test_values_become_codes_and_stop_at_the_ends():
    assert small.to_codes(np.array([0.0, 1.0, 0.3, 100.0, -100.0]), GRID).tolist() == (
        [-1, 1, 0, 127, -128]
    )


def test_floats_stay_as_they_are():
    values = np.array([0.3])
    assert small.to_codes(values, {"quantization": (0.0, 0)}) is values


def test_a_file_is_compared_on_its_own_grid():
    images = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert small.outputs(Reading(), images).tolist() == [[2.0, 0.0], [0.0, 2.0]]
    trained = np.array([[2.1, 0.0], [3.0, 2.0]])  # codes 3, -1 and 5, 3; the file's are -1, 3
    text = small.compare(trained, Reading(), images, np.array([0, 1]))
    assert text == (
        "accuracy 100.00%, same class as its network 50.00%, equal output codes 3 of 4 (75.0%)"
    )


def test_operators_of_a_real_file_are_named_with_their_types():
    interpreter = litert.Interpreter(str(DATA / "ai_edge_quantizer_int8.tflite"))
    interpreter.allocate_tensors()
    assert "CONV_2D(int8, int8) -> int8" in small.operators(interpreter)
