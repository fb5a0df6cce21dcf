"""Reads tensors out of a `.pth` file in PyTorch's legacy format, without PyTorch.

Such a file is a sequence of pickles (a magic number, a protocol version, the sizes of C types, the
dictionary of tensors, the order of the storages) and then the storages themselves, each as its
number of elements in 8 bytes and its elements. A pickle can name any function of any module; this
reader knows four names, and refuses a file that asks for another.
"""

import collections
import io
import pickle
from typing import Any, BinaryIO

import numpy as np

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
# PyTorch writes its pickles by protocol 2.
_BEGINNING = pickle.dumps(MAGIC_NUMBER, protocol=2)

_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}

# What unpickling raises for bytes that are no pickle. One that claims a huge memo is a MemoryError.
_DAMAGED = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    TypeError,
    pickle.UnpicklingError,
)


def read(contents: bytes) -> dict[str, np.ndarray]:
    """The tensors of a file by name.

    Raises:
      ValueError: If it is no such file, is damaged, or asks for anything but plain tensors.
    """
    file = io.BytesIO(contents)
    try:
        # Before anything is unpickled: other bytes may claim gigabytes.
        if not contents.startswith(_BEGINNING):
            raise ValueError("it does not begin as one")
        if _Unpickler(file).load() != MAGIC_NUMBER or _Unpickler(file).load() != PROTOCOL_VERSION:
            raise ValueError("its magic number or protocol is another one")
        _Unpickler(file).load()  # sizes of C types, which are the same everywhere by now
        unpickler = _Unpickler(file)
        tensors = unpickler.load()
        for key in _Unpickler(file).load():
            unpickler.storages[key].fill(file)
        return {name: tensor.array() for name, tensor in tensors.items()}
    except ValueError as error:
        raise ValueError(f"Not a legacy PyTorch file of tensors: {error}.") from error
    except _DAMAGED as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"Not a whole legacy PyTorch file: {reason}.") from error


class _Storage:
    """The elements that tensors are views of."""

    def __init__(self, kind: str, count: int):
        self.dtype, self.count = _DTYPES[kind], count
        self.values = np.zeros(0, self.dtype)

    def fill(self, file: BinaryIO) -> None:
        """Reads the elements from where they stand in the file."""
        count = int.from_bytes(file.read(8), "little")
        data = file.read(count * self.dtype.itemsize) if count == self.count else b""
        if len(data) != self.count * self.dtype.itemsize:
            raise ValueError(f"a storage of {self.count} elements is cut off")
        self.values = np.frombuffer(data, self.dtype)


class _Tensor:
    """A strided view of a storage, as `torch._utils._rebuild_tensor_v2` is called to make it."""

    def __init__(self, storage: _Storage, offset: int, size: Any, stride: Any, *_: Any):
        self._storage, self._offset, self._size, self._stride = storage, offset, size, stride

    def array(self) -> np.ndarray:
        """The tensor as an array of its own."""
        values = self._storage.values[self._offset :]
        reach = sum((n - 1) * step for n, step in zip(self._size, self._stride, strict=True))
        if reach >= len(values):
            raise ValueError("a tensor reaches beyond its storage")
        strides = tuple(step * values.itemsize for step in self._stride)
        return np.lib.stride_tricks.as_strided(values, tuple(self._size), strides).copy()


class _Unpickler(pickle.Unpickler):
    """Makes dictionaries and tensors, and nothing else."""

    _KNOWN = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
        ("torch", "FloatStorage"): "FloatStorage",
        ("torch", "LongStorage"): "LongStorage",
    }

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._KNOWN:
            raise ValueError(f"it asks for {module}.{name}")
        return self._KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, _, count, *_ = pid
        return self.storages.setdefault(key, _Storage(kind, count))
