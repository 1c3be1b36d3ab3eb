"""Gives recurrent layers ONNX's own operators, for tf2onnx writes out the loops of TensorFlow.

While TensorFlow traces the model, an operator that cannot run stands in for each loop. tf2onnx then
hands it to ``Loops.convert``.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from exporter.errors import ConversionError
from exporter.graph.recurrent import loops
from exporter.graph.types import Layer, Tensor

STAND_IN = "PyFuncStateless"
"""Type of the operator of TensorFlow that stands in for a loop."""

_OPERATORS = {"LSTM": "LSTM", "GRU": "GRU", "SimpleRNN": "RNN"}

_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (0, 1, 2), "SimpleRNN": (0,)}
"""Order of ONNX's gates, as numbers of those of Keras."""

_ACTIVATIONS = {"tanh", "sigmoid", "relu", "softsign", "softplus"}


@contextmanager
def shapes_told_later() -> Iterator[None]:
    """Keeps tf2onnx from warning that it cannot infer the shapes of stand-ins."""
    logger = logging.getLogger("tf2onnx.shape_inference")

    def other(record: logging.LogRecord) -> bool:
        return STAND_IN not in record.getMessage()

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


class Loops:
    """The loops of one conversion."""

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        """Reads the weights of recurrent layers among the leaves of a model, by path."""
        # Weights have no values while TensorFlow traces, or tf2onnx converts.
        found = (part for _, part in loops(layers) if type(part).__name__ in _OPERATORS)
        self._weights = {id(part): _weights(part) for part in found if _has_operator(part)}
        self._layers: dict[str, Layer] = {}

    def stand_in(
        self, layer: Layer, sequences: Tensor, states: list[Tensor]
    ) -> list[Tensor] | None:
        """Traces the stand-in of a loop; see ``graph.recurrent.replaced_loops``."""
        import tensorflow as tf

        if id(layer) not in self._weights:
            return None
        count = 2 if type(layer).__name__ == "LSTM" else 1
        results = tf.numpy_function(
            _refuse, [sequences, *states], [tf.float32] * (1 + count), stateful=False
        )
        self._layers[results[0].op.get_attr("token").decode()] = layer
        batch, steps, _ = sequences.shape
        shapes = [(batch, steps, layer.units), *[(batch, layer.units)] * count]
        return [tf.ensure_shape(*each) for each in zip(results, shapes, strict=True)]

    def convert(self, ctx: Any, node: Any, name: str, args: Any) -> None:
        """Puts an operator of ONNX in the place of a stand-in; tf2onnx calls it."""
        import numpy as np

        del args
        layer = self._layers[node.get_attr_str("token")]
        kind, (sequences, *states) = type(layer).__name__, node.input
        dtypes, shapes = node.output_dtypes, node.output_shapes

        def constant(part: str, values: Any) -> str:
            array = np.asarray(values, np.float32)
            return str(ctx.make_const(f"{name}_{part}", array).output[0])

        def add(operator: str, inputs: list[str], count: int = 1, **attributes: Any) -> Any:
            made = ctx.make_node(operator, inputs, attr=attributes, output_count=count)
            return made.output

        axes = {axis: ctx.make_const(f"{name}_axis_{axis}", np.array([axis])) for axis in (0, 1)}
        first = [add("Unsqueeze", [state, axes[0].output[0]])[0] for state in states]
        weights = [constant(*each) for each in zip("WRB", self._weights[id(layer)], strict=True)]
        (by_step,) = add("Transpose", [sequences], perm=[1, 0, 2])
        inputs = [by_step, *weights, *(["", *first] if first else [])]
        functions = [getattr(layer.cell, "recurrent_activation", None), layer.activation]
        functions += functions[1:] if kind == "LSTM" else []
        attributes = {
            "hidden_size": layer.units,
            "direction": "reverse" if layer.go_backwards else "forward",
            "activations": [f.__name__.capitalize() for f in functions if f is not None],
        }
        if kind == "GRU":
            attributes["linear_before_reset"] = int(layer.reset_after)
        outputs, *last = add(_OPERATORS[kind], inputs, len(node.output), **attributes)
        (one_direction,) = add("Squeeze", [outputs, axes[1].output[0]])
        found = [add("Transpose", [one_direction], perm=[1, 0, 2])[0]]
        found += [add("Squeeze", [state, axes[0].output[0]])[0] for state in last]
        for old, new, dtype, shape in zip(node.output, found, dtypes, shapes, strict=True):
            ctx.set_dtype(new, dtype)
            ctx.set_shape(new, shape)
            ctx.replace_all_inputs(old, new)
        ctx.remove_node(name)


def _has_operator(layer: Layer) -> bool:
    """Tells whether ONNX Runtime has an operator that computes what a recurrent layer does."""
    functions = (layer.activation, getattr(layer.cell, "recurrent_activation", None))
    known = all(f is None or getattr(f, "__name__", "") in _ACTIVATIONS for f in functions)
    return known and layer.compute_dtype == "float32"


def _weights(layer: Layer) -> list[Any]:
    """Returns kernels of inputs and of states, and biases, as ONNX has them: a row an output."""
    import numpy as np

    cell, order = layer.cell, _GATES[type(layer).__name__]

    def rows(array: Any) -> Any:
        parts = np.split(array, len(order), axis=-1)
        return np.concatenate([parts[gate] for gate in order], axis=-1).T

    kernels = [rows(each.numpy())[np.newaxis] for each in (cell.kernel, cell.recurrent_kernel)]
    biases = np.zeros((2, kernels[0].shape[1]), np.float32)
    if layer.use_bias:
        bias = cell.bias.numpy()
        # A GRU may have one for the inputs and one for the states.
        biases[: 1 if bias.ndim == 1 else 2] = rows(bias).T
    return [*kernels, biases.reshape(1, -1)]


def _refuse(*_: Any) -> Any:
    raise ConversionError("A recurrent layer cannot run while the model is converted to ONNX.")
