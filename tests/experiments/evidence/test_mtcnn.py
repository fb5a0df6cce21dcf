import io
import os
import pickle

import numpy as np
import pytest

from experiments import wheels
from experiments.evidence import mtcnn


def test_weights_are_arrays_and_nothing_else(tmp_path, monkeypatch):
    weights = {"onet": [np.arange(6, dtype=np.float32).reshape(2, 3)]}

    def contents(value):
        """A file as NumPy 1 wrote it from Python 2's pickles on."""
        file = io.BytesIO()
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(file, header)
        pickled = pickle.dumps(np.array(value, object), protocol=2)
        file.write(pickled.replace(b"numpy._core", b"numpy.core"))
        return file.getvalue()

    monkeypatch.setattr(wheels, "fetch", lambda requirement, folder: folder)
    monkeypatch.setattr(wheels, "read", lambda wheel, name: contents(weights))
    np.testing.assert_array_equal(mtcnn._weights(tmp_path)["onet"][0], weights["onet"][0])

    class Harm:
        def __reduce__(self):
            return os.system, ("true",)

    assert pickle.loads(pickle.dumps(Harm())) == 0
    monkeypatch.setattr(wheels, "read", lambda wheel, name: contents({"onet": Harm()}))
    with pytest.raises(ValueError, match="ask for posix.system"):
        mtcnn._weights(tmp_path)
