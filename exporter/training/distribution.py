"""Distributes training over several devices or machines by ``tf.distribute``."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import ClusterError, RecipeError, brief

_EXAMPLE = (
    '{"cluster": {"worker": ["host1:port", "host2:port"]}, "task": {"type": "worker", "index": 0}}'
)


def strategy_for(distribution: str) -> Any:
    """Builds the strategy ``mirrored`` or ``multiworker``; for ``none``, returns the current one.

    TensorFlow demands that the strategy of several workers is built before any computation. It
    waits for all workers.

    Raises:
        RecipeError: If the environment does not describe a cluster, or it cannot be joined.
    """
    import tensorflow as tf

    if distribution == "mirrored":
        return tf.distribute.MirroredStrategy()
    if distribution == "none":
        return tf.distribute.get_strategy()
    worker_index()
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
        raise RecipeError(f"The cluster cannot be joined: {brief(error)}") from error


def worker_index() -> int:
    """Returns the number of this process among the workers of the cluster; number 0 writes.

    Raises:
        RecipeError: If ``TF_CONFIG`` does not describe a cluster.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        raise RecipeError(
            "To train on several workers, each of them needs TF_CONFIG in its environment, such "
            f"as {_EXAMPLE}. Received: none."
        )
    try:
        config = json.loads(text)
        workers = config["cluster"]["worker"]
        kind, index = config["task"]["type"], config["task"]["index"]
        known = kind == "worker" and 0 <= index < len(workers)
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"TF_CONFIG must read like {_EXAMPLE}. Received: {text!r}.") from error
    if not known:
        raise RecipeError(
            f"TF_CONFIG must name one of its {len(workers)} workers as the task. "
            f"Received: {kind!r} {index!r}."
        )
    return int(index)


@contextmanager
def losses_explained(strategy: Any) -> Iterator[None]:
    """Explains the failure of an operation that several workers take part in.

    Raises:
        ClusterError: If such an operation fails.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        if _cluster_of(strategy) is None:
            raise
        raise ClusterError(
            f"A worker of the cluster was lost: {brief(error)} Start all workers again with "
            "--resume to go on from the checkpoint."
        ) from error


def is_chief(strategy: Any) -> bool:
    """Tells whether this process writes files for all workers."""
    cluster = _cluster_of(strategy)
    return cluster is None or cluster.task_id == 0


def _cluster_of(strategy: Any) -> Any:
    """Returns the resolver of a strategy that spans several workers, None of any other."""
    resolver = strategy.cluster_resolver
    return resolver if resolver is not None and resolver.task_type else None


def shared_out(strategy: Any, batch: Any, samples: int) -> Any:
    """Divides a batch, a structure of arrays with samples along the first axis, among replicas."""
    import tensorflow as tf

    count = strategy.num_replicas_in_sync
    if count == 1:
        return batch

    def part(context: Any) -> Any:
        replica = context.replica_id_in_sync_group
        start, stop = (samples * r // count for r in (replica, replica + 1))
        return tf.nest.map_structure(lambda array: array[start:stop], batch)

    return strategy.experimental_distribute_values_from_function(part)


def clipped(gradients: Sequence[Any], norm: float) -> list[Any]:
    """Scales one replica's gradients so that their sum over all replicas has at most a norm.

    All replicas scale by the same number. Keras optimizers clip the gradients of each replica
    instead, before the sum.
    """
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    total = [tf.convert_to_tensor(each) for each in gradients if each is not None]
    if context.num_replicas_in_sync > 1:
        total = context.all_reduce(tf.distribute.ReduceOp.SUM, total)
    scaled, _ = tf.clip_by_global_norm(gradients, norm, use_norm=tf.linalg.global_norm(total))
    return list(scaled)


def from_first(strategy: Any, values: Sequence[Any]) -> list[NDArray[Any]]:
    """Returns the first replica's numbers or arrays in every process; all have the same shapes."""
    import tensorflow as tf

    own = [np.asarray(value) for value in values]
    if strategy.num_replicas_in_sync == 1:
        return own

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def exchange(given: Any) -> Any:
        def part(mine: Any) -> Any:
            context = tf.distribute.get_replica_context()
            first = tf.cast(tf.equal(context.replica_id_in_sync_group, 0), tf.float64)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, [each * first for each in mine])

        return strategy.experimental_local_results(strategy.run(part, args=(given,)))[0]

    # Whole numbers are exact in float64 up to 2^53.
    agreed = exchange([tf.constant(value, tf.float64) for value in own])
    return [a.numpy().astype(v.dtype) for a, v in zip(agreed, own, strict=True)]
