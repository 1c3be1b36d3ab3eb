"""EinsumDense layers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from string import ascii_letters
from typing import Any

from exporter.graph.layers import input_shape, rebuild
from exporter.lowrank.factorizers.base import LINEAR, Factorizer, Shape
from exporter.lowrank.kernels import Kernel, count_positions
from exporter.lowrank.linalg.moments import Floats
from exporter.lowrank.linalg.truncation import Truncation


class EinsumDenseFactorizer(Factorizer):
    """``ab,bc->ac`` becomes ``ab,br->ar``, without bias and linear, and ``ar,rc->ac``.

    Axes of the kernel are contracted or appear in the output; they are the inputs and the outputs
    of the matrix. An axis that the kernel shares with both input and output would be a batch of
    matrices, which is not supported.
    """

    def obstacle(self, layer: Any) -> str:
        """See the base class."""
        if Equation.parse(layer.equation) is None:
            return f"its equation {layer.equation} is not one matrix product"
        return super().obstacle(layer)

    def kernels(self, layer: Any) -> tuple[Kernel, ...]:
        """See the base class."""
        equation, sizes = _equation(layer)
        m, n = (
            prod(sizes[x] for x in labels) for labels in (equation.contracted, equation.outputs)
        )

        def outputs(inputs: Any) -> Any:
            import tensorflow as tf

            product = tf.einsum(equation.outputs_last, inputs, tf.cast(layer.kernel, inputs.dtype))
            return tf.reshape(product, (-1, 1, n))

        kernel = Kernel(
            m=m,
            n=n,
            layer=layer,
            variable=layer.kernel,
            read=lambda array: array.transpose(equation.axes).reshape(1, m, n),
            outputs=outputs,
            positions=count_positions(input_shape(layer)[1:]) // m,
            has_bias=set(equation.outputs) <= set(layer.bias_axes or ""),
            # Gradients are read as if these axes came last.
            gradient_at="activation" if equation.output.endswith(equation.outputs) else None,
        )
        return (kernel,)

    def head(self, layer: Any, name: str, matrices: Floats, shape: Shape) -> Any:
        """See the base class."""
        equation, sizes = _equation(layer)
        kernel = matrices.reshape(*(sizes[label] for label in equation.contracted), -1)
        return _linear(layer, equation.head, name, kernel, shape)

    def middle(self, layer: Any, name: str, matrices: Floats, shape: Shape) -> Any:
        """See the base class."""
        return _linear(layer, _equation(layer)[0].middle, name, matrices[0], shape)

    def tail(self, layer: Any, truncation: Truncation, shape: Shape) -> Any:
        """See the base class."""
        equation, sizes = _equation(layer)
        last = truncation.matrices[-1]
        weights = [last.reshape(-1, *(sizes[label] for label in equation.outputs))]
        if layer.bias is not None:
            weights.append(_shifted(layer, equation, sizes, truncation))
        return rebuild(layer, shape, weights, equation=equation.tail, kernel_constraint=None)


@dataclass(frozen=True)
class Equation:
    """The equation of one matrix product: the labels of the axes, with dots in input and output."""

    input: str
    kernel: str
    output: str

    @classmethod
    def parse(cls, equation: str) -> "Equation | None":
        """Parses an equation; returns None if it is not one matrix product."""
        match = re.fullmatch(r"([a-zA-Z.]+),([a-zA-Z]+)->([a-zA-Z.]+)", equation.replace(" ", ""))
        if match is None:
            return None
        parsed = cls(*match.groups())
        labels = [part.replace(".", "") for part in match.groups()]
        given, kernel, result = map(set, labels)
        is_product = (
            all(len(set(part)) == len(part) for part in labels)
            and kernel & given
            and kernel & result
            and not kernel & given & result
            and kernel <= given | result
            and given - kernel == result - kernel  # Nothing is summed without the kernel.
            and parsed.output[0] == parsed.input[0]  # The batch comes first.
        )
        return parsed if is_product else None

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
        """The labels of the output with one axis, of size r, instead of the kernel's."""
        first, others = self.outputs[0], self.outputs[1:]
        kept = "".join(label for label in self.output if label not in others)
        return kept.replace(first, self.rank)

    @property
    def rank(self) -> str:
        """A label that is free, for the axis of size r."""
        return next(x for x in ascii_letters if x not in self.input + self.kernel + self.output)

    @property
    def head(self) -> str:
        """The equation from the input to the latent."""
        return f"{self.input},{self.contracted}{self.rank}->{self.latent}"

    @property
    def middle(self) -> str:
        """The equation from one latent to another of the same size."""
        free = next(x for x in reversed(ascii_letters) if x not in self.latent)
        return f"{self.latent},{self.rank}{free}->{self.latent.replace(self.rank, free)}"

    @property
    def tail(self) -> str:
        """The equation from the latent to the output."""
        return f"{self.latent},{self.rank}{self.outputs}->{self.output}"


def _equation(layer: Any) -> tuple[Equation, dict[str, int]]:
    """Returns the parsed equation of a layer, and the sizes of its kernel's axes by label."""
    parsed = Equation.parse(layer.equation)
    if parsed is None:
        raise ValueError(f"The equation {layer.equation} is not one matrix product.")
    return parsed, dict(zip(parsed.kernel, layer.kernel.shape, strict=True))


def _linear(layer: Any, product: str, name: str, kernel: Floats, shape: Shape) -> Any:
    """Builds a linear layer that computes the latent by an equation."""
    # Keras is told the sizes of the output's labels, except the batch and what the dots stand for.
    equation, _ = _equation(layer)
    labels, sized = equation.output.replace(".", ""), layer.partial_output_shape
    known = dict(zip(reversed(labels), reversed(sized), strict=False))
    known[equation.rank] = kernel.shape[-1]
    return rebuild(
        layer,
        shape,
        [kernel],
        name=name,
        equation=product,
        output_shape=[known[label] for label in equation.latent if label in known],
        bias_axes=None,
        kernel_constraint=None,
        **{key: value for key, value in LINEAR.items() if key != "use_bias"},
    )


def _shifted(
    layer: Any, equation: Equation, sizes: Mapping[str, int], truncation: Truncation
) -> Any:
    """Shifts the bias; it may have axes of its own, which the shift does not depend on."""
    bias = layer.bias.numpy()
    if truncation.bias_shift is None or not set(equation.outputs) <= set(layer.bias_axes):
        return bias
    labels = equation.output.replace(".", "")
    start = min(labels.index(label) for label in layer.bias_axes)
    shape = [sizes.get(label, 1) if label in equation.outputs else 1 for label in labels[start:]]
    trailing = bias.ndim - len(shape)  # Axes that dots on the right stand for.
    return bias + truncation.bias_shift.reshape(*shape, *(1,) * trailing)
