"""What many tests share: small models of many kinds, inputs for them, data, exported artifacts."""

import collections
import functools
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

from exporter.graph.network import Network
from exporter.options.groups import Export

hypothesis.settings.register_profile(
    "exporter",
    deadline=None,  # The first example imports libraries.
    derandomize=True,
    max_examples=60,
)
hypothesis.settings.load_profile("exporter")


def pytest_configure(config: pytest.Config) -> None:
    """Keeps the tests off the user's Keras settings, data sets and cached models.

    Of runs in these processes, those draw a report that ask for it: it takes half a second.
    """
    home = tempfile.mkdtemp(prefix="exporter-keras-")
    config.add_cleanup(functools.partial(shutil.rmtree, home, ignore_errors=True))
    # Keras reads it once, when it is imported; subprocesses of tests inherit it.
    os.environ["KERAS_HOME"] = home
    Export.__init__.__kwdefaults__["report"] = False


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test with the marker ``one_in(n)``, marks as slow all but each nth set of parameters.

    The second is the first that is kept: where formats are parameters, it is TFLite.
    """
    counts: collections.Counter[str] = collections.Counter()
    for item in items:
        if marker := item.get_closest_marker("one_in"):
            test = item.nodeid.partition("[")[0]
            if counts[test] % marker.args[0] != 1:
                item.add_marker(pytest.mark.slow)
            counts[test] += 1


def pytest_collection_finish() -> None:
    """Has the garbage collector pass over the imported libraries, which took a tenth of the time.

    Collections are rarer, too: graphs of TensorFlow are many objects, and die together.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Has a test draw the same weights, whatever ran before it."""
    if keras := sys.modules.get("keras"):
        keras.utils.set_random_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    """Keeps the environment as it is from test to test, for a change ends the idle processes."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call() -> None:
    """Does the same before the test, for pytest has set it anew."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)


@pytest.fixture(scope="session", autouse=True)
def _short_latencies() -> Iterator[None]:
    """Times artifacts for a moment: no test depends on how exact a latency is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exporter.targets.latency.ROUND_SECONDS", 0.001)
        yield


_BROWSER = Path(__file__).with_name("browse.mjs")
_BROWSER_PACKAGES = ("puppeteer-core@24.43.1", "axe-core@4.14.1")


@pytest.fixture(scope="session")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Opens a page in a browser, in both themes and two widths, and looks for what is wrong."""
    found = {tool: shutil.which(tool) for tool in ("chromium", "node", "npm")}
    if missing := [tool for tool, path in found.items() if path is None]:
        pytest.skip(f"{', '.join(missing)} is not installed")
    folder = tmp_path_factory.mktemp("browser")
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *_BROWSER_PACKAGES]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install {' and '.join(_BROWSER_PACKAGES)}: {done.stderr[-200:]}")

    def open_page(page: Path) -> None:
        done = subprocess.run(
            ["node", _BROWSER, page], cwd=folder, capture_output=True, text=True, check=True,
            env={**os.environ, "CHROMIUM": str(found["chromium"])},
        )  # fmt: skip
        seen = json.loads(done.stdout)
        assert seen["console"] == []
        assert seen["violations"] == []
        assert seen["wider"] == []  # No page that scrolls to the side.
        asked = {request for request in seen["requests"] if not request.startswith("data:")}
        assert asked == {page.as_uri()[:80]}

    return open_page


# Models. Nearly all name their layers, so that names do not depend on what ran before.


def _sequential_mlp() -> Any:
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((6, 6, 1), name="image"),
            layers.Flatten(name="flatten"),
            layers.Dense(40, activation="relu", name="hidden_1"),
            layers.Dense(32, activation="relu", name="hidden_2"),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="sequential_mlp",
    )


def _functional_two_inputs_two_outputs() -> Any:
    import keras
    from keras import layers

    wide = keras.Input((24,), name="wide")
    deep = keras.Input((18,), name="deep")
    both = layers.Concatenate(name="both")(
        [
            layers.Dense(20, activation="tanh", name="from_wide")(wide),
            layers.Dense(16, activation="elu", name="from_deep")(deep),
        ]
    )
    outputs = [
        layers.Dense(5, activation="softmax", name="kind")(both),
        layers.Dense(1, name="amount")(both),
    ]
    return keras.Model([wide, deep], outputs, name="functional_two_inputs_two_outputs")


def _residual() -> Any:
    import keras
    from keras import layers

    features = keras.Input((32,), name="features")
    x = features
    for block in (1, 2):
        inner = layers.LayerNormalization(name=f"norm_{block}")(x)
        inner = layers.Dense(48, activation="gelu", name=f"widen_{block}")(inner)
        x = layers.Add(name=f"add_{block}")([x, layers.Dense(32, name=f"narrow_{block}")(inner)])
    return keras.Model(features, layers.Dense(4, name="scores")(x), name="residual")


def _shared_dense() -> Any:
    import keras
    from keras import layers

    left, right = keras.Input((20,), name="left"), keras.Input((20,), name="right")
    tower = layers.Dense(28, activation="relu", name="tower")
    joined = layers.Subtract(name="difference")([tower(left), tower(right)])
    score = layers.Dense(1, activation="sigmoid", name="score")(joined)
    return keras.Model([left, right], score, name="shared_dense")


def _nested_sequential() -> Any:
    import keras
    from keras import layers

    body = keras.Sequential(
        [
            keras.Input((30,), name="body_input"),
            layers.Dense(36, activation="relu", name="first"),
            layers.Dense(24, activation="relu", name="second"),
        ],
        name="body",
    )
    return keras.Sequential(
        [keras.Input((30,), name="features"), body, layers.Dense(6, name="head")],
        name="nested_sequential",
    )


def _nested_functional() -> Any:
    import keras
    from keras import layers

    inner_input = keras.Input((24,), name="inner_input")
    inner = keras.Model(
        inner_input,
        layers.Dense(24, activation="relu", name="mix")(inner_input),
        name="inner",
    )
    features = keras.Input((24,), name="features")
    # Called twice: a shared model.
    output = layers.Dense(3, name="scores")(inner(inner(features)))
    return keras.Model(features, output, name="nested_functional")


def _conv_batchnorm_dropout() -> Any:
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Conv2D(6, 3, padding="same", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(name="flatten"),
            layers.Dropout(0.5, name="dropout"),
            layers.Dense(24, activation="relu", name="hidden"),
            layers.Dense(5, activation="softmax", name="probabilities"),
        ],
        name="conv_batchnorm_dropout",
    )


def _dict_inputs_outputs() -> Any:
    import keras
    from keras import layers

    inputs = {"query": keras.Input((16,), name="query"), "item": keras.Input((12,), name="item")}
    both = layers.Concatenate(name="both")([inputs["query"], inputs["item"]])
    hidden = layers.Dense(24, activation="relu", name="hidden")(both)
    outputs = {
        "rating": layers.Dense(1, name="rating_layer")(hidden),
        "click": layers.Dense(2, activation="softmax", name="click_layer")(hidden),
    }
    return keras.Model(inputs, outputs, name="dict_inputs_outputs")


def _frozen_layer() -> Any:
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((20,), name="features"),
            layers.Dense(30, activation="relu", trainable=False, name="frozen"),
            layers.Dense(3, name="head"),
        ],
        name="frozen_layer",
    )


def _mixed_float16() -> Any:
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((24,), name="features"),
            layers.Dense(32, activation="relu", dtype="mixed_float16", name="hidden"),
            layers.Dense(4, activation="softmax", dtype="float32", name="probabilities"),
        ],
        name="mixed_float16",
    )


def _dense_on_sequences() -> Any:
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((7, 16), name="sequence"),
            layers.Dense(24, activation="relu", name="tokens"),
            layers.GlobalAveragePooling1D(name="mean"),
            layers.Dense(3, activation="softmax", name="probabilities"),
        ],
        name="dense_on_sequences",
    )


def _regression() -> Any:
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((13,), name="features"),
            layers.Dense(32, activation="selu", kernel_regularizer="l2", name="hidden"),
            layers.Dense(2, name="targets"),
        ],
        name="regression",
    )


def _default_names() -> Any:
    """Neither layers nor inputs are named, the usual case."""
    import keras
    from keras import layers

    first, second = keras.Input((12,)), keras.Input((10,))
    hidden = layers.Concatenate()([layers.Dense(16)(first), layers.Dense(16)(second)])
    return keras.Model([first, second], layers.Dense(4)(hidden))


def _tiny() -> Any:
    """The smallest model that says anything: one layer that can be factorized."""
    import keras
    from keras import layers

    return keras.Sequential(
        [keras.Input((8,), name="features"), layers.Dense(6, name="scores")], name="tiny"
    )


ZOO: dict[str, Callable[[], Any]] = {
    "sequential_mlp": _sequential_mlp,
    "functional_two_inputs_two_outputs": _functional_two_inputs_two_outputs,
    "residual": _residual,
    "shared_dense": _shared_dense,
    "nested_sequential": _nested_sequential,
    "nested_functional": _nested_functional,
    "conv_batchnorm_dropout": _conv_batchnorm_dropout,
    "dict_inputs_outputs": _dict_inputs_outputs,
    "frozen_layer": _frozen_layer,
    "mixed_float16": _mixed_float16,
    "dense_on_sequences": _dense_on_sequences,
    "regression": _regression,
    "default_names": _default_names,
}


def _build(name: str) -> Any:
    import keras

    seed = zlib.crc32(name.encode())
    keras.utils.set_random_seed(seed)
    model = {**ZOO, "tiny": _tiny}[name]()
    _randomize(model, seed)
    return model


def _randomize(model: Any, seed: int) -> None:
    """Makes biases and statistics of normalisations other than zeros and ones.

    Converters drop the addition of a zero, and a lost bias would go unnoticed.
    """
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.name in {"bias", "beta", "moving_mean"}:
            variable.assign(generator.normal(0, 0.3, variable.shape))
        elif variable.name in {"gamma", "moving_variance"}:
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))


@pytest.fixture(params=ZOO)
def zoo_name(request: pytest.FixtureRequest) -> str:
    """Each small model in turn, by its name; a test picks some with ``parametrize``."""
    return str(request.param)


@pytest.fixture
def zoo_model(zoo_name: str) -> Any:
    """Each small model in turn; a new one for every test."""
    return _build(zoo_name)


@pytest.fixture(scope="session")
def build() -> Callable[[str], Any]:
    """Builds a model of the zoo by its name, or ``tiny``; the same weights every time."""
    return _build


@pytest.fixture(scope="session")
def randomize() -> Callable[[Any, int], None]:
    """Gives a model of the test's own random biases."""
    return _randomize


@pytest.fixture(scope="session")
def installed() -> Callable[[str], Any]:
    """A format by name; skips the test where what the format needs is not installed."""
    from exporter.formats import FORMATS

    def get(name: str) -> Any:
        fmt = FORMATS[name]
        if fmt.extra.missing:
            pytest.skip(f"needs {', '.join(fmt.extra.missing)}, which is not installed")
        return fmt

    return get


@pytest.fixture(scope="session")
def samples() -> Callable[..., dict[str, Any]]:
    """Random inputs of a model by the names in its signature: ``samples(model, count)``."""
    from exporter.graph.signature import Signature

    def draw(model: Any, count: int, seed: int = 0) -> dict[str, Any]:
        generator = np.random.default_rng(seed)
        return {
            info.name: generator.normal(size=(count, *info.shape[1:])).astype(info.dtype)
            for info in Signature(model).inputs
        }

    return draw


@pytest.fixture(scope="session")
def predict() -> Callable[[Any, dict[str, Any]], dict[str, Any]]:
    """Predictions of a Keras model by the names in its signature."""

    # Eagerly: to trace a graph takes longer than the few layers.
    return lambda model, inputs: Network(model).runner(eager=True)(inputs)


@pytest.fixture(scope="session")
def fit_one_step() -> Callable[[Any, dict[str, Any]], None]:
    """Trains a model for one step of gradient descent towards zero outputs."""
    import keras

    def fit(model: Any, inputs: dict[str, Any]) -> None:
        count = len(next(iter(inputs.values())))
        # A Sequential has no such attributes; the structure of a functional model may be nested.
        given = keras.tree.pack_sequence_as(
            getattr(model, "input", model.inputs[0]), list(inputs.values())
        )
        targets = keras.tree.map_structure(
            lambda tensor: np.zeros((count, *tensor.shape[1:]), "float32"),
            getattr(model, "output", model.outputs[0]),
        )
        model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse", run_eagerly=True)
        model.fit(given, targets, batch_size=count, verbose=0)

    return fit


# Data.


@pytest.fixture(scope="session")
def digits() -> Any:
    """The embedded digits as they are loaded; not to be changed."""
    from exporter.data import load_dataset

    return load_dataset("digits")


@pytest.fixture(scope="session")
def trained_mlp(digits: Any) -> Any:
    """A small classifier of the digits after one epoch; not to be changed."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((28, 28), name="image"),
            layers.Rescaling(1 / 255, name="rescale"),
            layers.Flatten(name="flatten"),
            layers.Dense(64, activation="relu", name="hidden"),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="trained_mlp",
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    model.fit(digits.train.inputs["x"], digits.train.labels["y"], verbose=0)
    return model


@pytest.fixture(scope="session")
def engine(trained_mlp: Any, digits: Any) -> Any:
    """The engine of the small classifier, which has seen the digits."""
    from exporter.graph.fitting import fitted
    from exporter.graph.network import Network
    from exporter.lowrank.calibration import calibration_from
    from exporter.lowrank.engine import Engine

    network = Network(trained_mlp)
    dataset = fitted(digits, network)
    return Engine(network, calibration_from(network, dataset, 1024))


@pytest.fixture(scope="session")
def planner(engine: Any) -> Any:
    from exporter.lowrank.planner import Planner

    return Planner(engine)


@pytest.fixture(autouse=True, scope="session")
def _kept_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Has runs in this process find nothing that others kept."""
    from exporter.commands import kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "_FOLDER", tmp_path_factory.mktemp("kept"))
        yield


@pytest.fixture
def arm64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finds what ``scripts/arm64`` made, wherever the test runs; skips where it was not run."""
    from exporter.errors import RecipeError
    from exporter.targets import TARGETS
    from exporter.targets.emulated import FOLDER_VARIABLE, folder_of_arm64

    monkeypatch.setenv(FOLDER_VARIABLE, str(Path(__file__).parents[1] / folder_of_arm64()))
    try:
        TARGETS["arm64"].check()
    except RecipeError as error:
        pytest.skip(str(error))


@pytest.fixture
def save_npz(tmp_path: Path) -> Callable[..., str]:
    """Writes arrays by name to an ``.npz`` and returns its path."""

    def save(**arrays: Any) -> str:
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return str(path)

    return save


# Listening.


class Listener:
    """A ``Progress`` that remembers the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[tuple[int, str]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def track(self, label: str, total: int) -> Iterator[Callable[[int, str], None]]:
        del label, total
        yield lambda done, status: self.steps.append((done, status))


@pytest.fixture
def listener() -> Listener:
    return Listener()
