"""Gathers the moments of kernels from calibration data, batch by batch in constant memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from exporter.graph.hooks import called, watched
from exporter.graph.network import Network
from exporter.graph.outputs import Family, as_logits
from exporter.graph.signature import Signature
from exporter.graph.types import Tensor
from exporter.lowrank.calibration import HELD_OUT_EVERY, Calibration
from exporter.lowrank.kernels import Kernel
from exporter.lowrank.linalg.moments import Accumulator, Fisher, Moments

Kernels = Mapping[str, Kernel]

MAX_OUTPUTS = 8192
"""Kernels with more outputs are truncated by their weights alone: moments take n x n numbers."""


def gather(
    network: Network,
    kernels: Kernels,
    calibration: Calibration,
    *,
    compressed: tuple[Network, Kernels] | None = None,
    fishers: Mapping[str, Fisher] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Moments]:
    """Runs a model and returns the moments of its kernels' outputs, in the order of the calls.

    Args:
        network: The original.
        kernels: Its kernels by candidate name; kernels with more outputs than ``MAX_OUTPUTS`` are
            left out.
        calibration: The data.
        compressed: A copy in which earlier layers are compressed, and its kernels, or None.
        fishers: The result of ``gather_fishers``.
        advance: Is called after every batch.
    """
    import tensorflow as tf

    wanted = {name: kernel for name, kernel in kernels.items() if kernel.n <= MAX_OUTPUTS}
    signature = network.signature

    @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
    def step(inputs: Any) -> Any:
        y = _traced_outputs(signature, inputs, wanted)
        if compressed is None:
            return {name: {"y": _summary(rows, rows)} for name, rows in y.items()}
        copy, twins = compressed
        z = _traced_outputs(copy.signature, inputs, {name: twins[name] for name in wanted})
        return {
            name: {
                "y": _summary(rows, rows),
                "z": _summary(z[name], z[name]),
                "zy": _summary(z[name], rows),
            }
            for name, rows in y.items()
        }

    sums: dict[str, dict[str, tuple[Accumulator, Accumulator]]] = {}
    for number, batch in enumerate(calibration.batches()):
        held_out = number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        for name, parts in step(signature.tensors(batch)).items():
            folds = sums.setdefault(name, {part: (Accumulator(), Accumulator()) for part in parts})
            for part, summary in parts.items():
                folds[part][held_out].add(*(value.numpy() for value in summary))
        advance()
    return {
        name: _moments(folds, wanted[name].has_bias, (fishers or {}).get(name))
        for name, folds in sums.items()
    }


def gather_fishers(
    network: Network,
    kernels: Kernels,
    calibration: Calibration,
    *,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Fisher]:
    """Gathers the second moments of the loss gradient at the outputs of kernels.

    The loss is the negative log-likelihood of labels sampled from the model's own predictions, so
    that the second moment is the Fisher information (Martens and Grosse, 2015). Outputs that are
    no distribution count by their squared error.

    Args:
        network: The original.
        kernels: Its kernels by candidate name.
        calibration: The data.
        seed: Seed of the sampled labels.
        advance: Is called after every batch.

    Returns:
        g x n x n by candidate name, summed over the positions of a sample. Kernels without
        ``gradient_at`` are left out.
    """
    import tensorflow as tf

    signature = network.signature
    wanted = {name: kernel for name, kernel in kernels.items() if kernel.n <= MAX_OUTPUTS}
    families = network.families(calibration.tasks)
    places = [(kernel.layer, kernel.gradient_at) for kernel in wanted.values()]

    @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
    def step(inputs: Any, number: Any) -> Any:
        with tf.GradientTape() as tape, watched(places, tape) as seen:
            outputs = signature(**inputs)
            loss = 0.0
            for index, (name, family) in enumerate(families.items()):
                draw = tf.stack([number, index + 1000 * seed])
                loss += _sampled_loss(tf.cast(outputs[name], tf.float32), family, draw)
        tensors = {name: seen[id(kernel.layer)] for name, kernel in wanted.items()}
        gradients = tape.gradient(loss, tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return {
            name: _second_moment(wanted[name], parts) for name, parts in gradients.items() if parts
        }

    sums: dict[str, Any] = {}
    samples = 0
    for number, batch in enumerate(calibration.batches()):
        samples += len(next(iter(batch.values())))
        for name, value in step(signature.tensors(batch), tf.constant(number)).items():
            sums[name] = sums.get(name, 0.0) + value.numpy().astype(np.float64)
        advance()
    return {name: Fisher(value / samples) for name, value in sums.items()}


def _traced_outputs(
    signature: Signature, inputs: Mapping[str, Tensor], kernels: Kernels
) -> dict[str, Tensor]:
    """Calls a model and returns the outputs of kernels, rows x g x n, in the order of the calls."""
    import tensorflow as tf

    with called(kernel.layer for kernel in kernels.values()) as calls:
        signature(**inputs)
    outputs = {}
    for layer, of_layer in calls.items():
        for name, kernel in kernels.items():
            if id(kernel.layer) == layer:
                rows = [kernel.outputs(inputs) for inputs, _ in of_layer]
                outputs[name] = tf.cast(tf.concat(rows, axis=0), tf.float32)
    return outputs


def _summary(left: Any, right: Any) -> tuple[Any, Any, Any, Any]:
    """Returns count, means, and the sum of products of deviations, of rows x g x n."""
    import tensorflow as tf

    left_mean, right_mean = tf.reduce_mean(left, axis=0), tf.reduce_mean(right, axis=0)
    scatter = tf.matmul(
        tf.transpose(left - left_mean, (1, 0, 2)),
        tf.transpose(right - right_mean, (1, 0, 2)),
        transpose_a=True,
    )
    return tf.shape(left)[0], left_mean, right_mean, scatter


def _moments(
    folds: Mapping[str, tuple[Accumulator, Accumulator]], has_bias: bool, fisher: Fisher | None
) -> Moments:
    """Returns the moments of all data, with those of the two parts to fit on and to judge by."""
    whole = {part: first.merged(second) for part, (first, second) in folds.items()}
    moments = _part_moments(whole, has_bias, fisher)
    if any(not second.count for _, second in folds.values()):
        return moments
    first, second = (
        _part_moments({part: pair[index] for part, pair in folds.items()}, has_bias, fisher)
        for index in (0, 1)
    )
    return replace(moments, folds=(first, second))


def _part_moments(
    sums: Mapping[str, Accumulator], has_bias: bool, fisher: Fisher | None
) -> Moments:
    """Returns covariances where a bias can correct the means, otherwise moments about zero."""
    found = {
        name: (part.mean, part.covariance)
        if has_bias
        else (np.zeros_like(part.mean), part.about_zero)
        for name, part in sums.items()
    }
    compressed_mean, compressed_scatter = found.get("z", (None, None))
    _, cross = found.get("zy", (None, None))
    return Moments(*found["y"], fisher, compressed_mean, compressed_scatter, cross)


def _second_moment(kernel: Kernel, parts: Sequence[Any]) -> Any:
    import tensorflow as tf

    rows = [tf.reshape(tf.cast(p, tf.float32), (-1, kernel.groups, kernel.n)) for p in parts]
    grouped = tf.transpose(tf.concat(rows, axis=0), (1, 0, 2))
    return tf.matmul(grouped, grouped, transpose_a=True)


def _sampled_loss(outputs: Any, family: Family, seed: Any) -> Any:
    """Returns the negative log-likelihood of labels sampled from the outputs themselves."""
    import tensorflow as tf

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
