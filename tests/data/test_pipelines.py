from itertools import chain

import numpy as np
import pytest

from exporter.data import fit_to_model, load_dataset, loading, pipelines
from exporter.errors import DataError


@pytest.fixture(scope="module")
def tf():
    import tensorflow

    return tensorflow


@pytest.fixture
def pipeline(tf):
    """Makes a pipeline of samples whose first value, and label, is their number."""

    def make(count, first=0, labels=True):
        numbers = np.arange(first, first + count)
        x = np.stack([numbers, np.zeros(count)], axis=1).astype("float32")
        return tf.data.Dataset.from_tensor_slices((x, numbers) if labels else x)

    return make


def numbers(split):
    listed = split.inputs["x"][:, 0].astype(int).tolist()
    assert not split.labels or split.labels["y"].tolist() == listed
    return listed


def epoch(dataset, size=4, *, epoch=0, start=0):
    batches = dataset.source.batches(size, seed=0, epoch=epoch, start=start)
    return [numbers(batch) for batch in batches]


class TestParts:
    def test_one_pipeline_is_training_and_its_first_samples_are_held_out(self, pipeline):
        dataset = load_dataset(pipeline(50))
        assert numbers(dataset.test) == list(range(10))
        assert numbers(dataset.validation) == list(range(10, 14))
        assert numbers(dataset.train) == list(range(14, 50))
        assert list(chain(*epoch(dataset))) == list(range(14, 50))
        assert dataset.source.samples == 36
        assert dataset.notes == ()
        assert load_dataset({"train": pipeline(50)}).digest == dataset.digest

    def test_validation_comes_from_the_head_if_test_is_given(self, pipeline):
        dataset = load_dataset({"train": pipeline(50), "test": pipeline(7, first=100)})
        assert numbers(dataset.validation) == list(range(5))
        assert numbers(dataset.train) == list(range(5, 50))
        assert numbers(dataset.test) == list(range(100, 107))
        assert epoch(dataset)[0] == [5, 6, 7, 8]

    def test_given_parts_are_taken_as_they_are(self, pipeline):
        given = {"train": pipeline(9), "validation": pipeline(5, 20), "test": pipeline(7, 30)}
        dataset = load_dataset(given)
        assert [numbers(part) for part in dataset.parts.values()] == [
            list(range(9)),
            list(range(20, 25)),
            list(range(30, 37)),
        ]
        assert epoch(dataset) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]

    def test_test_alone_trains_nothing(self, pipeline):
        dataset = load_dataset({"test": pipeline(5)})
        assert list(dataset.parts) == ["test"]
        assert dataset.source is None

    def test_inputs_alone_are_divided_as_well(self, pipeline):
        dataset = load_dataset(pipeline(6, labels=False))
        assert numbers(dataset.test) == [0]
        assert numbers(dataset.train) == [1, 2, 3, 4, 5]
        assert epoch(dataset) == [[1, 2, 3, 4], [5]]

    def test_a_single_sample_is_tested_on(self, pipeline):
        dataset = load_dataset(pipeline(1))
        assert list(dataset.parts) == ["test"]
        assert dataset.source is None

    def test_heads_are_limited_and_training_is_not(self, pipeline, monkeypatch):
        monkeypatch.setattr(loading, "HELD_SAMPLES", 20)
        parts = {"train": pipeline(100), "test": pipeline(100)}
        dataset = load_dataset(parts)
        assert [len(part) for part in dataset.parts.values()] == [18, 2, 20]
        assert dataset.source.samples == 98
        assert sum(map(len, epoch(dataset))) == 98
        assert dataset.notes == (
            "train: the first 20 samples of the pipeline are looked at, training goes on to the "
            "others",
            "test: the first 20 samples of the pipeline are looked at",
        )

    def test_heads_of_just_the_limit_are_all(self, pipeline, monkeypatch):
        monkeypatch.setattr(loading, "HELD_SAMPLES", 64)
        assert load_dataset({"test": pipeline(64)}).notes == ()
        assert load_dataset({"test": pipeline(65)}).notes

    def test_heads_are_limited_in_bytes(self, pipeline, monkeypatch):
        monkeypatch.setattr(pipelines, "HELD_BYTES", 64 * 16)
        dataset = load_dataset({"test": pipeline(1000)})
        assert 64 <= len(dataset.test) < 200
        assert f"the first {len(dataset.test)} samples" in dataset.notes[0]

    def test_the_digest_tells_contents_apart(self, pipeline):
        digests = {
            load_dataset(given).digest
            for given in (pipeline(9), pipeline(9, 1), {"test": pipeline(9)})
        }
        assert len(digests) == 3


class TestBatches:
    def test_going_on_gives_the_rest_of_the_epoch(self, pipeline):
        dataset = load_dataset(pipeline(50))
        whole = epoch(dataset)
        for start in (0, 1, 5, len(whole), 100):
            assert epoch(dataset, start=start) == whole[start:]

    def test_the_order_is_that_of_the_pipeline(self, pipeline):
        shuffled = pipeline(40).shuffle(40, seed=3)
        given = {"train": shuffled, "validation": pipeline(2), "test": pipeline(2)}
        first, second = epoch(load_dataset(given)), epoch(load_dataset(given), epoch=1)
        assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(40))
        assert first != second

    def test_the_number_of_samples_may_be_unknown(self, pipeline, monkeypatch):
        even = pipeline(100).filter(lambda x, y: y % 2 == 0)
        assert load_dataset(even).source.samples == 50 - 10 - 4
        monkeypatch.setattr(loading, "HELD_SAMPLES", 20)
        dataset = load_dataset(even)
        assert dataset.source.samples is None
        assert epoch(dataset)[-1][-1] == 98

    def test_batches_are_fitted_like_the_parts(self, tf, spec, fitted_and_scaled):
        images = np.arange(50, dtype="uint8").reshape(50, 1, 1).repeat(4, 1).repeat(4, 2)
        dataset = load_dataset(tf.data.Dataset.from_tensor_slices((images, np.arange(50)[:, None])))
        fitted = fitted_and_scaled(dataset, [spec("image", (4, 4, 1))], [spec("p", (50,))])
        assert fitted.notes == ("image: an axis of one channel is added",)
        batches = list(fitted.source.batches(10, seed=0, epoch=0))
        for name in ("image", "p"):
            kind = "inputs" if name == "image" else "labels"
            joined = np.concatenate([getattr(batch, kind)[name] for batch in batches])
            np.testing.assert_array_equal(joined, getattr(fitted.train, kind)[name])
            assert joined.dtype == getattr(fitted.train, kind)[name].dtype
        # The data set that was fitted is as it was.
        assert next(dataset.source.batches(1, seed=0, epoch=0)).inputs["x"].dtype == np.uint8

    def test_labels_of_every_batch_are_checked(self, pipeline, spec, monkeypatch):
        monkeypatch.setattr(loading, "HELD_SAMPLES", 10)
        fitted = fit_to_model(load_dataset(pipeline(30)), [spec("x", (2,))], [spec("p", (20,))])
        with pytest.raises(DataError, match=r"classes within 0 and 19\. Received: values from"):
            list(fitted.source.batches(4, seed=0, epoch=0))

    def test_values_of_every_batch_are_checked(self, tf, monkeypatch):
        monkeypatch.setattr(loading, "HELD_SAMPLES", 10)
        x = np.ones((30, 2), "float32")
        x[25] = np.nan
        dataset = load_dataset(tf.data.Dataset.from_tensor_slices((x, np.ones(30))))
        with pytest.raises(DataError, match="Array 'x' of the pipeline 'train' must be finite"):
            list(dataset.source.batches(4, seed=0, epoch=0))

    def test_a_pipeline_that_fails_is_named(self, tf, monkeypatch):
        monkeypatch.setattr(loading, "HELD_SAMPLES", 10)

        def samples():
            yield from np.ones((20, 2), "float32")
            raise ValueError("broken at 20")

        signature = tf.TensorSpec((2,), "float32")
        dataset = load_dataset(tf.data.Dataset.from_generator(samples, output_signature=signature))
        with pytest.raises(DataError, match=r"The pipeline 'train' failed: .*broken at 20"):
            list(dataset.source.batches(4, seed=0, epoch=0))


def test_several_inputs_and_outputs_go_by_name(tf, spec):
    count = 20
    inputs = {"left": np.ones((count, 2)), "right": np.zeros((count, 3))}
    outputs = {"kind": np.arange(count), "amount": np.ones(count)}
    dataset = load_dataset(tf.data.Dataset.from_tensor_slices((inputs, outputs)))
    fitted = fit_to_model(
        dataset,
        [spec("right", (3,)), spec("left", (2,))],
        [spec("kind", (count,)), spec("amount", (1,))],
    )
    (batch,) = fitted.source.batches(count, seed=0, epoch=0)
    assert list(batch.inputs) == ["right", "left"]
    assert batch.labels["amount"].shape == (14, 1)
    alone = load_dataset(tf.data.Dataset.from_tensor_slices((inputs,)))
    assert list(alone.test.inputs) == ["left", "right"]


class TestRefused:
    def test_batched_samples(self, pipeline):
        with pytest.raises(DataError, match=r"must yield single samples.*Call \.unbatch\(\)"):
            load_dataset(pipeline(9).batch(2))

    def test_endless_repetition(self, pipeline):
        with pytest.raises(DataError, match=r"'train' must end.*Leave out \.repeat\(\)"):
            load_dataset(pipeline(9).repeat())

    def test_nothing(self, pipeline):
        with pytest.raises(DataError, match=r"'test' must hold samples\. Received: none"):
            load_dataset({"test": pipeline(9).take(0)})

    @pytest.mark.parametrize("kind", ["three", "nested", "ragged"])
    def test_other_elements(self, tf, kind):
        x = np.ones((4, 2))
        elements = {
            "three": (x, x, x),
            "nested": ({"a": {"b": x}}, x),
            "ragged": tf.ragged.constant([[1.0], [2.0, 3.0]]),
        }[kind]
        with pytest.raises(DataError, match=r"must yield x or \(x, y\), each a dense tensor"):
            load_dataset(tf.data.Dataset.from_tensor_slices(elements))

    def test_text(self, tf):
        with pytest.raises(DataError, match="Array 'x' of the pipeline 'train' must be numeric"):
            load_dataset(tf.data.Dataset.from_tensor_slices(["a", "b"]))

    def test_samples_of_several_shapes(self, tf):
        samples = tf.data.Dataset.range(1, 9).map(lambda n: (tf.ones([n]), n))
        with pytest.raises(DataError, match="The pipeline 'train' failed: "):
            load_dataset(samples)

    def test_held_out_samples_that_change(self, pipeline):
        shuffled = pipeline(50).shuffle(50)
        with pytest.raises(DataError) as caught:
            load_dataset(shuffled)
        assert "begins with others each time" in str(caught.value)
        assert "reshuffle_each_iteration=False" in str(caught.value)
        steady = pipeline(50).shuffle(50, seed=1, reshuffle_each_iteration=False)
        assert len(load_dataset(steady).train) == 36

    @pytest.mark.parametrize("names", [["val"], ["validation"], ["validation", "test"], ["x"]])
    def test_other_names(self, pipeline, names):
        with pytest.raises(DataError, match="given as train, validation and test") as caught:
            load_dataset({name: pipeline(4) for name in names})
        assert names[0] in str(caught.value)

    def test_a_mixture_with_arrays(self, pipeline):
        with pytest.raises(DataError, match=r"Received: .*'test': 'ndarray'"):
            load_dataset({"train": pipeline(4), "test": np.ones((3, 2))})
