"""EinsumDense layers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from string import ascii_letters
from typing import Any

from exporter.graph.layers import input_shape, rebuild
from exporter.graph.rewrite import Replacement
from exporter.lowrank.factorizers.base import Factorizer, head_names, other_params
from exporter.lowrank.kernels import Kernel, count_positions
from exporter.lowrank.linalg.moments import Floats
from exporter.lowrank.linalg.truncation import Truncation


class EinsumDenseFactorizer(Factorizer):
    """``ab,bc->ac`` becomes ``ab,br->ar``, without bias and linear, and ``ar,rc->ac``.

    Axes of the kernel are contracted or appear in the output; they are the inputs and the outputs
    of the matrix. An axis that the kernel shares with both input and output would be a batch of
    matrices, which is not supported.
    """

    kind = "EinsumDense"

    def obstacle(self, layer: Any) -> str:
        """See the base class."""
        if Equation.parse(layer.equation) is None:
            return f"its equation {layer.equation} is not one matrix product"
        return super().obstacle(layer)

    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """See the base class."""
        equation = _equation(layer)
        sizes = dict(zip(equation.kernel, layer.kernel.shape, strict=True))
        m = prod(sizes[label] for label in equation.contracted)
        n = prod(sizes[label] for label in equation.outputs)

        def outputs(inputs: Any) -> Any:
            import tensorflow as tf

            product = tf.einsum(equation.outputs_last, inputs, tf.cast(layer.kernel, inputs.dtype))
            return tf.reshape(product, (-1, 1, n))

        return (
            Kernel(
                name="",
                m=m,
                n=n,
                layer=layer,
                variable=layer.kernel,
                read=lambda array: array.transpose(equation.axes).reshape(1, m, n),
                outputs=outputs,
                positions=count_positions(input_shape(layer)[1:]) // m,
                has_bias=set(equation.outputs) <= set(layer.bias_axes or ""),
                other_params=other_params(layer, layer.kernel),
                # Gradients are read as if these axes came last.
                gradient_at="activation" if equation.output.endswith(equation.outputs) else None,
            ),
        )

    def replace(self, layer: Any, truncations: Mapping[str, Truncation]) -> Replacement:
        """See the base class."""
        (truncation,) = truncations.values()
        *thin, last = (matrices[0] for matrices in truncation.matrices)
        equation = _equation(layer)
        shape = input_shape(layer)
        heads: list[Any] = []
        for name, matrix in zip(head_names(layer.name, len(thin)), thin, strict=True):
            head = _head(layer, equation, shape, name, matrix, first=not heads)
            shape = head.compute_output_shape(shape)
            heads.append(head)
        sizes = dict(zip(equation.kernel, layer.kernel.shape, strict=True))
        weights = [last.reshape(-1, *(sizes[label] for label in equation.outputs))]
        if layer.bias is not None:
            weights.append(_shifted(layer, equation, truncation))
        tail = rebuild(layer, shape, weights, equation=equation.tail, kernel_constraint=None)
        layers = (*heads, tail)
        return Replacement(layers, {"": tuple(part.kernel for part in layers)})


@dataclass(frozen=True)
class Equation:
    """An equation of one matrix product, by the labels of its axes.

    Attributes:
        input: Of the input, with the dots.
        kernel: Of the kernel.
        output: Of the output, with the dots.
    """

    input: str
    kernel: str
    output: str

    @classmethod
    def parse(cls, equation: str) -> "Equation | None":
        """Returns None if it is of another kind."""
        match = re.fullmatch(r"([a-zA-Z.]+),([a-zA-Z]+)->([a-zA-Z.]+)", equation.replace(" ", ""))
        if match is None:
            return None
        parsed = cls(*match.groups())
        labels = [part.replace(".", "") for part in match.groups()]
        given, kernel, result = map(set, labels)
        once = all(len(set(part)) == len(part) for part in labels)
        return parsed if parsed._is_product(given, kernel, result) and once else None

    def _is_product(self, given: set[str], kernel: set[str], result: set[str]) -> bool:
        batch = self.output[0]
        return (
            bool(kernel & given)
            and bool(kernel & result)
            and not kernel & given & result
            and kernel <= given | result
            and given - kernel == result - kernel  # Nothing is summed without the kernel.
            and batch == self.input[0]
        )

    @property
    def contracted(self) -> str:
        """The labels of the kernel that are summed over, in its order."""
        return "".join(label for label in self.kernel if label in self.input)

    @property
    def outputs(self) -> str:
        """The labels of the kernel that appear in the output, in the order of the output."""
        return "".join(label for label in self.output if label in self.kernel)

    @property
    def axes(self) -> list[int]:
        """The order of the kernel's axes in the matrix."""
        return [self.kernel.index(label) for label in self.contracted + self.outputs]

    @property
    def outputs_last(self) -> str:
        """The same product, with the outputs of the matrix as the last axes."""
        others = "".join(label for label in self.output if label not in self.outputs)
        return f"{self.input},{self.kernel}->{others}{self.outputs}"

    @property
    def latent(self) -> str:
        """The output with one axis, of size r, instead of the kernel's."""
        first, others = self.outputs[0], self.outputs[1:]
        return "".join(
            self.rank if label == first else label for label in self.output if label not in others
        )

    @property
    def rank(self) -> str:
        """A label that is free."""
        return next(x for x in ascii_letters if x not in self.input + self.kernel + self.output)

    @property
    def head(self) -> str:
        """From the input to the latent."""
        return f"{self.input},{self.contracted}{self.rank}->{self.latent}"

    @property
    def middle(self) -> str:
        """From one latent to another of the same size."""
        free = next(x for x in reversed(ascii_letters) if x not in self.latent)
        return f"{self.latent},{self.rank}{free}->{self.latent.replace(self.rank, free)}"

    @property
    def tail(self) -> str:
        """From the latent to the output."""
        return f"{self.latent},{self.rank}{self.outputs}->{self.output}"


def _equation(layer: Any) -> Equation:
    parsed = Equation.parse(layer.equation)
    if parsed is None:
        raise ValueError(f"The equation {layer.equation} is not one matrix product.")
    return parsed


def _head(
    layer: Any, equation: Equation, shape: Any, name: str, matrix: Floats, *, first: bool
) -> Any:
    sizes = dict(zip(equation.kernel, layer.kernel.shape, strict=True))
    # Keras is told the sizes of the output's labels, but for the batch and what the dots stand for.
    labels, sized = equation.output.replace(".", ""), layer.partial_output_shape
    known = dict(zip(reversed(labels), reversed(sized), strict=False))
    rank = matrix.shape[1]
    latent = equation.latent.replace(".", "")
    contracted = [sizes[label] for label in equation.contracted] if first else [len(matrix)]
    return rebuild(
        layer,
        shape,
        [matrix.reshape(*contracted, rank)],
        name=name,
        equation=equation.head if first else equation.middle,
        output_shape=[
            rank if label == equation.rank else known[label]
            for label in latent
            if label == equation.rank or label in known
        ],
        bias_axes=None,
        activation="linear",
        bias_regularizer=None,
        bias_constraint=None,
        activity_regularizer=None,
        kernel_constraint=None,
    )


def _shifted(layer: Any, equation: Equation, truncation: Truncation) -> Any:
    """Moves the bias; it may have axes of its own, which the shift does not depend on."""
    bias = layer.bias.numpy()
    if truncation.bias_shift is None or not set(equation.outputs) <= set(layer.bias_axes):
        return bias
    sizes = dict(zip(equation.kernel, layer.kernel.shape, strict=True))
    labels = equation.output.replace(".", "")
    start = min(labels.index(label) for label in layer.bias_axes)
    shape = [sizes.get(label, 1) if label in equation.outputs else 1 for label in labels[start:]]
    trailing = bias.ndim - len(shape)  # Of the axes that dots on the right stand for.
    return bias + truncation.bias_shift.reshape(*shape, *(1,) * trailing)
