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
from exporter.graph.outputs import Family, as_given, as_logits, by_sample, task_loss
from exporter.graph.runner import predict_in_batches

EVIDENCE_SAMPLES = 512
EVIDENCE_MACS = 20_000_000_000
"""What each scaling is tried on: so many samples, fewer where they would take more MACs."""

_LEAST_SAMPLES = 16
_BATCH = 64

CLEAR = 3.0
"""Standard errors by which one scaling's loss must be lower than another's."""

_TEMPERATURES = np.logspace(-3, 3, 25)

_UNSURE = 0.25
"""Part of the entropy of the labels that a model may lose by being less sure than it could be."""

_CLEAR_RATIO = 2.0
"""How many times closer to the statistics in the weights one scaling must come than another."""

IDENTITY = Scaling.of("none")


@dataclass(frozen=True)
class _Fit:
    """How well a model does on labels in some scaling.

    A network of ReLUs is all but homogeneous: values that are too large make it surer, not wrong.
    So losses are compared at the temperature that suits each scaling best.

    Attributes:
        losses: The loss of each sample, at the best temperature.
        excess: The mean loss as it is, less that at the best temperature, if the model is too
            unsure; otherwise 0.
    """

    scaling: Scaling
    losses: NDArray[np.float64]
    excess: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.losses)) if np.isfinite(self.losses).all() else np.inf

    def is_clearly_above(self, other: "_Fit") -> bool:
        """Tells whether the loss is higher than another one beyond the error of their samples."""
        if not np.isfinite(self.mean):
            return bool(np.isfinite(other.mean))
        gain = self.losses - other.losses
        return bool(np.mean(gain) > CLEAR * np.std(gain) / np.sqrt(len(gain)))


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
        self._families, self._runner = network.families(self._tasks), network.runner()

    def choose(self) -> tuple[Scaling, str]:
        """Returns the scaling of the inputs, and the reason."""
        if self._feeds_embedding():
            return IDENTITY, "they are indices of an Embedding"
        tried = candidates(min(self._samples[name].shape[-1] for name in self._inputs))
        usual, why = self._usual()
        plausible = tried
        if self._labels:
            fits = [self._fit(scaling) for scaling in tried]
            best = min(fits, key=lambda fit: fit.mean)
            surprise = self._entropy()
            if best.mean < surprise:
                plausible = [
                    fit.scaling
                    for fit in fits
                    if not fit.is_clearly_above(best) and fit.excess < _UNSURE * surprise
                ] or [best.scaling]
            told = ", ".join(f"{fit.scaling.name} {fit.mean + fit.excess:.3g}" for fit in fits)
            by_loss = f"the loss on labels is {told}"
            if len(plausible) == 1:
                return plausible[0], by_loss
        distances = {scaling.name: self._distance(scaling) for scaling in plausible}
        nearest = min(plausible, key=lambda scaling: distances[scaling.name])
        if usual not in plausible:
            # Of scalings that do equally well, the one that makes no surer than need be.
            return (nearest if any(distances.values()) else plausible[0]), by_loss
        if distances[nearest.name] * _CLEAR_RATIO < distances[usual.name]:
            told = ", ".join(f"{name} {value:.3g}" for name, value in distances.items())
            return nearest, f"the distance from what normalization layers remember is {told}"
        return usual, why

    def label_scalings(self, scaling: Scaling) -> dict[str, Scaling]:
        """Returns scalings of labels that are values of 0 to 255, like those of an input."""
        found = {}
        for name, task in self._tasks.items():
            labels = self._labels.get(name)
            if labels is None or task.classes or not task.integers:
                continue
            if self._families[name] == "bernoulli":
                found[name] = Scaling.of("unit")
                continue
            if scaling.is_identity:
                continue
            predicted = self._predicted({})[name]
            errors = [
                float(np.mean((predicted - wanted) ** 2) / (np.var(wanted) or 1.0))
                for wanted in (labels.astype(np.float64), scaling(labels).astype(np.float64))
            ]
            if errors[1] < errors[0]:
                found[name] = scaling
        return found

    def _usual(self) -> tuple[Scaling, str]:
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
        return predict_in_batches(self._runner, inputs, batch, self._count)

    def _fit(self, scaling: Scaling) -> _Fit:
        """Measures the loss on labels, summed over outputs; that of values by their variance."""
        import tensorflow as tf

        total, excess = np.zeros(self._count), 0.0
        predictions = self._predicted(dict.fromkeys(self._inputs, scaling))
        for name, labels in self._labels.items():
            task, family = self._tasks.get(name, Task()), self._families[name]
            if task.classes and family != "gaussian":
                losses = _losses_by_temperature(predictions[name], labels, family, task)
                means = losses.mean(axis=1)
                coolest = int(np.argmin(means)) if np.isfinite(means).all() else 0
                total += losses[coolest]
                if _TEMPERATURES[coolest] < 1:
                    raw = means[len(_TEMPERATURES) // 2]
                    excess += float(raw - means[coolest])
                continue
            forms = [np.asarray(as_given(tf.constant(labels), task, predictions[name]))]
            if task.integers:
                unit = family == "bernoulli"
                forms = [Scaling.of("unit")(labels)] if unit else [labels, scaling(labels)]
            errors = [
                ((predictions[name] - form) ** 2 / (np.var(form, dtype=np.float64) or 1.0))
                .reshape(self._count, -1)
                .mean(axis=1)
                for form in (np.asarray(form, np.float64) for form in forms)
            ]
            total += min(errors, key=np.mean)
        return _Fit(scaling, total, excess)

    def _entropy(self) -> float:
        """Returns the loss, as ``_fit`` sums it, of a model that knows how often labels are."""
        total = 0.0
        for name, labels in self._labels.items():
            task = self._tasks.get(name, Task())
            if task.classes and self._families[name] != "gaussian":
                frequencies = np.bincount(labels.ravel()) / labels.size
                total -= float(np.sum(frequencies * np.log(np.maximum(frequencies, 1e-12))))
            else:
                total += 1.0
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


def _losses_by_temperature(
    predicted: NDArray[Any], labels: NDArray[Any], family: Family, task: Task
) -> NDArray[np.float64]:
    """Returns the cross-entropy of each sample for all temperatures, in their order."""
    import tensorflow as tf

    logits = as_logits(tf.constant(predicted), family)
    binary = family.startswith("bernoulli")
    as_family: Family = "bernoulli_logits" if binary else "categorical_logits"
    losses = [
        by_sample(task_loss(logits / t, tf.constant(labels), as_family, task)).numpy()
        for t in _TEMPERATURES
    ]
    return np.array(losses, np.float64)
