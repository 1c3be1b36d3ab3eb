"""Rank-aware training of a model by its own ``fit``: a callback keeps kernels at low rank."""

from dataclasses import dataclass
from math import prod
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from exporter.errors import RecipeError
from exporter.graph.network import Network
from exporter.graph.types import Tensor, Variable
from exporter.lowrank.candidates import candidates, listing
from exporter.lowrank.kernels import Kernel
from exporter.lowrank.linalg.subspace import iterate, starting_basis
from exporter.lowrank.ranks.named import policy_for
from exporter.options.groups import Cut, Goal
from exporter.options.rank import DEFAULT_RANK, Rank


class RankAware(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps kernels at the rank at which they will be cut, while ``model.fit`` trains them.

    Each kernel keeps its shape, and so do the optimizer's variables. Every few steps it is replaced
    by its truncated SVD, which is projected gradient descent on matrices of low rank (Jain et al.,
    2010). It has that rank whenever the model is validated and when training ends, so that
    ``exporter.compress(model, rank=callback.ranks)`` costs next to nothing then. Frozen kernels
    that the rank covers are truncated as well, when training begins.

    ``logs["discarded_energy"]`` of an epoch is the largest part of its squared norm, 0 to 1, that a
    kernel lost at a truncation.

    Attributes:
        ranks: The rank of each kernel, by its layer's name; empty until training begins.
    """

    def __init__(
        self, rank: Rank = DEFAULT_RANK, *, every: int = 10, convolution: str = "channel"
    ) -> None:
        """Checks what does not depend on the model.

        Args:
            rank: As for ``exporter.compress``. Names such as ``"auto"`` read the ranks off the
                weights when training begins, which suits models that are trained already.
            every: Steps from one truncation to the next; with ``steps_per_execution``, executions.
            convolution: How convolutions will be cut: ``"channel"`` or ``"spatial"``.

        Raises:
            RecipeError: If a value is none that the argument takes.
        """
        super().__init__()
        self._policy: Any = policy_for(Goal(rank=rank))
        self._convolution = Cut(convolution=convolution).convolution
        if self._convolution == "tucker2":
            raise RecipeError(
                "convolution must be 'channel' or 'spatial', which cut one matrix at one rank. "
                "Received: 'tucker2'."
            )
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise RecipeError(f"every must be a whole number of steps >= 1. Received: {every!r}.")
        self._every, self._steps, self._discarded = every, 0, 0.0
        self._pieces: list[_Piece] = []
        self.ranks: dict[str, int] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Plans the ranks, as ``compress`` does; those of a model without weights after a step.

        Raises:
            ModelError: If the model's graph cannot be read, or a kernel is not finite.
            RecipeError: If the rank does not fit the model, or makes no layer smaller.
        """
        self._steps = 0
        if self.model.built:
            self._plan()

    def _plan(self) -> None:
        found = candidates(Network.of(self.model), convolution=self._convolution)
        kernels = {c.name: c.kernel for c in found if c.kernel}
        reads = self._policy.needs_curves
        curves = {name: k.error_curve() for name, k in kernels.items()} if reads else None
        self.ranks = self._policy.select(found, curves).ranks
        if not self.ranks:
            raise RecipeError(f"The rank must make a layer smaller. Layers: {listing(found)}.")
        with self.model.distribute_strategy.scope():
            self._pieces = [_Piece.of(kernels[name], rank) for name, rank in self.ranks.items()]
        self._traced = tf.function(self._truncate_all, autograph=False)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Truncates what other callbacks may have restored."""
        self._discarded = 0.0
        self._truncate()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Truncates, if it is time to."""
        if not self._pieces:
            self._plan()
        self._steps += 1
        if self._steps % self._every == 0:
            self._truncate()

    def on_test_begin(self, logs: Any = None) -> None:
        """Truncates, so that validation sees the model that will be cut."""
        self._truncate()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Truncates, and adds ``discarded_energy`` to the logs."""
        self._truncate()
        if logs is not None:
            logs["discarded_energy"] = self._discarded

    def on_train_end(self, logs: Any = None) -> None:
        """Truncates what the optimizer or other callbacks may have put in at the end."""
        self._truncate()
        self._pieces = []

    def _truncate(self) -> None:
        if self._pieces:  # None outside of ``fit``.
            with self.model.distribute_strategy.scope():
                self._discarded = float(np.maximum(self._traced(), self._discarded))

    def _truncate_all(self) -> Tensor:
        return tf.reduce_max([tf.cast(piece.truncate(), "float32") for piece in self._pieces])


@dataclass(frozen=True)
class _Piece:
    """A kernel that is kept at a rank.

    Attributes:
        basis: Columns that the next subspace iteration starts from, g x n x k.
        order: Elements of the weight in the order of the g x m x n matrices; None if it is theirs.
    """

    kernel: Kernel
    rank: int
    basis: Variable
    order: Any

    @classmethod
    def of(cls, kernel: Kernel, rank: int) -> "_Piece":
        matrices = kernel.matrices(precise=False)
        start = np.stack([starting_basis(matrix, rank) for matrix in matrices])
        basis = keras.Variable(start, trainable=False, dtype=matrices.dtype.name, name="basis")
        size = prod(matrices.shape)
        order = kernel.read(np.arange(size).reshape(kernel.variable.shape)).ravel()
        return cls(kernel, rank, basis, None if np.array_equal(order, range(size)) else order)

    def truncate(self) -> Tensor:
        """Replaces the weight by its truncation; returns the part of its energy that is lost."""
        variable, dtype = self.kernel.variable, self.basis.dtype
        values = tf.reshape(tf.cast(tf.convert_to_tensor(variable), dtype), (-1,))
        if self.order is not None:
            values = tf.gather(values, self.order)
        matrices = tf.reshape(values, (self.kernel.groups, self.kernel.m, self.kernel.n))
        energy = tf.reduce_sum(matrices**2)
        sound = tf.math.is_finite(energy)  # Otherwise it stays as it is: callbacks look for NaN.
        given = tf.where(sound, matrices, tf.zeros_like(matrices))
        truncated = iterate(given, tf.convert_to_tensor(self.basis), self.rank)
        product = tf.where(sound, truncated.thin @ truncated.wide, matrices)
        lost = tf.reduce_sum((matrices - product) ** 2)
        values = tf.reshape(product, (-1,))
        if self.order is not None:
            values = tf.gather(values, np.argsort(self.order))
        variable.assign(tf.reshape(values, variable.shape))
        self.basis.assign(tf.where(sound, truncated.basis, tf.convert_to_tensor(self.basis)))
        return tf.math.divide_no_nan(lost, energy)
