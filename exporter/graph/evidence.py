"""Finds out how the values that a model was trained on were scaled."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.data import Dataset, Scaling, Split, Task
from exporter.data.fitting import stored_dtype
from exporter.data.scaling import candidates
from exporter.graph.hooks import called
from exporter.graph.network import Network
from exporter.graph.outputs import by_sample, task_loss
from exporter.graph.runner import predict_in_batches

EVIDENCE_SAMPLES = 512
EVIDENCE_MACS = 20_000_000_000
"""What each scaling is tried on: so many samples, fewer where they would take more MACs."""

_LEAST_SAMPLES = 16
_BATCH = 64

CLEAR = 3.0
"""Standard errors by which one scaling's loss must be lower than another's."""

_CLEAR_RATIO = 2.0
"""How many times closer to the statistics in the weights one scaling must come than another."""

IDENTITY = Scaling.of("none")


@dataclass(frozen=True)
class _Fit:
    """How well a model does on data in some scaling: the loss of each sample, or a distance."""

    scaling: Scaling
    losses: NDArray[np.float64]

    @property
    def mean(self) -> float:
        return float(np.mean(self.losses)) if np.isfinite(self.losses).all() else np.inf


class Evidence:
    """Tries scalings of some inputs on the first samples of a part, shaped but not scaled."""

    def __init__(
        self,
        network: Network,
        dataset: Dataset,
        part: Split,
        scalings: Mapping[str, Scaling],
        inputs: list[str],
    ) -> None:
        affordable = EVIDENCE_MACS // max(1, network.macs)
        count = min(len(part), EVIDENCE_SAMPLES, max(_LEAST_SAMPLES, affordable))
        fixed = network.fixed_batch or 1
        head = part.take(slice(max(fixed, count // fixed * fixed)))
        self._network, self._dataset, self._tasks = network, dataset, dataset.tasks
        self._scalings, self._inputs, self._count = dict(scalings), inputs, max(fixed, len(head))
        self._samples, self._labels = (
            {n: np.resize(a[:], (self._count, *a.shape[1:])) for n, a in arrays.items()}
            for arrays in (head.inputs, head.labels)
        )
        self._families = network.families(self._tasks)

    def choose(self) -> tuple[Scaling, str]:
        """Returns the scaling of the inputs, and the reason."""
        if self._feeds_embedding():
            return IDENTITY, "they are indices of an Embedding"
        shapes = {self._samples[name].shape[-1] for name in self._inputs}
        tried = candidates(min(shapes))
        prior, why = self._prior()
        if self._labels:
            fits = [_Fit(scaling, self._losses(scaling)) for scaling in tried]
            best = min(fits, key=lambda fit: fit.mean)
            told = ", ".join(f"{fit.scaling.name} {fit.mean:.3g}" for fit in fits)
            former = next(fit for fit in fits if fit.scaling.name == prior.name)
            if best is former or _is_clear(best, former):
                return best.scaling, f"the loss on labels is {told}"
            return prior, f"{why} (the loss on labels does not tell: {told})"
        distances = {scaling.name: self._distance(scaling) for scaling in tried}
        best_name = min(distances, key=distances.__getitem__)
        if distances[best_name] * _CLEAR_RATIO < distances[prior.name]:
            told = ", ".join(f"{name} {value:.3g}" for name, value in distances.items())
            chosen = next(scaling for scaling in tried if scaling.name == best_name)
            return chosen, f"distance from the statistics of normalization layers: {told}"
        return prior, why

    def label_scalings(self, scaling: Scaling) -> dict[str, Scaling]:
        """Returns scalings of labels that are values of 0 to 255, like those of an input."""
        found = {}
        for name, task in self._tasks.items():
            labels = self._labels.get(name)
            if labels is None or task.classes or not task.integers or scaling.is_identity:
                continue
            predicted = self._predicted({})[name]
            errors = [
                float(np.mean((predicted - wanted) ** 2) / (np.var(wanted) or 1.0))
                for wanted in (labels.astype(np.float64), scaling(labels).astype(np.float64))
            ]
            if errors[1] < errors[0]:
                found[name] = scaling
        return found

    def _prior(self) -> tuple[Scaling, str]:
        if self._network.scales_input:
            return IDENTITY, "the model rescales them itself"
        dtypes = {self._dataset_dtype(name) for name in self._inputs}
        if "f" in dtypes:
            return IDENTITY, "they are floats"
        shapes = [self._samples[name].shape for name in self._inputs]
        if all(len(shape) == 2 for shape in shapes) and min(s[1] for s in shapes) < _BATCH:
            return IDENTITY, "they are features, not images"
        return Scaling.of("unit"), "as is usual for images; --scale sets it"

    def _dataset_dtype(self, name: str) -> str:
        return stored_dtype(next(iter(self._dataset.parts.values())).inputs[name]).kind

    def _scaled_inputs(self, changes: Mapping[str, Scaling]) -> dict[str, NDArray[Any]]:
        scalings = {**self._scalings, **changes}
        types = {info.name: info.dtype for info in self._network.inputs}
        return {
            name: np.asarray(scalings[name](array)).astype(types[name])
            for name, array in self._samples.items()
        }

    def _predicted(self, changes: Mapping[str, Scaling]) -> dict[str, NDArray[Any]]:
        batch = self._network.fixed_batch or _BATCH
        inputs = self._scaled_inputs(changes)
        return predict_in_batches(self._network.runner(), inputs, batch, self._count)

    def _losses(self, scaling: Scaling) -> NDArray[np.float64]:
        """Returns the loss of each sample; that of values is relative to their variance."""
        import tensorflow as tf

        total = np.zeros(self._count)
        predictions = self._predicted(dict.fromkeys(self._inputs, scaling))
        for name, labels in self._labels.items():
            task, predicted = self._tasks.get(name, Task()), tf.constant(predictions[name])
            family = self._families[name]
            if task.classes:
                losses = task_loss(predicted, tf.constant(labels), family, task)
            else:
                forms = [labels, scaling(labels)] if task.integers else [labels]
                losses = min(
                    (
                        tf.square(tf.cast(predicted, tf.float32) - form)
                        / max(float(np.var(form)), 1e-12)
                        for form in (np.asarray(form, np.float32) for form in forms)
                    ),
                    key=lambda loss: float(tf.reduce_mean(loss)),
                )
            total += by_sample(losses).numpy()
        return total

    def _feeds_embedding(self) -> bool:
        """Tells whether an Embedding is given the values of an input, cast or reshaped at most."""
        import keras

        layers = [x for x in self._network.layers.values() if isinstance(x, keras.layers.Embedding)]
        if not layers:
            return False
        calls = self._calls(layers, {}, 2)
        raw = [self._samples[name][:2].ravel() for name in self._inputs]
        return any(
            given.size == values.size and np.array_equal(given.ravel(), values)
            for given in (np.asarray(inputs) for inputs in calls)
            for values in raw
        )

    def _distance(self, scaling: Scaling) -> float:
        """Compares what normalization layers are given with what their weights remember.

        Returns the mean over layers and channels of the divergence of two normal distributions.
        """
        import keras

        kinds = (keras.layers.BatchNormalization, keras.layers.Normalization)
        layers = [layer for layer in self._network.layers.values() if type(layer) in kinds]
        distances = []
        changes = dict.fromkeys(self._inputs, scaling)
        for layer in layers:
            for inputs in self._calls([layer], changes, _BATCH):
                mean, variance = _statistics(layer)
                axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
                kept = {axis % np.ndim(inputs) for axis in axes}
                over = tuple(a for a in range(np.ndim(inputs)) if a not in kept)
                values = np.asarray(inputs, np.float64)
                ratio = (values.var(axis=over).ravel() + 1e-9) / (variance + 1e-9)
                shift = (values.mean(axis=over).ravel() - mean) ** 2 / (variance + 1e-9)
                distances.append(float(np.mean(ratio + shift - 1 - np.log(ratio))))
        return float(np.mean(distances)) if distances else 0.0

    def _calls(self, layers: list[Any], changes: Mapping[str, Scaling], count: int) -> list[Any]:
        """Returns what layers are given, when the model predicts the first samples."""
        fixed = self._network.fixed_batch
        inputs = {n: a[: fixed or count] for n, a in self._scaled_inputs(changes).items()}
        with called(layers) as calls:
            self._network.runner(eager=True)(inputs)
        return [given for made in calls.values() for given, _ in made]


def _statistics(layer: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the mean and the variance of each channel that a layer normalizes by."""
    names = ("moving_mean", "moving_variance")
    mean, variance = (
        getattr(layer, n, getattr(layer, n.removeprefix("moving_"), None)) for n in names
    )
    return np.asarray(mean, np.float64).ravel(), np.asarray(variance, np.float64).ravel()


def _is_clear(best: _Fit, other: _Fit) -> bool:
    """Tells whether one loss is lower than another one beyond the error of their samples."""
    if not np.isfinite(other.mean):
        return bool(np.isfinite(best.mean))
    gain = other.losses - best.losses
    return bool(np.mean(gain) > CLEAR * np.std(gain) / np.sqrt(len(gain)))
