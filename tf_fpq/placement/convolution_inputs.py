"""What a convolution reads, as a tensor of its own.

A method can change it there, and no other reader of the same tensor notices.

In a student a convolution does not always read a quantizer. Between the two may stand layers that
keep the grid (padding, pooling), and layers that join tensors of one grid (the concatenations of
Inception, DenseNet and U-Net). `ConvolutionInputs` looks through them.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any
import warnings

from tf_fpq import graph, roles
from tf_fpq.graph import Call, MakeCall
from tf_fpq.keras_compat import keras
from tf_fpq.roles import Role
from tf_fpq.student_layers.quantized_layers import QuantizeActivation

layers = keras.layers

Join = Callable[[Sequence[Any]], Any]

_DRAWS = (
    layers.Dropout,
    layers.SpatialDropout2D,
    layers.GaussianNoise,
    layers.GaussianDropout,
)
# What reads the view of a tensor is called once more on it. So the view is taken before layers that
# draw numbers, whose outputs are on no grid in training; before padding, whose zeros are no values
# of the tensor; and before layers that only move values, where it is the same and costs less.
_VIEWED_BEFORE = (
    *_DRAWS,
    layers.ZeroPadding2D,
    layers.Cropping2D,
    layers.Reshape,
    layers.Permute,
    layers.Flatten,
)


@dataclasses.dataclass(frozen=True)
class Source:
    """What a convolution reads, found in the graph that trains.

    Attributes:
      convolution: Name of the convolution's call.
      name: The same; numbered if the convolution has several sources.
      quantize: The layer that holds the grid of `tensor`.
      tensor: What the convolution and others read, on its grid.
      raw: What the quantizers behind `tensor` read.
      join: Makes of `raw` what `tensor` is before it is quantized.
      alone: `raw` is one tensor, `tensor` is it on its grid, and nothing else reads that.
    """

    convolution: str
    name: str
    quantize: QuantizeActivation
    tensor: Any
    raw: tuple[Any, ...]
    join: Join
    alone: bool


class ConvolutionInputs:
    """A `MakeCall` that gives each convolution a view of what it reads.

    Values that several tensors share (a maximum of two, the largest of a window) or that are
    repeated are viewed where the convolution reads them: what is drawn for each value is then
    independent, and no mean is shifted by choosing the larger one.

    A convolution with no quantizer behind its input, such as one whose rule quantizes weights only,
    stays as it is. One warning names all of them.
    """

    def __init__(
        self,
        student: keras.Model,
        make: MakeCall,
        view: Callable[[Source], Any],
        method: str,
    ):
        """Prepares the changes to a student.

        Args:
          student: The student that is replayed.
          make: Makes a call.
          view: Returns what the convolution is to read, a symbolic tensor like `Source.tensor`.
          method: Who changes, for the warning.
        """
        self._make = make
        self._view = view
        self._method = method
        self._own = {id(layer) for layer in student.layers}
        self._readers = graph.readers(student)
        self._shared: dict[int, Any] = {}  # held, so that no other tensor gets its id
        self._names: set[str] = set()
        calls = [call for call in graph.calls(student) if roles.is_convolution(call.layer)]
        self._left = {call.name for call in calls}
        self._unchanged: list[str] = []

    def __call__(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Makes the call, a convolution's on its view."""
        if roles.is_convolution(call.layer):
            view = self._view_of(args[0], call.name)
            if view is None:
                self._unchanged.append(call.name)
            else:
                args = (view, *args[1:])
            self._left.remove(call.name)
            if not self._left:
                self._warn()
        value = self._make(call, args, kwargs)
        if len(self._readers.get(id(call.outputs[0]), ())) > 1:
            self._shared[id(value)] = value
        return value

    def _view_of(self, tensor: Any, convolution: str, alone: bool = True) -> Any | None:
        """The convolution's view of `tensor`, or None if no quantizer stands behind it."""
        layer = graph.producer(tensor)
        alone = alone and id(tensor) not in self._shared
        quantized = isinstance(layer, QuantizeActivation)
        if quantized or not self._is_viewed_before(layer):
            quantizers: list[QuantizeActivation] = []
            raw: list[Any] = []
            if (join := self._join(tensor, quantizers, raw)) is not None:
                name = graph.unique_name(convolution, self._names)
                alone = alone and quantized
                return self._view(
                    Source(convolution, name, quantizers[0], tensor, tuple(raw), join, alone)
                )
        if quantized or not self._keeps_grid(layer):
            return None
        views = {id(t): self._view_of(t, convolution, alone) for t in graph.sources(tensor)}
        found = {key: view for key, view in views.items() if view is not None}
        return graph.make_again(tensor, found) if found else None

    def _is_viewed_before(self, layer: keras.layers.Layer) -> bool:
        """Whether the view is taken of what `layer` reads.

        So it is where another method put `layer` in. The convolution then reads what was changed
        twice.
        """
        return isinstance(layer, _VIEWED_BEFORE) or id(layer) not in self._own

    def _keeps_grid(self, layer: keras.layers.Layer) -> bool:
        return id(layer) not in self._own or roles.role(layer) in (Role.SAME_GRID, Role.JOINT_GRID)

    def _join(
        self, tensor: Any, quantizers: list[QuantizeActivation], raw: list[Any]
    ) -> Join | None:
        """How `tensor`, before it is quantized, follows from what its quantizers read.

        These are appended to the lists.

        None where it does not: behind layers that draw, behind other methods' layers, and where
        nothing is quantized.
        """
        layer, sources = graph.producer(tensor), graph.sources(tensor)
        if isinstance(layer, QuantizeActivation):
            index = len(raw)
            quantizers.append(layer)
            raw.append(sources[0])
            return lambda values: values[index]
        if id(layer) not in self._own or isinstance(layer, _DRAWS) or not self._keeps_grid(layer):
            return None
        joins = [self._join(source, quantizers, raw) for source in sources]
        parts = [join for join in joins if join is not None]
        if not parts or len(parts) < len(joins):
            return None
        if isinstance(layer, layers.ActivityRegularization):  # whose loss is added once
            return parts[0]
        if roles.role(layer) is Role.JOINT_GRID:
            return lambda values: layer([part(values) for part in parts])
        return lambda values: layer(parts[0](values))

    def _warn(self) -> None:
        """Names the convolutions that stay as they are; called at the last one."""
        if not self._unchanged:
            return
        more = f" and {len(self._unchanged) - 5} more" if len(self._unchanged) > 5 else ""
        warnings.warn(
            f"{self._method} does not reach these convolutions, because no quantizer holds what"
            f" they read: {', '.join(self._unchanged[:5])}{more}. Give them activation_bits in a"
            " QuantRule, or leave it so if that is meant.",
            stacklevel=2,
        )
