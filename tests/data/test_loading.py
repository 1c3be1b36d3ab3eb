import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.data import fit_to_model, load_dataset
from exporter.errors import DataError


def spec(name, shape, dtype="float32"):
    """An input or output of a model."""
    return SimpleNamespace(name=name, shape=(None, *shape), dtype=dtype)


def numbered(count, *shape):
    """Samples that tell which they are: the first value of each is its number."""
    samples = np.zeros((count, *(shape or (2,))), "float32")
    samples.reshape(count, -1)[:, 0] = np.arange(count)
    return samples


def numbers(split):
    (inputs,) = split.inputs.values()
    return inputs.reshape(len(inputs), -1)[:, 0].astype(int).tolist()


class TestDigits:
    def test_are_split_into_disjoint_parts(self, digits):
        assert (len(digits.train), len(digits.validation), len(digits.test)) == (7200, 800, 2000)
        assert digits.test.inputs["x"].shape == (2000, 28, 28)
        assert digits.test.inputs["x"].dtype == np.uint8
        assert set(np.unique(digits.test.labels["y"])) == set(range(10))
        whole = [
            image.tobytes()
            for split in (digits.train, digits.validation, digits.test)
            for image in split.inputs["x"]
        ]
        assert len(set(whole)) == len(whole) == 10_000

    def test_are_the_same_every_time(self, digits):
        again = load_dataset("digits")
        assert again.digest == digits.digest
        np.testing.assert_array_equal(again.test.labels["y"], digits.test.labels["y"])


@pytest.mark.parametrize("source", [(np.ones(3), np.ones(3)), np.ones(3), 5])
def test_what_is_no_data_is_told(source):
    with pytest.raises(DataError, match=r"arrays by name such as .* Received: (tuple|ndarray|int)"):
        load_dataset(source)


def test_none_holds_nothing():
    dataset = load_dataset("none")
    assert dataset.train is dataset.validation is dataset.test is None
    assert fit_to_model(dataset, [spec("x", (3,))], []) is dataset


class TestLayouts:
    def test_one_array_with_labels_is_split_in_three(self, save_npz):
        dataset = load_dataset(save_npz(x=numbered(100), y=np.arange(100)))
        parts = [numbers(s) for s in (dataset.train, dataset.validation, dataset.test)]
        assert [len(part) for part in parts] == [72, 8, 20]
        assert sorted(itertools.chain(*parts)) == list(range(100))
        for split in (dataset.train, dataset.validation, dataset.test):
            assert split.labels["y"].tolist() == numbers(split)

    def test_splits_are_the_same_every_time(self, save_npz):
        path = save_npz(x=numbered(50), y=np.arange(50))
        first, second = load_dataset(path), load_dataset(path)
        for name in ("train", "validation", "test"):
            assert numbers(getattr(first, name)) == numbers(getattr(second, name))
        assert first.digest == second.digest

    def test_a_given_test_part_is_kept_and_validation_comes_from_training(self, save_npz):
        dataset = load_dataset(
            save_npz(
                x_train=numbered(40),
                y_train=np.arange(40),
                x_test=numbered(10) + 1000,
                y_test=np.arange(10),
            )
        )
        assert numbers(dataset.test) == list(range(1000, 1010))
        assert len(dataset.validation) == 4
        assert sorted(numbers(dataset.train) + numbers(dataset.validation)) == list(range(40))

    def test_a_training_part_alone_gives_a_test_part(self, save_npz):
        dataset = load_dataset(save_npz(x_train=numbered(40), y_train=np.arange(40)))
        parts = [numbers(s) for s in (dataset.train, dataset.validation, dataset.test)]
        assert sorted(itertools.chain(*parts)) == list(range(40))
        assert len(dataset.test) == 8

    def test_a_test_part_alone_trains_nothing(self, save_npz):
        dataset = load_dataset(save_npz(x_test=numbered(10), y_test=np.arange(10)))
        assert dataset.train is dataset.validation is None
        assert numbers(dataset.test) == list(range(10))

    def test_inputs_alone_are_divided_so_that_no_test_sample_calibrates(self, save_npz):
        dataset = load_dataset(save_npz(x=numbered(20)))
        assert {n: len(part) for n, part in dataset.parts.items()} == {
            "train": 14,
            "validation": 2,
            "test": 4,
        }
        joined = [n for part in dataset.parts.values() for n in numbers(part)]
        assert sorted(joined) == list(range(20))
        assert not dataset.test.labels

    @pytest.mark.parametrize("name", ["val", "validation"])
    def test_a_file_may_have_a_validation_part(self, save_npz, name):
        arrays = {"x_train": numbered(6), f"x_{name}": numbered(3), "x_test": numbered(2)}
        dataset = load_dataset(save_npz(**arrays))
        assert {n: len(part) for n, part in dataset.parts.items()} == {
            "train": 6,
            "validation": 3,
            "test": 2,
        }

    def test_a_single_sample_is_tested_on(self, save_npz):
        dataset = load_dataset(save_npz(x=numbered(1), y=np.zeros(1, int)))
        assert dataset.train is None
        assert len(dataset.test) == 1

    def test_an_npy_is_the_only_input(self, tmp_path):
        np.save(tmp_path / "images.npy", numbered(6))
        dataset = load_dataset(str(tmp_path / "images.npy"))
        assert list(dataset.test.inputs) == ["x"]
        assert len(dataset.train) + len(dataset.test) == 6 - len(dataset.validation or ())

    def test_arrays_may_be_given_in_memory(self):
        arrays = {"x": numbered(10), "y": np.arange(10)}
        assert len(load_dataset(arrays).test) == 2

    def test_several_inputs_and_outputs_go_by_name(self, save_npz):
        path = save_npz(
            left_train=numbered(20),
            right_train=numbered(20, 3),
            y_kind_train=np.zeros(20, int),
            y_amount_train=np.arange(20.0),
            left_test=numbered(4),
            right_test=numbered(4, 3),
            y_kind_test=np.ones(4, int),
            y_amount_test=np.arange(4.0),
        )
        dataset = fit_to_model(
            load_dataset(path),
            [spec("right", (3,)), spec("left", (2,))],
            [spec("kind", (5,)), spec("amount", (1,))],
        )
        assert list(dataset.test.inputs) == ["right", "left"]
        assert dataset.test.labels["kind"].shape == (4,)
        assert dataset.test.labels["amount"].shape == (4, 1)

    def test_the_digest_tells_content_names_and_types_apart(self):
        base = {"x": numbered(4)}
        others = [{"x": numbered(4) + 1}, {"z": numbered(4)}, {"x": numbered(4).astype("float64")}]
        digests = {load_dataset(arrays).digest for arrays in (base, *others)}
        assert len(digests) == 4


class TestUnreadable:
    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"x": np.array([{}, None])}, "it holds objects, or no arrays."),
            (
                {"x": np.array(["a", "b"])},
                "Array 'x' of data * must be numeric. Received: dtype <U",
            ),
            ({"x": np.ones(3, complex)}, "Received: dtype complex128."),
            (
                {"x": np.array([1.0, np.nan])},
                "must be finite, and within * Received: 1 NaN, infinite or larger",
            ),
            (
                {"x": np.float32([1, -1e20])},
                "Received: 1 NaN, * larger values, such as -1e+20.",
            ),
            (
                {"x": np.array([np.inf, -np.inf])},
                "Received: 2 NaN, infinite or larger",
            ),
            ({"x": np.zeros((0, 4))}, "must hold samples. Received: shape (0, 4)."),
            ({"x": np.float32(3)}, "must hold samples. Received: shape ()."),
            ({"y": np.arange(3)}, "hold labels and no inputs: ['y']."),
            (
                {"x": np.zeros((3, 2)), "y": np.zeros(4)},
                "must have as many samples everywhere. Received: {'x': 3, 'y': 4}.",
            ),
            (
                {"x": np.zeros((3, 2)), "x_test": np.zeros((3, 2))},
                "mix arrays with and without _train/_val/_test: ['x', 'x_test'].",
            ),
            (
                {"x_train_sensors": np.zeros((3, 2)), "y_train": np.zeros(3)},
                "mix arrays with and without _train/_val/_test: ['x_train_sensors', 'y_train']. * "
                "INPUT is an input of the model, or x if * Did you mean 'x_train'?",
            ),
            (
                {"xtrain": np.zeros((3, 2)), "xtest": np.zeros((2, 2))},
                "Received: {'xtrain': 3, 'xtest': 2}. Arrays are named INPUT_train, ",
            ),
            ({}, "hold no array."),
        ],
        ids=lambda value: None if isinstance(value, str) else "-".join(value),
    )
    def test_contents_are_refused_by_name(self, save_npz, arrays, message):
        with pytest.raises(DataError) as caught:
            load_dataset(save_npz(**arrays))
        for part in message.split(" * "):
            assert part in str(caught.value)

    @pytest.mark.parametrize("source", ["mnists", "data.csv", "./nowhere.npz", "/"])
    def test_unknown_names_and_other_files_are_refused(self, source):
        with pytest.raises(DataError, match=f"Received: {re.escape(repr(source))}"):
            load_dataset(source)

    def test_unknown_names_are_answered_with_the_known(self):
        with pytest.raises(DataError, match="one of digits, none, mnist, fashion_mnist"):
            load_dataset("cifar")
        with pytest.raises(DataError, match=r"not found\. Did you mean 'fashion_mnist'\?"):
            load_dataset("fashion-minst")

    @pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut", b"\x93NUMPY\x01\x00"])
    @pytest.mark.parametrize("suffix", ["npz", "npy"])
    def test_files_that_are_something_else_are_refused(self, tmp_path, content, suffix):
        path = tmp_path / f"data.{suffix}"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be read: .*\. Arrays must be saved"):
            load_dataset(str(path))

    @given(position=st.floats(0, 1), value=st.integers(0, 255), cut=st.booleans())
    def test_damaged_files_are_refused_or_read(self, tmp_path_factory, position, value, cut):
        path = tmp_path_factory.getbasetemp() / "damaged.npz"
        np.savez_compressed(path, x=np.arange(200.0).reshape(50, 4), y=np.arange(50))
        content = bytearray(path.read_bytes())
        index = int(position * (len(content) - 1))
        if cut:
            del content[index:]
        else:
            content[index] = value
        path.write_bytes(content)
        try:
            load_dataset(str(path))
        except DataError as error:
            assert "damaged.npz" in str(error)


class TestKerasDatasets:
    @pytest.fixture
    def offline(self, monkeypatch, tmp_path):
        """No network, whatever the machine has: a proxy where nobody listens."""
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        return tmp_path / "datasets"

    @pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
    def test_without_a_network_the_file_to_place_is_named(self, offline, name):
        with pytest.raises(DataError) as caught:
            load_dataset(name)
        message = str(caught.value)
        assert message.startswith(f"Keras could not download {name!r}: URL fetch failure")
        assert str(offline / f"{name}.npz") in message
        assert "x_train, y_train, x_test and y_test" in message

    def test_a_placed_file_is_read_without_a_network(self, offline):
        offline.mkdir()
        np.savez(
            offline / "mnist.npz",
            x_train=numbered(10),
            y_train=np.arange(10),
            x_test=numbered(3),
            y_test=np.arange(3),
        )
        dataset = load_dataset("mnist")
        assert dataset.name == "mnist"
        assert len(dataset.test) == 3


def test_a_data_set_is_returned_as_it_is():
    dataset = load_dataset({"x": np.ones((9, 2))})
    assert load_dataset(dataset) is dataset


def test_lists_are_arrays_and_ragged_ones_are_refused():
    data = load_dataset({"x": [[1.0, 2.0]] * 20, "y": [0, 1] * 10})
    assert sum(map(len, data.parts.values())) == 20
    with pytest.raises(DataError, match="Array 'x' must be an array, or lists of one shape"):
        load_dataset({"x": [[1.0], [1.0, 2.0]]})
    with pytest.raises(DataError, match="must be numeric"):
        load_dataset({"x": [None]})
