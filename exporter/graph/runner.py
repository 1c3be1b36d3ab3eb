"""Runs Keras models under the same contract as artifacts."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from exporter.graph.signature import Signature, Tensors, split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from exporter.data import Samples


class KerasRunner:
    """A Keras model under the same contract as an artifact."""

    def __init__(self, signature: Signature, *, eager: bool = False) -> None:
        """Wraps a model; runs it as a graph, unless ``eager``.

        A graph takes time to trace, but does not hold all activations at once.
        """
        import tensorflow as tf

        self._signature = signature
        # Not its method: TensorFlow counts the tracings of a method over all models, and warns.
        graph = tf.function(signature, autograph=False, reduce_retracing=True)
        self._call = signature if eager else graph

    def __call__(self, inputs: Tensors) -> "dict[str, NDArray[Any]]":
        """Predicts a batch."""
        outputs = self._call(**self._signature.tensors(inputs))
        return {name: value.numpy() for name, value in outputs.items()}


def predict_in_batches(
    runner: Callable[[Tensors], "dict[str, NDArray[Any]]"],
    inputs: "Mapping[str, Samples]",
    batch_size: int,
    count: int,
) -> "dict[str, NDArray[Any]]":
    """Predicts the first ``count`` samples batch by batch; lazy ones are read batch by batch."""
    import numpy as np

    chunks = [runner(batch) for batch in split(inputs, batch_size, count)]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def predict_whole_batches(
    runner: Callable[[Tensors], "dict[str, NDArray[Any]]"],
    inputs: "Mapping[str, Samples]",
    fixed_batch: int | None,
    batch_size: int,
) -> "dict[str, NDArray[Any]]":
    """Predicts all samples; of a fixed batch size, the samples that fill whole batches."""
    count = len(next(iter(inputs.values())))
    kept = count // fixed_batch * fixed_batch if fixed_batch else count
    return predict_in_batches(runner, inputs, fixed_batch or batch_size, kept)
