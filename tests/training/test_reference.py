import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from exporter.data import files, fit_to_model, load_dataset, loading
from exporter.errors import DataError, OutputError
from exporter.graph.signature import Signature
from exporter.progress import Silent
from exporter.training import reference as baseline
from exporter.training.reference import reference_for, train_reference

SMALL = {
    "HIDDEN_LAYERS": 1,
    "HIDDEN_UNITS": 12,
    "EPOCHS": 2,
    "BATCH_SIZE": 32,
    "LEARNING_RATE": 0.03,
}


@pytest.fixture
def small(monkeypatch):
    """A reference MLP that trains in a second."""
    for name, value in SMALL.items():
        monkeypatch.setattr(baseline, name, value)


@pytest.fixture(scope="module")
def blobs():
    """Images of three classes that are easy to tell apart."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 250)
    images = generator.normal(0, 0.3, (250, 4, 4)).astype("float32")
    images[np.arange(250), labels] += 1
    return load_dataset({"x": images, "y": labels})


def train(dataset, cache, listener, seed=0):
    model = reference_for(dataset, seed)
    signature = Signature(model)
    fitted = fit_to_model(dataset, signature.inputs, signature.outputs)
    return train_reference(model, fitted, seed=seed, cache=cache, progress=listener)


@pytest.fixture(scope="module")
def first_run(blobs, tmp_path_factory):
    """The cache of one run on the blobs, its model and how it was trained."""
    cache = tmp_path_factory.mktemp("first_run")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(baseline, name, value)
        model, training = train(blobs, cache, Silent())
    return cache, model, training


@pytest.fixture
def cache(first_run, tmp_path):
    """A copy of the first run's cache, for a test to damage."""
    return Path(shutil.copytree(first_run[0], tmp_path / "cache"))


def accuracy(model, split):
    (images,), (labels,) = split.inputs.values(), split.labels.values()
    return (model.predict(images, verbose=0).argmax(axis=1) == labels).mean()


class TestReference:
    def test_is_the_network_of_the_notebook(self, digits):
        model = reference_for(digits, 0)
        kinds = [type(layer).__name__ for layer in model.layers]
        assert kinds == ["Flatten"] + ["Dense"] * 6
        assert [layer.units for layer in model.layers[1:]] == [1024] * 5 + [10]
        signature = Signature(model)
        assert [(i.name, i.shape) for i in signature.inputs] == [("image", (None, 28, 28))]
        assert [(o.name, o.shape) for o in signature.outputs] == [("probabilities", (None, 10))]

    def test_learns_and_tells_how(self, small, blobs, tmp_path, listener):
        model, training = train(blobs, tmp_path, listener)
        assert accuracy(model, blobs.test) > 0.8
        assert training.epochs == 2
        assert training.best_epoch in {1, 2}
        assert training.seconds > 0
        assert not training.cached
        # 180 samples for training, in batches of 32.
        assert [done for done, _ in listener.steps] == list(range(1, 2 * 6 + 1))

    def test_the_weights_are_those_of_the_best_epoch(self, first_run, blobs):
        _, model, training = first_run
        assert accuracy(model, blobs.validation) == pytest.approx(training.validation_accuracy)

    @pytest.mark.slow
    def test_the_seed_decides_the_weights(self, small, first_run, blobs, tmp_path, listener):
        first = first_run[1].get_weights()
        second = train(blobs, tmp_path, listener)[0].get_weights()
        for one, two in zip(first, second, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
        other = train(blobs, tmp_path, listener, seed=1)[0].get_weights()
        assert np.abs(first[0] - other[0]).max() > 0.01

    @pytest.mark.one_in(2)
    @pytest.mark.parametrize("kind", ["large file", "pipeline"])
    @pytest.mark.usefixtures("small")
    def test_learns_from_what_is_not_in_memory(self, blobs, tmp_path, listener, monkeypatch, kind):
        arrays = {"x": blobs.train.inputs["x"], "y": blobs.train.labels["y"]}
        if kind == "pipeline":
            import tensorflow as tf

            dataset = load_dataset(tf.data.Dataset.from_tensor_slices((arrays["x"], arrays["y"])))
        else:
            monkeypatch.setattr(files, "LARGE_BYTES", 0)
            np.savez(tmp_path / "blobs.npz", **arrays)
            dataset = load_dataset(str(tmp_path / "blobs.npz"))
        model, training = train(dataset, tmp_path / "cache", listener)
        assert accuracy(model, blobs.test) > 0.8
        assert not training.cached
        # 130 samples for training, in batches of 32.
        assert [done for done, _ in listener.steps] == list(range(1, 2 * 5 + 1))


@pytest.fixture
def untrained(small, monkeypatch):
    """Tells of a training without one, where only the cache matters."""
    told = baseline.Training(SMALL["EPOCHS"], 1, 0.5, 0.1)
    monkeypatch.setattr(baseline, "_train", lambda *_: told)


@pytest.mark.usefixtures("untrained")
class TestCache:
    def test_a_second_run_trains_nothing(self, first_run, blobs, cache, listener):
        _, model, training = first_run
        again, recalled = train(blobs, cache, listener)
        assert not listener.steps
        assert not listener.notes
        assert recalled == dataclasses.replace(training, cached=True)
        for one, two in zip(model.get_weights(), again.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)

    def test_other_data_are_trained_on_anew(self, blobs, cache, listener):
        arrays = {"x": blobs.train.inputs["x"], "y": blobs.train.labels["y"]}
        assert not train(load_dataset(arrays), cache, listener)[1].cached

    @pytest.mark.parametrize("name", ["HIDDEN_UNITS", "EPOCHS", "BATCH_SIZE"])
    def test_other_settings_are_trained_with_anew(self, blobs, cache, listener, monkeypatch, name):
        monkeypatch.setattr(baseline, name, SMALL[name] + 1)
        assert not train(blobs, cache, listener)[1].cached

    @pytest.mark.parametrize("suffix", [".keras", ".json"])
    @pytest.mark.parametrize("damage", ["garbage", "cut", "nested", "empty", "missing"])
    def test_a_damaged_entry_is_trained_anew_with_a_note(
        self, blobs, cache, listener, suffix, damage
    ):
        (file,) = cache.glob(f"*{suffix}")
        content = file.read_bytes()
        if damage == "missing":
            file.unlink()
        else:
            nested, half = b"[" * 100_000, content[: len(content) // 2]
            damaged = {"garbage": b"garbage", "cut": half, "nested": nested, "empty": b"{}"}
            file.write_bytes(damaged[damage])
        _, training = train(blobs, cache, listener)
        assert not training.cached
        if (suffix, damage) != (".keras", "missing"):
            (note,) = listener.notes
            assert "cannot be read, training anew" in note
        assert train(blobs, cache, listener)[1].cached

    def test_nothing_but_the_entry_is_left(self, cache):
        assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".keras"]

    def test_a_cache_that_cannot_be_written_is_named(self, blobs, tmp_path, listener):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(OutputError, match=r"cannot be cached in .*file"):
            train(blobs, tmp_path / "file", listener)


class TestUntrainable:
    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"x": np.ones((20, 4))}, "Received: data 'arrays' without them"),
            (
                {"a": np.ones((20, 4)), "b": np.ones((20, 4)), "y": np.zeros(20, int)},
                "one input array with labels",
            ),
            ({"x_test": np.ones((20, 4)), "y_test": np.zeros(20, int)}, "x_train and y_train"),
            ({"x": np.ones((20, 4)), "y": np.linspace(0, 1, 20)}, "labels of dtype float64"),
            ({"x": np.ones((20, 4)), "y": np.ones((20, 3), int)}, "of dtype int64 and shape"),
            ({"x": np.ones((20, 4)), "y": np.arange(20) - 5}, "integer classes >= 0"),
        ],
        ids=["unlabelled", "two_inputs", "test_only", "values", "columns", "negative"],
    )
    def test_data_that_train_no_classifier_are_refused(self, arrays, message):
        with pytest.raises(DataError, match=message):
            reference_for(load_dataset(arrays), 0)

    def test_images_without_a_size_are_refused(self, tmp_path):
        import tensorflow as tf

        for name in ("cat", "dog"):
            (tmp_path / name).mkdir()
            for number in range(8):
                image = tf.io.encode_png(np.zeros((4, 4, 1), "uint8"))
                (tmp_path / name / f"{number}.png").write_bytes(image.numpy())
        with pytest.raises(DataError, match=r"images in folders, .*, which take theirs"):
            reference_for(load_dataset(str(tmp_path)), 0)

    @pytest.mark.usefixtures("small")
    def test_a_pipeline_of_unknown_length_is_refused(self, blobs, tmp_path, listener, monkeypatch):
        import tensorflow as tf

        monkeypatch.setattr(loading, "HELD_SAMPLES", 50)
        arrays = blobs.train.inputs["x"], blobs.train.labels["y"]
        endless = tf.data.Dataset.from_tensor_slices(arrays).filter(lambda x, y: True)
        with pytest.raises(DataError, match="which do not know how many samples they have"):
            train(load_dataset(endless), tmp_path, listener)

    def test_no_data_are_refused(self):
        with pytest.raises(DataError, match="data 'none' without them"):
            reference_for(load_dataset("none"), 0)

    def test_divergence_is_an_error_that_is_not_cached(
        self, small, blobs, tmp_path, listener, monkeypatch
    ):
        monkeypatch.setattr(baseline, "LEARNING_RATE", 1e38)
        with pytest.raises(DataError, match=r"diverged; scale its inputs to \[0, 1\]"):
            train(blobs, tmp_path, listener)
        assert not list(tmp_path.iterdir())
