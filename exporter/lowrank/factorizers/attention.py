"""Multi-head attention: its four projections, each on its own."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from exporter.graph.layers import attention_options, called_with, configuration
from exporter.graph.rewrite import Replacement
from exporter.lowrank.factorizers.base import Factorizer, Shape, linear_dense, shifted
from exporter.lowrank.kernels import Kernel, count_positions, times
from exporter.lowrank.linalg.truncation import Truncation

INPUTS = ("query", "key", "value")
OUTPUT = "output"


class AttentionFactorizer(Factorizer):
    """Factorizes the projections of query, key, value and output of an attention layer.

    The first factor of an input becomes a ``Dense`` layer before the attention, which then takes
    smaller inputs. For the output, the attention returns the latent, and a ``Dense`` layer follows.
    """

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
        counts = {name: count_positions(tensors[name].shape[1:-1]) for name in INPUTS}
        inputs = (_kernel(layer, name, 2, counts[name]) for name in INPUTS)
        return (*inputs, _kernel(layer, OUTPUT, 1, counts["query"]))

    def replace(self, layer: Any, truncations: Mapping[str, Truncation]) -> Replacement:
        """See the base class."""
        options = attention_options(layer, "kernel_regularizer")
        heads = {
            name: tuple(
                linear_dense(layer, f"{layer.name}_{name}_{letter}", matrices[0], **options)
                for letter, matrices in zip("us", truncations[name].matrices[:-1], strict=False)
            )
            for name in INPUTS
            if name in truncations
        }
        core = _core(layer, heads, truncations)
        factors = {
            name: (*(part.kernel for part in parts), _projection(core, name).kernel)
            for name, parts in heads.items()
        }
        tail: tuple[Any, ...] = ()
        if OUTPUT in truncations:
            tail = (self.tail(layer, truncations[OUTPUT], ()),)
            if len(truncations[OUTPUT].matrices) == 3:
                name, matrices = f"{layer.name}_{OUTPUT}_s", truncations[OUTPUT].matrices[1]
                tail = (linear_dense(layer, name, matrices[0], **options), *tail)
            factors[OUTPUT] = (core.output_dense.kernel, *(part.kernel for part in tail))
        before = (part for parts in heads.values() for part in parts)
        return _AttentionReplacement((*before, core, *tail), factors, heads, core, tail)

    def tail(self, layer: Any, truncation: Truncation, shape: Shape) -> Any:
        """See the base class."""
        names = ("kernel_regularizer", "bias_regularizer", "bias_constraint")
        return linear_dense(
            layer,
            layer.name,
            truncation.matrices[-1][0],
            shifted(layer.output_dense.bias, truncation) if layer.use_bias else None,
            **attention_options(layer, *names, "activity_regularizer"),
        )


@dataclass(frozen=True)
class _AttentionReplacement(Replacement):
    heads: Mapping[str, tuple[Any, ...]]
    core: Any
    tail: tuple[Any, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Takes the arguments of the attention that is replaced."""
        # Of the class: observers may have replaced the method of the layer.
        signature = inspect.signature(type(self.core).call)
        given = signature.bind(self.core, *args, **kwargs).arguments
        del given["self"]
        if given.get("key") is None:
            given["key"] = given["value"]
        for name, layers in self.heads.items():
            for layer in layers:
                given[name] = layer(given[name])
        result = self.core(**given)
        scored = given.get("return_attention_scores")
        output, *scores = result if scored else (result,)
        for layer in self.tail:
            output = layer(output)
        return (output, *scores) if scored else output


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


def _kernel(layer: Any, name: str, outputs: int, positions: int) -> Kernel:
    """Returns a projection whose kernel has that many axes of outputs."""
    projection = _projection(layer, name)
    shape = projection.kernel.shape
    m, n = prod(shape[:-outputs]), prod(shape[-outputs:])

    def apply(inputs: Any) -> Any:
        import tensorflow as tf

        return times(inputs, tf.reshape(projection.kernel, (m, n)))

    return Kernel(
        name=name,
        m=m,
        n=n,
        layer=projection,
        variable=projection.kernel,
        read=lambda array: array.reshape(1, m, n),
        outputs=apply,
        positions=positions,
        has_bias=layer.use_bias,
        # Keras gives a bias to all projections or to none; that of the latent is zero.
        latent_bias=layer.use_bias and name == OUTPUT,
    )


def _core(
    layer: Any, heads: Mapping[str, tuple[Any, ...]], truncations: Mapping[str, Truncation]
) -> Any:
    """Builds the attention between the layers before and after it."""
    after = truncations.get(OUTPUT)
    outputs = layer.output_dense.kernel.shape[-1] if after is None else after.matrices[0].shape[2]
    config = {
        **configuration(layer),
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
