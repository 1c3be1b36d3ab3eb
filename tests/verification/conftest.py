"""A small trained classifier, compressed and exported once; the tests look at it or copy it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.formats.base import Artifact, ExportOptions, describe, measure
from exporter.graph.network import Network
from exporter.verification.verifier import Verifier

FEATURES, CLASSES = 64, 6
# Different ones, so that no two factors have the same sizes.
RANKS = {"first": 12, "second": 10}


@pytest.fixture(scope="session")
def blobs() -> Any:
    """Overlapping clouds of points, one a class."""
    from exporter.data import load_dataset

    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES, FEATURES))

    def draw(count: int) -> tuple[Any, Any]:
        labels = rng.integers(0, CLASSES, count)
        points = centres[labels] + 2.0 * rng.normal(size=(count, FEATURES))
        return points.astype("float32"), labels

    (x_train, y_train), (x_test, y_test) = draw(2000), draw(500)
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return load_dataset(arrays)


@pytest.fixture(scope="session")
def classifier(blobs: Any) -> Any:
    """Two layers that are made thin, and a head that is not."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((FEATURES,), name="features"),
            layers.Dense(128, activation="relu", name="first"),
            layers.Dense(96, activation="relu", name="second"),
            layers.Dense(CLASSES, activation="softmax", name="probabilities"),
        ],
        name="classifier",
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(blobs.train.inputs["x"], blobs.train.labels["y"], epochs=3, verbose=0)
    return model


@pytest.fixture(scope="session")
def compressed(classifier: Any) -> Any:
    from exporter.commands.compress import compress

    return compress(classifier, RANKS)


@pytest.fixture(scope="session")
def data(blobs: Any, classifier: Any) -> Any:
    """The clouds, fitted to the classifier."""
    from exporter.graph.fitting import fitted

    return fitted(blobs, Network(classifier))


@pytest.fixture(scope="session")
def verifier(compressed: Any, data: Any, tmp_path_factory: pytest.TempPathFactory) -> Verifier:
    return Verifier(compressed, data, folder=tmp_path_factory.mktemp("verifier"))


@pytest.fixture(scope="session")
def export_as(
    installed: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Any], Artifact]:
    """Exports a Keras model to a format by name."""

    def export(name: str, model: Any) -> Artifact:
        fmt = installed(name)
        path = tmp_path_factory.mktemp(name) / f"model{fmt.suffix}"
        fmt.export(Network(model), path, ExportOptions())
        return describe(fmt, "float32", path, Network(model))

    return export


@pytest.fixture(scope="session")
def honest(compressed: Any, export_as: Callable[..., Artifact]) -> Callable[[str], Artifact]:
    """The artifact of the compressed classifier in a format; not to be changed."""
    made: dict[str, Artifact] = {}

    def get(name: str) -> Artifact:
        if name not in made:
            made[name] = export_as(name, compressed.model)
        return made[name]

    return get


@pytest.fixture
def tampered(
    honest: Callable[[str], Artifact], tmp_path: Path
) -> Callable[[str, Callable[[Path], None]], Artifact]:
    """A copy of the honest artifact after a function has been at it."""

    def make(name: str, change: Callable[[Path], None]) -> Artifact:
        artifact = honest(name)
        path = tmp_path / artifact.path.name
        if artifact.path.is_dir():
            shutil.copytree(artifact.path, path)
        else:
            shutil.copy(artifact.path, path)
        change(path)
        size, sha256 = measure(path)
        return replace(artifact, path=path, size=size, sha256=sha256)

    return make


@pytest.fixture(scope="session")
def folded(compressed: Any, classifier: Any) -> Any:
    """Predicts what the compressed classifier does, with the two factors multiplied back."""
    import keras

    model = keras.models.clone_model(classifier)
    for name, factors in compressed.factors.items():
        first, second = (weight.numpy().astype("float64") for weight in factors.weights)
        bias = compressed.model.get_layer(name).bias.numpy()
        model.get_layer(name).set_weights([first @ second, bias])
    model.get_layer("probabilities").set_weights(
        compressed.model.get_layer("probabilities").get_weights()
    )
    return model
