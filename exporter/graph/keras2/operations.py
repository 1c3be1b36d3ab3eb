"""The operations of TensorFlow that Keras 2 stored as layers, as operations of Keras 3."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from exporter.errors import ModelError
from exporter.graph.types import Tensor

_NAMED = """
    math.abs=absolute math.negative math.sign math.square math.sqrt math.rsqrt math.exp math.expm1
    math.log math.log1p math.sin math.cos math.tanh math.sigmoid math.softplus math.floor
    math.ceil math.round math.erf math.reciprocal nn.relu nn.relu6 nn.selu nn.silu nn.swish=silu
    nn.softsign nn.softplus nn.tanh nn.sigmoid math.softsign zeros_like ones_like stop_gradient
    math.logical_not math.is_nan=isnan math.is_finite=isfinite
    nn.elu nn.leaky_relu:alpha nn.gelu:approximate nn.softmax:axis nn.log_softmax:axis
    math.reduce_mean=mean:axis,keepdims math.reduce_sum=sum:axis,keepdims
    math.reduce_max=max:axis,keepdims math.reduce_min=min:axis,keepdims
    math.reduce_prod=prod:axis,keepdims math.reduce_std=std:axis,keepdims
    math.reduce_variance=var:axis,keepdims math.reduce_logsumexp=logsumexp:axis,keepdims
    math.reduce_any=any:axis,keepdims math.reduce_all=all:axis,keepdims
    clip_by_value=clip:clip_value_min,clip_value_max
    cast:dtype expand_dims:axis squeeze:axis tile:multiples broadcast_to:shape
    transpose:perm reverse=flip:axis roll:shift,axis repeat:repeats,axis one_hot:depth
    concat=concatenate:axis stack:axis unstack:num,axis
    keras.backend.mean:axis,keepdims keras.backend.sum:axis,keepdims
    keras.backend.max:axis,keepdims keras.backend.min:axis,keepdims
    keras.backend.std:axis,keepdims keras.backend.var:axis,keepdims
    keras.backend.abs=absolute keras.backend.square keras.backend.sqrt keras.backend.exp
    keras.backend.log keras.backend.tanh keras.backend.sigmoid keras.backend.softplus
    keras.backend.clip:min_value,max_value keras.backend.cast:dtype
    keras.backend.softmax:axis keras.backend.elu:alpha
    keras.backend.expand_dims:axis keras.backend.squeeze:axis
    keras.backend.permute_dimensions=transpose:pattern keras.backend.repeat_elements=repeat:rep,axis
    keras.backend.concatenate:axis keras.backend.stack:axis
    keras.activations.relu keras.activations.elu:alpha keras.activations.selu
    keras.activations.gelu:approximate keras.activations.swish=silu keras.activations.tanh
    keras.activations.sigmoid keras.activations.softmax:axis keras.activations.softplus
    keras.activations.softsign keras.activations.exponential=exp
"""
"""Operations, where these differ the name in Keras 3, and their parameters in order."""

_ARITHMETIC = """
    __operators__.add=add math.add math.subtract math.multiply math.divide
    math.truediv=true_divide math.divide_no_nan math.floordiv=floor_divide math.floormod=mod
    math.pow=power math.maximum math.minimum math.greater math.greater_equal math.less
    math.less_equal math.equal math.not_equal math.logical_and math.logical_or math.atan2=arctan2
    nn.bias_add=add keras.backend.maximum keras.backend.minimum keras.backend.pow=power
    __operators__.eq=equal __operators__.ne=not_equal
"""
"""Operations of two tensors, one of which may be a constant."""

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "concatenate": {"axis": -1},
    "expand_dims": {"axis": -1},
    "gelu": {"approximate": False},
    "leaky_relu": {"alpha": 0.2},
    "softmax": {"axis": -1},
    "log_softmax": {"axis": -1},
    "stack": {"axis": 0},
    "unstack": {"axis": 0},
}
"""What is left out in a file, where Keras 3 would take it for something else."""


def operation(symbol: str) -> Callable[..., Any]:
    """Returns the function that a symbol of TensorFlow such as ``math.add`` stands for.

    It takes the first argument by position, and the others by TensorFlow's names for them.

    Raises:
        ModelError: If the symbol is not one of those known.
    """
    symbol = symbol.removeprefix("compat.v1.")
    from keras import ops

    if symbol in _SPECIAL:
        return partial(_SPECIAL[symbol], ops)
    if symbol in _TWO:
        return partial(_arithmetic, ops, _TWO[symbol][0])
    if symbol in _ONE:
        return partial(_call, ops, *_ONE[symbol])
    raise ModelError(f"the operation tf.{symbol} has no counterpart in Keras 3 that is known here.")


def _rows(text: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    rows = {}
    for word in text.split():
        named, _, parameters = word.partition(":")
        symbol, _, name = named.partition("=")
        rows[symbol] = (
            name or symbol.rpartition(".")[2],
            tuple(filter(None, parameters.split(","))),
        )
    return rows


_ONE, _TWO = _rows(_NAMED), _rows(_ARITHMETIC)


def _call(ops: Any, name: str, parameters: Sequence[str], first: Any, **given: Any) -> Any:
    if not _tensors([first]) and name == "stack":
        return list(first)  # Sizes that come of tf.shape.
    given = {**_DEFAULTS.get(name, {}), **_given(given)}
    arguments = [given.pop(parameter, None) for parameter in parameters]
    _check_rest(given)
    while arguments and arguments[-1] is None:
        arguments.pop()
    return getattr(ops, name)(first, *arguments)


def _arithmetic(ops: Any, name: str, first: Any, **given: Any) -> Any:
    second = next((given.pop(key) for key in ("y", "value", "bias", "other") if key in given), None)
    _check_rest(_given(given))
    like = _tensors([first, second])[0]
    return getattr(ops, name)(_operand(first, like), _operand(second, like))


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Drops arguments that say nothing."""
    return {name: value for name, value in arguments.items() if value is not None}


def _check_rest(arguments: Mapping[str, Any]) -> None:
    idle = {
        "name",
        "incompatible_shape_error",
        "preserve_aspect_ratio",
        "conjugate",
        "validate_indices",
    }
    rest = {n: v for n, v in arguments.items() if v is not False and n not in idle}
    if rest:
        raise ModelError(f"the arguments {rest} have no counterpart in Keras 3.")


def _tensors(values: Any) -> list[Tensor]:
    import keras

    return [v for v in keras.tree.flatten(values) if isinstance(v, keras.KerasTensor)]


def _operand(value: Any, like: Tensor) -> Any:
    import numpy as np

    return np.asarray(value, like.dtype) if isinstance(value, (list, tuple)) else value


def _shape(ops: Any, first: Tensor, **given: Any) -> tuple[int | None, ...]:
    return tuple(first.shape)


def _slice(ops: Any, first: Any, slice_spec: Any = None, **given: Any) -> Any:
    def part(spec: Any) -> Any:
        if isinstance(spec, dict):
            if spec.get("class_name") == "__ellipsis__":
                return Ellipsis
            return slice(spec["start"], spec["stop"], spec["step"])
        return spec

    listed = isinstance(slice_spec, (list, tuple))
    parts = tuple(map(part, slice_spec)) if listed else part(slice_spec)
    if isinstance(first, (list, tuple)) and listed:  # What tf.shape returned.
        (parts,) = parts
    return first[parts]


def _reshape(ops: Any, first: Tensor, shape: Any = None, **given: Any) -> Any:
    if _tensors(shape):
        raise ModelError("tf.reshape to a computed shape has no counterpart in Keras 3.")
    return ops.reshape(first, tuple(-1 if size is None else size for size in shape))


def _matmul(ops: Any, first: Any, b: Any = None, **given: Any) -> Any:
    like = _tensors([first, b])[0]
    flips = [given.pop(key, False) for key in ("transpose_a", "transpose_b")]
    _check_rest(_given(given))
    sides = [_operand(side, like) for side in (first, b)]
    return ops.matmul(
        *(ops.swapaxes(s, -1, -2) if f else s for s, f in zip(sides, flips, strict=True))
    )


def _dot(ops: Any, first: Any, y: Any = None, **given: Any) -> Any:
    return _matmul(ops, first, b=y)


def _split(
    ops: Any, first: Tensor, num_or_size_splits: Any = None, axis: int = 0, **given: Any
) -> Any:
    import numpy as np

    sizes = num_or_size_splits
    if isinstance(sizes, (list, tuple)):
        sizes = [int(end) for end in np.cumsum(sizes)[:-1]]
    return ops.split(first, sizes, axis=axis)


def _argmax(name: str, ops: Any, first: Tensor, axis: int | None = None, **given: Any) -> Any:
    return ops.cast(getattr(ops, name)(first, axis=axis or 0), given.get("output_type", "int64"))


def _normalize(
    ops: Any, first: Tensor, axis: Any = None, epsilon: float = 1e-12, **given: Any
) -> Any:
    squares = ops.sum(ops.square(first), axis=axis, keepdims=True)
    return ops.multiply(first, ops.rsqrt(ops.maximum(squares, epsilon)))


def _pad(
    ops: Any,
    first: Tensor,
    paddings: Any = None,
    mode: str = "CONSTANT",
    constant_values: float = 0,
    **given: Any,
) -> Any:
    value = {"constant_values": constant_values} if mode == "CONSTANT" else {}
    return ops.pad(first, [tuple(pair) for pair in paddings], mode.lower(), **value)


def _resize(
    ops: Any,
    first: Tensor,
    size: Any = None,
    method: str = "bilinear",
    antialias: bool = False,
    **given: Any,
) -> Any:
    if given.get("preserve_aspect_ratio"):
        raise ModelError(
            "tf.image.resize with preserve_aspect_ratio has no counterpart in Keras 3."
        )
    return ops.image.resize(first, tuple(size), interpolation=method, antialias=antialias)


def _gather(
    ops: Any, first: Tensor, indices: Any = None, axis: int | None = None, **given: Any
) -> Any:
    _check_rest({n: v for n, v in _given(given).items() if (n, v) != ("batch_dims", 0)})
    return ops.take(first, indices, axis=axis or 0)


def _where(ops: Any, first: Tensor, x: Any = None, y: Any = None, **given: Any) -> Any:
    return ops.where(first, x, y)


def _cumsum(ops: Any, first: Tensor, axis: int = 0, **given: Any) -> Any:
    _check_rest(_given(given))
    return ops.cumsum(first, axis=axis)


def _identity(ops: Any, first: Tensor, **given: Any) -> Any:
    return ops.copy(first)


def _add_n(ops: Any, first: Sequence[Tensor], **given: Any) -> Any:
    total = first[0]
    for term in first[1:]:
        total = ops.add(total, term)
    return total


def _norm(
    ops: Any,
    first: Tensor,
    ord: Any = "euclidean",
    axis: Any = None,
    keepdims: bool = False,
    **given: Any,
) -> Any:
    axis = tuple(axis) if isinstance(axis, list) else axis
    return ops.norm(first, None if ord == "euclidean" else ord, axis=axis, keepdims=keepdims)


def _hard_sigmoid(ops: Any, first: Tensor, **given: Any) -> Any:
    """Computes ``hard_sigmoid`` as Keras 2 did; that of Keras 3 has another slope."""
    return ops.clip(ops.add(ops.multiply(first, 0.2), 0.5), 0.0, 1.0)


_SPECIAL: Mapping[str, Callable[..., Any]] = {
    "__operators__.getitem": _slice,
    "shape": _shape,
    "reshape": _reshape,
    "keras.backend.reshape": _reshape,
    "linalg.matmul": _matmul,
    "keras.backend.dot": _dot,
    "split": _split,
    "math.argmax": partial(_argmax, "argmax"),
    "math.argmin": partial(_argmax, "argmin"),
    "math.l2_normalize": _normalize,
    "nn.l2_normalize": _normalize,
    "keras.backend.l2_normalize": _normalize,
    "pad": _pad,
    "image.resize": _resize,
    "gather": _gather,
    "where": _where,
    "math.cumsum": _cumsum,
    "identity": _identity,
    "math.add_n": _add_n,
    "norm": _norm,
    "linalg.norm": _norm,
    "keras.activations.hard_sigmoid": _hard_sigmoid,
    "keras.backend.hard_sigmoid": _hard_sigmoid,
}
