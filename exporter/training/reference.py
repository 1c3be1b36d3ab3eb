"""Builds and trains the reference MLP, the baseline where no model is given."""

import hashlib
import itertools
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from exporter.data import Dataset, Split
from exporter.disk import scratch_folder
from exporter.errors import DataError, OutputError, brief
from exporter.graph.loading import load_model
from exporter.inputs import made_of, read_json
from exporter.progress import Progress

REFERENCE_NAME = "reference-mlp"
HIDDEN_LAYERS = 5
HIDDEN_UNITS = 1024
EPOCHS = 8
BATCH_SIZE = 256
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Training:
    """Record of the training of the reference MLP, by an earlier run if it is ``cached``.

    The weights of ``best_epoch``, from 1, had the best ``validation_accuracy``, 0 to 1.
    """

    epochs: int
    best_epoch: int
    validation_accuracy: float
    seconds: float
    cached: bool = False


def reference_mlp(sample_shape: tuple[int, ...], classes: int) -> Any:
    """Builds the notebook's network: Flatten, five Dense(1024, relu), Dense(classes, softmax)."""
    import keras
    from keras.layers import Dense, Flatten

    numbers = range(1, HIDDEN_LAYERS + 1)
    layers = [
        keras.Input(sample_shape, name="image"),
        Flatten(name="flatten"),
        *(Dense(HIDDEN_UNITS, activation="relu", name=f"dense_{number}") for number in numbers),
        Dense(classes, activation="softmax", name="probabilities"),
    ]
    return keras.Sequential(layers, name=REFERENCE_NAME.replace("-", "_"))


def reference_for(dataset: Dataset, seed: int) -> Any:
    """Builds the untrained reference MLP for a data set.

    Raises:
        DataError: If the data set cannot train a classifier.
    """
    train = dataset.train
    labels = next(iter(train.labels.values()), None) if train else None
    if train is None or dataset.validation is None or labels is None or len(train.inputs) != 1:
        raise DataError(
            f"The reference MLP is trained on one input array with labels. Received: data "
            f"{dataset.name!r} without them. Give a model, or data with x_train and y_train."
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:][:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "biu" or labels.min() < 0:
        raise DataError(
            f"The reference MLP is trained on integer classes >= 0. Received: labels of dtype "
            f"{labels.dtype} and shape {labels.shape} in data {dataset.name!r}."
        )
    (images,) = train.inputs.values()
    if None in images.shape:
        raise DataError(
            f"The reference MLP takes the size of its input from the data. Received: images in "
            f"folders, {dataset.name!r}, which take theirs from the model. Give a model."
        )
    import keras

    keras.utils.set_random_seed(seed)
    return reference_mlp(images.shape[1:], max(2, int(labels.max()) + 1))


def train_reference(
    model: Any, dataset: Dataset, *, seed: int, cache: Path, progress: Progress
) -> tuple[Any, Training]:
    """Trains the reference MLP, or loads it from the cache.

    Adam with cosine decay minimizes the sparse cross-entropy; the weights of the epoch with the
    best validation accuracy are kept. See ``cached_file`` for the cache.

    Raises:
        DataError: If training diverges.
        OutputError: If the cache cannot be written.
    """
    file = cached_file(model, dataset, seed=seed, cache=cache)
    record = file.with_suffix(".json")
    try:
        return _cached(file, model), _record(record)
    except Exception as error:  # Keras, zipfile and HDF5 raise whatever they run into.
        if file.exists():
            progress.note(
                f"The cached baseline {file} cannot be read, training anew: {brief(error)}"
            )
    training = _train(model, dataset, seed, progress)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Several workers may train it at the same time.
        with scratch_folder(cache) as scratch:
            model.save(scratch / file.name)
            record.write_text(json.dumps(asdict(training)))
            (scratch / file.name).replace(file)
    except OSError as error:
        raise OutputError(f"The trained baseline cannot be cached in {cache}: {error}") from error
    return model, training


def cached_file(model: Any, dataset: Dataset, *, seed: int, cache: Path) -> Path:
    """Returns the file of the trained model in the cache, named by a hash of all that makes it.

    That is the model of ``reference_for``, the fitted data, the seed of their order, and settings.
    """
    import keras

    ingredients = {
        "model": model.to_json(),
        "data": dataset.digest,
        "seed": seed,
        "training": [EPOCHS, BATCH_SIZE, LEARNING_RATE],
        "keras": keras.__version__,
    }
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:16]
    return cache / f"{REFERENCE_NAME}-{key}.keras"


def _cached(file: Path, model: Any) -> Any:
    """Reads a model of the cache; raises a ValueError if it is not like the untrained one."""
    cached = load_model(str(file)).model
    shapes = ([weight.shape for weight in each.weights] for each in (cached, model))
    if [*next(shapes)] != [*next(shapes)] or cached.to_json() != model.to_json():
        raise ValueError("it is another model.")
    if not all(np.isfinite(weight).all() for weight in cached.get_weights()):
        raise ValueError("it has weights that are not finite.")
    return cached


def _record(file: Path) -> Training:
    """Reads how a model of the cache was trained; raises an exception if that is damaged."""
    training = replace(made_of(Training, read_json(file)), cached=True)
    epochs = 1 <= training.best_epoch <= training.epochs <= EPOCHS
    if not epochs or not 0 <= training.validation_accuracy <= 1 or training.seconds < 0:
        raise ValueError(f"its record tells of {training}.")
    return training


def _train(model: Any, dataset: Dataset, seed: int, progress: Progress) -> Training:
    import keras

    if dataset.validation is None:
        raise DataError("Training needs a training and a validation part.")
    samples, train = _fit_arguments(dataset, seed)
    # A twin is trained, since it keeps the loss and the optimizer's state, twice the weights.
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    keras.utils.set_random_seed(seed)
    steps = EPOCHS * -(-samples // BATCH_SIZE)
    schedule = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    twin.compile(
        optimizer=keras.optimizers.Adam(schedule),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    start = time.perf_counter()
    best: tuple[float, int, list[Any]] = (-1.0, 0, [])
    done = itertools.count(1)
    with progress.track("Training the reference MLP", steps) as advance:

        def count_step(batch: int, logs: Any) -> None:
            del batch, logs
            advance(next(done), f"best validation accuracy {max(best[0], 0):.2%}")

        def keep_best(epoch: int, logs: dict[str, float]) -> None:
            nonlocal best
            if logs["val_accuracy"] > best[0]:
                best = (logs["val_accuracy"], epoch + 1, twin.get_weights())

        callbacks = [
            keras.callbacks.LambdaCallback(on_train_batch_end=count_step, on_epoch_end=keep_best),
            keras.callbacks.TerminateOnNaN(),
        ]
        validation = _arrays(dataset.validation)
        twin.fit(**train, validation_data=validation, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    if not best[2] or not all(np.isfinite(weight).all() for weight in best[2]):
        raise DataError(f"Training on data {dataset.name!r} diverged; scale its inputs to [0, 1].")
    model.set_weights(best[2])
    return Training(EPOCHS, best[1], float(best[0]), time.perf_counter() - start)


def _arrays(split: Split) -> tuple[Any, Any]:
    part = split.read()
    (inputs,), (labels,) = part.inputs.values(), part.labels.values()
    return inputs, labels


def _fit_arguments(dataset: Dataset, seed: int) -> tuple[int, dict[str, Any]]:
    """Returns the number of samples in an epoch, and arguments of ``keras.Model.fit``."""
    source, train = dataset.source, dataset.train
    if dataset.stream is None and train is not None and not train.is_lazy:
        x, y = _arrays(train)
        return len(x), {"x": x, "y": y, "batch_size": BATCH_SIZE}
    if source is None or source.samples is None:
        raise DataError(
            "The reference MLP is trained for a number of steps that is known beforehand. "
            f"Received: data {dataset.name!r}, which do not know how many samples they have. Set "
            "it by tf.data.experimental.assert_cardinality, or give a model."
        )
    batches = (
        _arrays(batch)
        for epoch in range(EPOCHS)
        for batch in source.batches(BATCH_SIZE, seed=seed, epoch=epoch)
    )
    steps = -(-source.samples // BATCH_SIZE)
    return source.samples, {"x": batches, "steps_per_epoch": steps, "shuffle": False}
