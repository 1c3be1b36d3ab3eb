"""Trains full weights by the gradient at their truncation: the algorithm of the notebook."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporter.graph.hooks import called, watched
from exporter.graph.network import Network
from exporter.graph.rewrite import Replacement
from exporter.graph.types import Tensor, Variable
from exporter.graph.walk import own_variables
from exporter.lowrank.candidates import Candidate, candidates
from exporter.lowrank.engine import build_replacements
from exporter.lowrank.kernels import Kernel
from exporter.lowrank.linalg.subspace import iterate, starting_basis
from exporter.lowrank.linalg.truncation import Truncation
from exporter.training.data import Batch
from exporter.training.objective import SampleLosses
from exporter.training.phase import Phase


class Projected(Phase):
    """Predicts with the truncation P(W) of each kernel W, and applies the gradient at P(W) to W.

    Each step truncates W by one warm-started subspace iteration and predicts with the two factors.
    The gradient at P(W) is computed from the inputs of the first factor and the gradient at the
    outputs of the second, the only product of the size of W. Other weights are trained as usual.

    This works for kernels whose factors are plain matrices and whose output gradient can be read:
    dense, einsum and embedding layers, convolutions cut by channel. Other kernels are trained at
    full rank and cut when training has ended.

    Attributes:
        updated: The network of full weights.
        left_out: Names of kernels that are trained at full rank, though the plan cuts them.
    """

    name = "projected"

    def __init__(self, network: Network, ranks: Mapping[str, int]) -> None:
        """Copies the network of full weights under the current strategy."""
        self.updated = network.copy()
        found = [c for c in candidates(self.updated) if c.name in ranks]
        pieces = [_piece(candidate, ranks[candidate.name]) for candidate in found]
        self._pieces = [piece for piece in pieces if piece is not None]
        self.left_out = tuple(n for n in ranks if n not in {p.name for p in self._pieces})
        self.student = self.updated.rewrite({p.path: p.replacement for p in self._pieces})
        thin = [weight for piece in self._pieces for weight in piece.factors]
        self._others = _without(self.student.model.trainable_variables, thin)
        kernels = [piece.kernel.variable for piece in self._pieces]
        self.trained = [*kernels, *self._others]
        bases = [piece.basis for piece in self._pieces]
        self.state = [*kernels, *bases, *self.student.model.variables]

    def prepare(self) -> None:
        """Truncates the full weights."""
        for piece in self._pieces:
            piece.truncate()

    def gradients(self, objective: SampleLosses, batch: Batch, share: Any) -> tuple[Any, list[Any]]:
        """See the base class."""
        import tensorflow as tf

        heads = [piece.replacement.layers[0] for piece in self._pieces]
        tails = [piece.replacement.layers[-1] for piece in self._pieces]
        places = [(t, p.kernel.gradient_at) for t, p in zip(tails, self._pieces, strict=True)]
        with tf.GradientTape() as tape, watched(places, tape) as results, called(heads) as calls:
            loss, total = self.losses(objective, batch, share)
        at_outputs = [results[id(tail)] for tail in tails]
        others, at_outputs = tape.gradient(total, (self._others, at_outputs))
        kernels = [
            piece.gradient([given for given, _ in calls[id(head)]], gradients)
            for piece, head, gradients in zip(self._pieces, heads, at_outputs, strict=True)
        ]
        return loss, [*kernels, *others]

    def finish(self) -> Network:
        """Copies the weights that were trained in the student to the network of full weights."""
        layers = self.student.layers
        by_path = {piece.path: piece for piece in self._pieces}
        for path, layer in self.updated.layers.items():
            piece = by_path.get(path)
            source = own_variables(layers[path]) if piece is None else piece.other_variables
            target = _without(
                own_variables(layer), [] if piece is None else [piece.kernel.variable]
            )
            for variable, value in zip(target, source, strict=True):
                variable.assign(value)
        return self.updated


@dataclass(frozen=True)
class _Piece:
    """A kernel of full weights, the student's two layers of its factors, and a basis.

    The next subspace iteration starts from the basis.
    """

    name: str
    path: str
    kernel: Kernel
    rank: int
    replacement: Replacement
    basis: Any

    @property
    def factors(self) -> tuple[Variable, ...]:
        return self.replacement.factors[self.kernel.name]

    @property
    def other_variables(self) -> list[Variable]:
        """Variables of the two layers other than the factors."""
        variables = [v for layer in self.replacement.layers for v in layer.variables]
        return _without(variables, self.factors)

    def truncate(self) -> None:
        import tensorflow as tf

        matrix = tf.reshape(tf.convert_to_tensor(self.kernel.variable), (-1, self.kernel.n))
        truncated = iterate(matrix, tf.convert_to_tensor(self.basis), self.rank)
        for factor, value in zip(self.factors, (truncated.thin, truncated.wide), strict=True):
            factor.assign(tf.reshape(value, factor.shape))
        self.basis.assign(truncated.basis)

    def gradient(self, given: Sequence[Tensor], at_outputs: Sequence[Tensor]) -> Tensor:
        """Computes the gradient of the full weights at the truncation, from all calls."""
        import tensorflow as tf

        variable = self.kernel.variable
        shape = (-1, self.kernel.groups, self.kernel.n)
        with tf.GradientTape() as tape:
            # TensorFlow prunes the outputs from the graph; only their gradient is computed.
            rows = [self.kernel.outputs(tf.stop_gradient(x)) for x in given]
        total = tape.gradient(rows, variable, [tf.reshape(g, shape) for g in at_outputs])
        return tf.convert_to_tensor(total)


def _without(variables: Sequence[Variable], others: Sequence[Variable]) -> list[Variable]:
    left_out = {id(variable) for variable in others}
    return [variable for variable in variables if id(variable) not in left_out]


def _piece(candidate: Candidate, rank: int) -> _Piece | None:
    """Builds the layers of a kernel's factors; returns None if it is to be trained at full rank."""
    import keras

    kernel = candidate.kernel
    if kernel is None or kernel.groups > 1 or kernel.gradient_at is None:
        return None
    if kernel.layer is not candidate.layer:
        return None  # One projection of several: their layers are replaced together.
    if not kernel.variable.trainable or kernel.variable.dtype != "float32":
        return None
    truncation = kernel.truncate(rank)
    (replacement,) = build_replacements([candidate], {candidate.name: truncation}).values()
    array = kernel.variable.numpy()
    same = _same_layout(kernel.read(array), array)
    if not same or not _are_plain(replacement, kernel, truncation):
        return None
    start = starting_basis(kernel.matrices(precise=False)[0], rank)
    basis = keras.Variable(start, trainable=False, dtype="float32", name="basis")
    piece = _Piece(candidate.name, candidate.path, kernel, rank, replacement, basis)
    kept = [v.shape for v in candidate.layer.variables if v is not kernel.variable]
    return piece if [v.shape for v in piece.other_variables] == kept else None


def _same_layout(matrices: Any, array: Any) -> bool:
    return bool(np.array_equal(matrices.ravel(), array.ravel()))


def _are_plain(replacement: Replacement, kernel: Kernel, truncation: Truncation) -> bool:
    """Tells whether the two factors are the matrices of the truncation, reshaped at most."""
    weights = replacement.factors[kernel.name]
    if len(replacement.layers) != 2 or len(replacement.layers[0].variables) != 1:
        return False
    return len(weights) == len(truncation.matrices) and all(
        _same_layout(matrix.astype(weight.dtype), weight.numpy())
        for matrix, weight in zip(truncation.matrices, weights, strict=True)
    )
