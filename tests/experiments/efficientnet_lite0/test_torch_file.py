"""The reader of `.pth` files makes tensors of what PyTorch wrote, and nothing else."""

import collections
import io
import pickle

import numpy as np
import pytest

from experiments.efficientnet_lite0 import torch_file

VALUES = np.arange(6, dtype="<f4")


class Global:
    """Pickles as a name of a module, as PyTorch's classes do."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return self.name


class Stored:
    """Pickles as a reference to a storage."""

    def __init__(self, kind, key, count):
        self.pid = ("storage", kind, key, "cpu", count, None)


class Pickler(pickle._Pickler):
    """Writes `Stored` by reference and the names of PyTorch without PyTorch."""

    def persistent_id(self, thing):
        return thing.pid if isinstance(thing, Stored) else None

    def save_name(self, thing):
        self.write(pickle.GLOBAL + thing.name.replace(" ", "\n").encode() + b"\n")

    dispatch = {**pickle._Pickler.dispatch, Global: save_name}


class Rebuilt:
    """Pickles as the call that rebuilds a tensor."""

    def __init__(self, *arguments, function="torch._utils _rebuild_tensor_v2"):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        raise AssertionError("the pickler writes these itself")


def save_rebuilt(pickler, thing):
    pickler.save_name(Global(thing.function))
    pickler.save(thing.arguments)
    pickler.write(pickle.REDUCE)


Pickler.dispatch = {**Pickler.dispatch, Rebuilt: save_rebuilt}


def written(tensors, storages):
    """A legacy file of tensors over storages by key."""
    file = io.BytesIO()
    for part in (torch_file.MAGIC_NUMBER, torch_file.PROTOCOL_VERSION, {"little_endian": True}):
        Pickler(file, 2).dump(part)
    Pickler(file, 2).dump(tensors)
    Pickler(file, 2).dump(list(storages))
    for values in storages.values():
        file.write(len(values).to_bytes(8, "little") + values.tobytes())
    return file.getvalue()


def tensor(key="a", offset=0, size=(2, 3), stride=(3, 1), count=6):
    storage = Stored(Global("torch FloatStorage"), key, count)
    return Rebuilt(storage, offset, size, stride, False, collections.OrderedDict())


def test_tensors_are_strided_views_of_their_storage():
    tensors = {
        "rows": tensor(),
        "columns": tensor(size=(3, 2), stride=(1, 3)),
        "last": tensor(offset=5, size=(1,), stride=(1,)),
    }
    found = torch_file.read(written(tensors, {"a": VALUES}))
    assert np.array_equal(found["rows"], VALUES.reshape(2, 3))
    assert np.array_equal(found["columns"], VALUES.reshape(2, 3).T)
    assert found["last"].tolist() == [5.0]


def test_code_is_refused():
    call = Rebuilt("echo", function="os system")
    with pytest.raises(ValueError, match="asks for os.system"):
        torch_file.read(written({"a": call}, {"a": VALUES}))


@pytest.mark.parametrize("offset", [1, 7])
def test_a_tensor_beyond_its_storage_is_refused(offset):
    with pytest.raises(ValueError, match="reaches beyond its storage"):
        torch_file.read(written({"a": tensor(offset=offset)}, {"a": VALUES}))


def test_a_file_that_is_cut_off_is_refused():
    whole = written({"a": tensor()}, {"a": VALUES})
    for length in (0, 10, len(whole) - 1, len(whole) - len(VALUES) * 4):
        with pytest.raises(ValueError, match="Not a .*legacy PyTorch file"):
            torch_file.read(whole[:length])


@pytest.mark.parametrize(
    "contents",
    [
        bytes(100),
        np.random.default_rng(0).bytes(100),
        b"]r" + (2**32 - 1).to_bytes(4, "little"),  # LONG_BINPUT: a memo of 4 billion entries
        b"\x8e" + (2**62).to_bytes(8, "little"),  # BINBYTES8: a string of 4 exabytes
    ],
    ids=["zeros", "random", "huge memo", "huge string"],
)
def test_what_is_no_pickle_is_refused(contents):
    with pytest.raises(ValueError, match="Not a .*legacy PyTorch file"):
        torch_file.read(contents)
