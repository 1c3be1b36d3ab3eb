"""Gathers the moments of kernels from calibration data, batch by batch."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from exporter.errors import ModelError
from exporter.graph.hooks import called, replaced, watched
from exporter.graph.network import Network
from exporter.graph.outputs import Family, as_logits
from exporter.graph.steps import MAX_KEPT, Steps, relaxed
from exporter.graph.types import Layer, Tensor
from exporter.lowrank.calibration import HELD_OUT_EVERY, Calibration
from exporter.lowrank.candidates import Candidate
from exporter.lowrank.kernels import Kernel
from exporter.lowrank.linalg.moments import Accumulator, Fisher, Floats, Moments

Kernels = Mapping[str, Kernel]

Folds = tuple[Accumulator, Accumulator]
"""Sums of the data to fit on, and of those to judge by."""

Observed = tuple[dict[str, Tensor], dict[str, list[Tensor]]]
"""The outputs of kernels in the order of the calls, rows x g x n, and tensors at their places."""

MAX_OUTPUTS = 8192
"""Kernels with more outputs are truncated by their weights alone: moments take n x n numbers."""


@np.errstate(over="ignore", invalid="ignore")  # What is not finite raises an error of its own.
def gather(
    network: Network,
    kernels: Kernels,
    calibration: Calibration,
    *,
    seed: int | None = None,
    kept: list[Mapping[str, Any]] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Moments]:
    """Runs a model and returns the moments of its kernels' outputs, in the order of the calls.

    With a seed, errors are weighed by the second moments of the loss gradient at the outputs,
    summed over the positions of a sample. The loss is the negative log-likelihood of labels sampled
    from the model's own predictions, so that they are the Fisher information (Martens and Grosse,
    2015). Outputs that are no distribution count by their squared error.

    Args:
        network: The original.
        kernels: Its kernels by candidate name; kernels with more outputs than ``MAX_OUTPUTS`` are
            left out.
        calibration: The data.
        seed: Seed of the sampled labels; None weighs all outputs alike, as always where a kernel
            has no ``gradient_at``.
        kept: Takes the outputs of the kernels of each batch, unless they are too many.
        advance: Is called after every batch.
    """
    import tensorflow as tf

    signature = network.signature
    wanted = {name: kernel for name, kernel in kernels.items() if kernel.n <= MAX_OUTPUTS}
    families = {} if seed is None else network.families(calibration.tasks)

    def step(inputs: Any, number: Any) -> Any:
        with (
            tf.GradientTape(watch_accessed_variables=False) as tape,
            _observed(wanted, tape) as observed,
        ):
            outputs = signature(**inputs)
            loss = 0.0
            for index, (name, family) in enumerate(families.items()):
                draw = tf.stack([number, index + 1000 * (seed or 0)])
                loss += _sampled_loss(tf.cast(outputs[name], tf.float32), family, draw)
        rows, tensors = observed()
        if not families:
            return rows, {}
        gradients = tape.gradient(loss, tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return rows, {name: wanted[name].rows_of(parts) for name, parts in gradients.items()}

    first, last = (
        signature.tensors(calibration.batch(number)) for number in (0, calibration.batch_count - 1)
    )
    specs = {name: relaxed(tensor, last[name]) for name, tensor in first.items()}
    function = tf.function(step, autograph=False)
    concrete = function.get_concrete_function(specs, tf.TensorSpec((), tf.int32))
    sums: dict[str, Folds] = defaultdict(_folds)
    squares: dict[str, Accumulator] = defaultdict(Accumulator)
    for number, batch in enumerate(calibration.batches()):
        rows, gradients = concrete(signature.tensors(batch), tf.constant(number))
        outputs = {name: value.numpy() for name, value in rows.items()}
        _check_finite(network, wanted, outputs)
        for name, y in outputs.items():
            sums[name][_is_held_out(number)].add(y, y)
        for name, g in ((name, value.numpy()) for name, value in gradients.items()):
            squares[name].add(g, g)
        size = sum(y.nbytes for y in outputs.values())
        if kept is not None and (number or size * calibration.batch_count <= MAX_KEPT):
            kept.append(outputs)
        else:
            kept = None
        advance()
    found = {}
    for name, folds in sums.items():
        fisher, square = None, squares.get(name)
        if square is not None:
            fisher = Fisher(square.about_zero * (square.count / len(calibration)))
        parts = _parts(folds, wanted[name].has_bias)
        found[name] = _joined([Moments(mean, scatter, fisher) for mean, scatter in parts])
        matrices = [scatter for _, scatter in parts] + ([fisher.matrix] if fisher else [])
        if not all(np.isfinite(matrix).all() for matrix in matrices):
            raise _not_finite(network, wanted[name], "whose squares are too large")
    return found


class Cascade:
    """Gathers moments of a model's kernels stage by stage, the layers before being compressed.

    No compressed copy is made: the original is called with layers that are replaced. Both go on
    from where the last stage ended.
    """

    def __init__(
        self,
        network: Network,
        calibration: Calibration,
        moments: Mapping[str, Moments],
        kept: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Starts at the inputs; takes the result of ``gather``, and what it kept."""
        self._moments, self._kept = moments, kept
        self._original, self._compressed = (
            Steps(network.signature, calibration.batch, calibration.batch_count) for _ in range(2)
        )

    def gather(
        self, stages: Sequence[Sequence[Candidate]], replacements: Iterable[tuple[Layer, Any]]
    ) -> dict[str, Moments]:
        """Returns the moments of the kernels of a stage.

        Args:
            stages: What is to be factorized: in this stage, and in those that follow.
            replacements: What is called in place of the layers of the stages before.
        """
        wanted = {c.name: c.kernel for c in stages[0] if c.kernel and c.name in self._moments}
        here, later = (
            [self._original.places(candidate.layer) for stage in part for candidate in stage]
            for part in (stages[:1], stages[1:])
        )
        stop = max(place.stop for place in here)
        after = min((place.start for place in later), default=stop)
        before = min(after, *(place.start for place in here))
        patches = [(layer, "call", replacement) for layer, replacement in replacements]

        def observe(patches: Any, call: Callable[[], None]) -> dict[str, Tensor]:
            with replaced(patches), _observed(wanted) as observed:
                call()
            return observed()[0]

        z_sums: dict[str, Folds] = defaultdict(_folds)
        cross_sums: dict[str, Folds] = defaultdict(_folds)
        original = self._kept or self._original.run(stop, min(stop, after), partial(observe, []))
        compressed = self._compressed.run(stop, before, partial(observe, patches))
        for number, (y_rows, z_rows) in enumerate(zip(original, compressed, strict=True)):
            for name, z in ((name, value.numpy()) for name, value in z_rows.items()):
                z_sums[name][_is_held_out(number)].add(z, z)
                cross_sums[name][_is_held_out(number)].add(z, np.asarray(y_rows[name]))
        found = {}
        for name, folds in z_sums.items():
            moments, has_bias = self._moments[name], wanted[name].has_bias
            parts = zip(
                (moments, *(moments.folds or ())),
                _parts(folds, has_bias),
                _parts(cross_sums[name], has_bias),
                strict=True,
            )
            found[name] = _joined(
                [
                    replace(y, compressed_mean=mean, compressed_scatter=scatter, cross=cross)
                    for y, (mean, scatter), (_, cross) in parts
                ]
            )
        return found


@contextmanager
def _observed(kernels: Kernels, tape: Any = None) -> Iterator[Callable[[], Observed]]:
    """Observes kernels while the block runs; the result is for afterwards."""
    import tensorflow as tf

    layers = {id(kernel.layer): kernel.layer for kernel in kernels.values()}
    places = [(k.layer, k.gradient_at) for k in kernels.values() if k.gradient_at]
    with called(layers.values()) as calls, watched(places, tape) as seen:

        def result() -> Observed:
            rows, tensors = {}, {}
            order = [name for key in calls for name, k in kernels.items() if id(k.layer) == key]
            for name in order:
                kernel = kernels[name]
                if kernel.gradient_at:
                    tensors[name] = seen[id(kernel.layer)]
                    rows[name] = kernel.rows_of(tensors[name], biased=True)
                else:
                    outputs = [kernel.outputs(inputs) for inputs, _ in calls[id(kernel.layer)]]
                    rows[name] = tf.cast(tf.concat(outputs, axis=0), tf.float32)
            return rows, tensors

        yield result


def _check_finite(network: Network, kernels: Kernels, outputs: Mapping[str, Any]) -> None:
    """Raises a ModelError that names the first layer, in the order of calls, that is not finite."""
    for name, rows in outputs.items():
        if not np.isfinite(rows).all():
            raise _not_finite(network, kernels[name], "that are NaN or infinite")


def _not_finite(network: Network, kernel: Kernel, told: str) -> ModelError:
    return ModelError(
        f"Model {network.name!r} computes values on the training data {told}, first in layer "
        f"{kernel.layer.name!r}. Its weights, or the scale of its inputs, are not those that it "
        "was trained with."
    )


def _folds() -> Folds:
    return Accumulator(), Accumulator()


def _is_held_out(batch: int) -> bool:
    return batch % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def _parts(folds: Folds, has_bias: bool) -> list[tuple[Floats, Floats]]:
    """Returns means and scatters of all data, and of both folds if there are any to judge by.

    They are covariances where a bias can correct the means, otherwise moments about zero.
    """
    first, second = folds
    return [
        (part.mean, part.covariance) if has_bias else (0 * part.mean, part.about_zero)
        for part in ((first.merged(second), first, second) if second.count else (first,))
    ]


def _joined(parts: Sequence[Moments]) -> Moments:
    whole, *folds = parts
    return replace(whole, folds=(folds[0], folds[1]) if folds else None)


def _sampled_loss(outputs: Any, family: Family, seed: Any) -> Any:
    """Returns the negative log-likelihood of labels sampled from the outputs themselves."""
    import tensorflow as tf

    outputs = tf.where(tf.math.is_finite(outputs), outputs, 0)  # Others are told afterwards.
    if family == "gaussian":
        return tf.reduce_sum(outputs * tf.random.stateless_normal(tf.shape(outputs), seed))
    logits = as_logits(outputs, family)
    if family.startswith("bernoulli"):
        draws = tf.random.stateless_uniform(tf.shape(logits), seed)
        labels = tf.cast(draws < tf.sigmoid(logits), tf.float32)
        return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))
    flat = tf.reshape(logits, (-1, logits.shape[-1]))
    labels = tf.random.stateless_categorical(flat, 1, seed)[:, 0]
    return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=flat))
