"""Multi-head attention: its four projections, each on its own."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from exporter.graph.layers import attention_options, called_with
from exporter.graph.rewrite import Replacement
from exporter.lowrank.factorizers.base import Factorizer, head_names, linear_dense, shifted
from exporter.lowrank.kernels import Kernel, count_positions, times
from exporter.lowrank.linalg.truncation import Truncation

INPUTS = ("query", "key", "value")
OUTPUT = "output"


class AttentionFactorizer(Factorizer):
    """The projections of query, key, value and output; one becomes two where it is cut.

    The first factor of an input becomes a ``Dense`` layer before the attention, which then takes
    smaller inputs. The output is the other way round: the attention returns the latent, and a
    ``Dense`` layer follows it. No layer but those of Keras is needed.
    """

    kind = "MultiHeadAttention"

    def obstacle(self, layer: Any) -> str:
        """See the base class."""
        options = attention_options(layer, "use_gate", "output_shape")
        if options["use_gate"]:
            return "has a gate that takes the query as it is"
        if len(options["output_shape"] or ()) > 1:
            return "has an output of several axes"
        parts = (layer, *(_projection(layer, name) for name in (*INPUTS, OUTPUT)))
        return next(filter(None, map(super().obstacle, parts)), "")

    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """See the base class."""
        tensors = _input_tensors(layer)
        positions = {name: count_positions(tensors[name].shape[1:-1]) for name in INPUTS}
        output = _OutputKernel(**_common(layer, OUTPUT, 1), positions=positions["query"])
        inputs = (Kernel(**_common(layer, name, 2), positions=positions[name]) for name in INPUTS)
        return (*inputs, output)

    def replace(self, layer: Any, truncations: Mapping[str, Truncation]) -> Replacement:
        """See the base class."""
        heads = {
            name: tuple(_heads(layer, name, truncations[name]))
            for name in INPUTS
            if name in truncations
        }
        after = OUTPUT in truncations
        core = _core(layer, heads, truncations)
        tail = tuple(_tail(layer, truncations[OUTPUT])) if after else ()
        factors = {
            name: (*(part.kernel for part in parts), _projection(core, name).kernel)
            for name, parts in heads.items()
        }
        if after:
            factors[OUTPUT] = (core.output_dense.kernel, *(part.kernel for part in tail))
        before = (part for parts in heads.values() for part in parts)
        return _AttentionReplacement((*before, core, *tail), factors, heads, core, tail)


@dataclass(frozen=True)
class _AttentionReplacement(Replacement):
    heads: Mapping[str, tuple[Any, ...]]
    core: Any
    tail: tuple[Any, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Takes the arguments of the attention that it stands in for."""
        given = inspect.signature(self.core.call).bind(*args, **kwargs).arguments
        if given.get("key") is None:
            given["key"] = given["value"]
        for name, layers in self.heads.items():
            for layer in layers:
                given[name] = layer(given[name])
        result = self.core(**given)
        if not given.get("return_attention_scores"):
            return self._finish(result)
        output, scores = result
        return self._finish(output), scores

    def _finish(self, output: Any) -> Any:
        for layer in self.tail:
            output = layer(output)
        return output


class _OutputKernel(Kernel):
    """The projection of the output, whose first factor gets a bias of its own, of zeros.

    Keras gives a bias to all projections or to none.
    """

    @property
    def break_even_rank(self) -> float:
        return self.m * self.n / (self.m + self.n + self.has_bias)

    def params(self, rank: int | None, *, merge: bool = True) -> int:
        bias = rank if rank and self.has_bias else 0
        return super().params(rank, merge=merge) + bias


def _projection(layer: Any, name: str) -> Any:
    return getattr(layer, f"{name}_dense")


def _input_tensors(layer: Any) -> dict[str, Any]:
    given = called_with(layer)
    key = given.get("key")
    return {
        "query": given["query"],
        "key": given["value"] if key is None else key,
        "value": given["value"],
    }


def _common(layer: Any, name: str, outputs: int) -> dict[str, Any]:
    """Returns what describes a projection whose kernel has that many axes of outputs."""
    projection = _projection(layer, name)
    shape = projection.kernel.shape
    m, n = prod(shape[:-outputs]), prod(shape[-outputs:])

    def apply(inputs: Any) -> Any:
        import tensorflow as tf

        return times(inputs, tf.reshape(projection.kernel, (m, n)))

    return {
        "name": name,
        "m": m,
        "n": n,
        "layer": projection,
        "variable": projection.kernel,
        "read": lambda array: array.reshape(1, m, n),
        "outputs": apply,
        "has_bias": layer.use_bias,
        "other_params": n if layer.use_bias else 0,
    }


def _heads(layer: Any, name: str, truncation: Truncation) -> list[Any]:
    matrices = [matrices[0] for matrices in truncation.matrices[:-1]]
    options = attention_options(layer, "kernel_regularizer")
    return [
        linear_dense(layer, head, matrix, **options)
        for head, matrix in zip(
            head_names(f"{layer.name}_{name}", len(matrices)), matrices, strict=True
        )
    ]


def _core(
    layer: Any, heads: Mapping[str, tuple[Any, ...]], truncations: Mapping[str, Truncation]
) -> Any:
    """Builds the attention between the layers before and after it."""
    after = truncations.get(OUTPUT)
    outputs = layer.output_dense.kernel.shape[-1] if after is None else after.matrices[0].shape[2]
    config = {
        **layer.get_config(),
        "name": layer.name if after is None else f"{layer.name}_core",
        # By default it would be the size of the query, which may have changed.
        "output_shape": (outputs,),
        "kernel_constraint": None,
    }
    core = type(layer).from_config(config)
    shapes = {name: tensor.shape for name, tensor in _input_tensors(layer).items()}
    for name, parts in heads.items():
        shapes[name] = (*shapes[name][:-1], parts[-1].units)
    core.build(shapes["query"], shapes["value"], shapes["key"])
    for name in (*INPUTS, OUTPUT):
        original, projection = _projection(layer, name), _projection(core, name)
        weights = original.get_weights()
        if name in heads:
            truncation = truncations[name]
            weights[0] = truncation.matrices[-1].reshape(projection.kernel.shape)
            if layer.use_bias:
                weights[1] = shifted(original.bias, truncation)
        elif name == OUTPUT and after is not None:
            weights[0] = after.matrices[0].reshape(projection.kernel.shape)
            if layer.use_bias:
                weights[1] = np.zeros(outputs)
        projection.set_weights(weights)
    return core


def _tail(layer: Any, truncation: Truncation) -> list[Any]:
    *middle, last = (matrices[0] for matrices in truncation.matrices[1:])
    options = attention_options(layer, "kernel_regularizer")
    scales = [
        linear_dense(layer, f"{layer.name}_{OUTPUT}_s", matrix, **options) for matrix in middle
    ]
    tail = linear_dense(
        layer,
        layer.name,
        last,
        shifted(layer.output_dense.bias, truncation) if layer.use_bias else None,
        **options,
        **attention_options(layer, "bias_regularizer", "bias_constraint", "activity_regularizer"),
    )
    return [*scales, tail]
