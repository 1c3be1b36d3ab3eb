from types import SimpleNamespace

import numpy as np
import pytest

from exporter.data import Task, fit_to_model, load_dataset
from exporter.data.fitting import holds_bytes
from exporter.errors import DataError


def spec(name, shape, dtype="float32"):
    """An input or output of a model."""
    return SimpleNamespace(name=name, shape=(None, *shape), dtype=dtype)


def fit(arrays, inputs, outputs=(), **options):
    return fit_to_model(load_dataset(arrays), inputs, outputs, **options)


class TestFitInputs:
    IMAGES = np.arange(3 * 4 * 4, dtype="uint8").reshape(3, 4, 4) * 5

    def test_values_stay_as_they_are(self):
        fitted = fit({"x": self.IMAGES}, [spec("image", (4, 4))])
        joined = np.concatenate([p.inputs["image"] for p in fitted.parts.values()])
        np.testing.assert_array_equal(np.sort(joined, axis=0), self.IMAGES)

    @pytest.mark.parametrize(
        ("array", "dtype", "expected"),
        [
            (IMAGES, "float32", True),
            (IMAGES.astype("int64"), "float32", True),
            (IMAGES.reshape(3, 16), "float32", True),
            (IMAGES.astype("float32")[..., None], "float32", True),
            (IMAGES.astype("float64"), "float32", False),
            (IMAGES, "int32", False),
            (IMAGES.astype("int64") - 1, "float32", False),
            (IMAGES.astype("int64") * 2, "float32", False),
            (np.arange(12).reshape(3, 4), "float32", False),
            (IMAGES % 2, "float32", False),
        ],
        ids=[
            "bytes",
            "wide",
            "flat",
            "floats_with_channels",
            "floats",
            "for_integers",
            "negative",
            "above_255",
            "features",
            "flags",
        ],
    )
    def test_tells_which_values_may_need_scaling(self, array, dtype, expected):
        assert holds_bytes(array, spec("x", array.shape[1:], dtype)) is expected

    @pytest.mark.parametrize(
        ("sample", "wanted", "note"),
        [((4, 4), (4, 4, 1), "is added"), ((4, 4, 1), (4, 4), "is dropped")],
    )
    def test_an_axis_of_one_channel_is_added_or_dropped(self, sample, wanted, note):
        fitted = fit({"x_test": np.ones((2, *sample))}, [spec("image", wanted)])
        assert fitted.test.inputs["image"].shape == (2, *wanted)
        assert note in fitted.notes[0]

    def test_free_sizes_take_any(self):
        fitted = fit({"x_test": np.ones((2, 7, 3))}, [spec("x", (None, 3))])
        assert fitted.test.inputs["x"].shape == (2, 7, 3)

    def test_samples_of_another_shape_are_refused_with_both_shapes(self):
        with pytest.raises(DataError) as caught:
            fit({"x": np.ones((2, 5, 3))}, [spec("image", (None, 4))])
        assert "Input 'image' of the model takes samples of shape (any, 4)" in str(caught.value)
        assert "samples of shape (5, 3)" in str(caught.value)

    @pytest.mark.parametrize("names", [["left"], ["left", "other"], ["left", "right", "third"]])
    def test_arrays_that_are_not_those_of_the_inputs_are_refused(self, names):
        with pytest.raises(DataError, match=r"named \['left', 'right'\]") as caught:
            fit(
                {name: np.ones((2, 3)) for name in names},
                [spec("left", (3,)), spec("right", (3,))],
            )
        assert f"Received: {sorted(names)}" in str(caught.value)

    @pytest.mark.parametrize(
        ("names", "told"),
        [
            (["xtrain", "ytrain"], "Did you mean 'x_train', 'y_train'?"),
            (["X_train", "Y_train"], "Did you mean 'x', 'y'?"),
            (["sensor", "y"], "Did you mean 'sensors'?"),
            (["sensors", "y_aut"], "Did you mean 'y_out'?"),
            (["x_train_sensors", "y"], "Did you mean 'sensors_train'?"),
            (["train_x", "train_y"], "Did you mean 'x_train', 'y_train'?"),
            (["x", "y", "ids"], "(without these ends)."),
        ],
    )
    def test_arrays_that_are_there_and_those_that_are_expected_are_told(self, names, told):
        with pytest.raises(DataError) as caught:
            fit({n: np.zeros((4, 3)) for n in names}, [spec("sensors", (3,))], [spec("out", (3,))])
        message = str(caught.value)
        assert (
            "named ['sensors'] (or 'x' for the only one), and may hold labels named ['y_out']"
            in message
        )
        assert f"Received: {sorted(n.removesuffix('_train') for n in names)} (without" in message
        assert message.endswith(told)


class TestFitLabels:
    @staticmethod
    def labels(values, *outputs, name="y"):
        arrays = {"x_test": np.ones((len(values), 2)), f"{name}_test": np.asarray(values)}
        return fit(arrays, [spec("x", (2,))], outputs).test.labels

    def test_classes_become_a_vector_of_integers(self):
        for values in ([0, 2, 1], [[0], [2], [1]], np.array([0, 2, 1], "uint8")):
            fitted = self.labels(values, spec("probabilities", (3,)))["probabilities"]
            assert fitted.dtype == np.int64
            assert fitted.tolist() == [0, 2, 1]

    def test_two_classes_may_share_one_output(self):
        assert self.labels([0, 1, 1], spec("p", (1,)))["p"].tolist() == [0, 1, 1]

    def test_values_take_the_shape_of_the_output(self):
        assert self.labels([0.5, 1.5], spec("p", (1,)))["p"].shape == (2, 1)

    @pytest.mark.parametrize(
        ("values", "shape", "message"),
        [
            ([0, 3], (3,), "classes within 0 and 2. Received: values from 0 to 3."),
            ([-1, 2], (3,), "Received: values from -1 to 2."),
            ([0.5, 1.5], (3,), "of shape (3) like the output. Received: float64 of shape ()."),
            (np.ones((2, 4)), (3,), "Received: float64 of shape (4,)."),
        ],
    )
    def test_labels_that_do_not_fit_are_refused(self, values, shape, message):
        with pytest.raises(DataError) as caught:
            self.labels(values, spec("p", shape))
        assert str(caught.value).startswith("Labels of output 'p' in data 'arrays'")
        assert message in str(caught.value)

    def test_their_meaning_is_told(self):
        arrays = {"x": np.ones((9, 2)), "y": np.tile([1, 3, 2], 3)}
        fitted = fit(arrays, [spec("x", (2,))], [spec("p", (3,))])
        assert fitted.tasks == {"p": Task(3, first=1)}
        assert fitted.notes == ("p: classes are counted from 1",)

    def test_labels_of_unknown_outputs_are_refused(self):
        with pytest.raises(
            DataError, match=r"named \['y_p', 'y_q'\].*Received: \['x', 'y_other'\]"
        ):
            self.labels([0, 1], spec("p", (3,)), spec("q", (3,)), name="y_other")
