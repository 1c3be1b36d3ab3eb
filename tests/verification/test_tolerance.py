"""How much two honest runtimes may differ, derived from the model itself."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from exporter.errors import ModelError
from exporter.graph.network import Network
from exporter.verification.tolerance import (
    UNIT_ROUNDOFF,
    Tolerance,
    derive_tolerances,
    float64_copy,
    given_tolerances,
)


def derived_atol(model: Any, inputs: dict[str, Any]) -> Tolerance:
    """The tolerance for the values of a model with one output."""
    reference = Network(model).runner()(inputs)
    exact = float64_copy(Network(model)).runner()(inputs)
    (name,) = reference
    return derive_tolerances({"test": reference}, {"test": exact})["test", name, "value"]


def dense(width: int, seed: int = 0) -> tuple[Any, dict[str, Any]]:
    """A layer of a given width, and inputs."""
    keras.utils.set_random_seed(seed)
    uniform = keras.initializers.RandomUniform(-1, 1)
    model = keras.Sequential(
        [
            keras.Input((width,), name="x"),
            keras.layers.Dense(8, kernel_initializer=uniform, name="scores"),
        ]
    )
    return model, {"x": np.random.default_rng(seed).uniform(-1, 1, (64, width)).astype("float32")}


FULL_PRECISION = [
    "sequential_mlp",
    "functional_two_inputs_two_outputs",
    "residual",
    "shared_dense",
    "nested_sequential",
    "nested_functional",
    "conv_batchnorm_dropout",
    "dict_inputs_outputs",
    "dense_on_sequences",
]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("name", "rtol"), [*((name, 1e-5) for name in FULL_PRECISION), ("mixed_float16", 1e-2)]
)
def test_float64_copy_predicts_the_same_more_precisely(
    name: str, rtol: float, build: Any, samples: Any
) -> None:
    model = build(name)
    inputs = samples(model, 12)
    exact = float64_copy(Network(model)).runner()(inputs)
    rounded = Network(model).runner()(inputs)

    assert exact.keys() == rounded.keys()
    for output, values in exact.items():
        assert values.dtype == np.float64
        # Computed in double precision, and not merely stored in it.
        assert (values.astype("float32") != values).any()
        largest = np.abs(values).max()
        np.testing.assert_allclose(rounded[output], values, rtol=0, atol=rtol * largest)


def test_float64_copy_leaves_the_model_as_it_was(build: Any) -> None:
    model = build("mixed_float16")
    before = [weight.copy() for weight in model.get_weights()]
    copy = float64_copy(Network(model)).model
    copy.set_weights([0 * weight for weight in copy.get_weights()])

    assert {str(weight.dtype) for weight in copy.weights} == {"float64"}
    assert model.layers[0].compute_dtype == "float16"
    assert all(map(np.array_equal, before, model.get_weights()))
    assert keras.config.dtype_policy().name == "float32"


def test_float64_copy_of_a_compiled_model(classifier: Any) -> None:
    inputs = {"features": np.ones((2, 64), "float32")}

    assert float64_copy(Network(classifier)).runner()(inputs)["probabilities"].dtype == np.float64


@pytest.mark.parametrize("strides", [1, 2])
def test_float64_copy_of_grouped_convolutions(strides: int, samples: Any, randomize: Any) -> None:
    import keras

    conv = keras.layers.Conv2D
    model = keras.Sequential(
        [
            keras.Input((9, 9, 4), name="image"),
            conv(4, 3, groups=4, strides=strides, padding="same", activation="relu"),
            conv(4, 3, groups=4, use_bias=False),
            conv(8, 1, groups=4),
        ]
    )
    randomize(model, 0)
    inputs = samples(model, 3)
    (expected,) = Network(model).runner()(inputs).values()
    (exact,) = float64_copy(Network(model)).runner()(inputs).values()
    assert exact.dtype == np.float64
    np.testing.assert_allclose(exact, expected, rtol=1e-5, atol=1e-6)


def test_a_layer_that_insists_on_float32_has_no_float64_copy() -> None:
    class Single(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(shape=(3, 3))

        def call(self, x: Any) -> Any:
            return tf.matmul(tf.cast(x, tf.float32), tf.convert_to_tensor(self.kernel))

    model = keras.Sequential([keras.Input((3,)), Single()])

    with pytest.raises(ModelError, match=r"No float64 copy.*Single.*Give atol or rtol"):
        float64_copy(Network(model))


def test_wide_layers_are_allowed_more_than_narrow_ones() -> None:
    narrow, wide = (derived_atol(*dense(width)) for width in (32, 4096))

    # The outputs of the wide one are sqrt(128) times as large, and round worse besides.
    assert wide.atol > 10 * narrow.atol
    assert narrow.derived
    assert wide.derived


@pytest.mark.parametrize("width", [32, 512, 4096])
def test_derived_tolerance_allows_another_order_of_summation(width: int) -> None:
    model, inputs = dense(width)
    tolerance = derived_atol(model, inputs)
    kernel, bias = model.get_weights()
    order = np.random.default_rng(1).permutation(width)
    reordered = inputs["x"][:, order] @ kernel[order] + bias

    difference = np.abs(reordered - Network(model).runner()(inputs)["scores"]).max()
    assert 0 < difference <= tolerance.atol


@pytest.mark.parametrize("width", [32, 512, 4096])
def test_weight_that_is_one_percent_off_is_beyond_the_derived_tolerance(width: int) -> None:
    model, inputs = dense(width)
    tolerance = derived_atol(model, inputs)
    reference = Network(model).runner()(inputs)["scores"]
    kernel, bias = model.get_weights()
    place = np.unravel_index(np.abs(kernel).argmax(), kernel.shape)
    kernel[place] *= 1.01
    model.set_weights([kernel, bias])

    difference = np.abs(Network(model).runner()(inputs)["scores"] - reference).max()
    assert difference > 10 * tolerance.atol


def test_derived_tolerance_is_a_multiple_of_the_rounding_error() -> None:
    exact = np.array([[1.0, -2.0], [4.0, 3.0]])
    rounded = exact + np.array([[1e-3, 0], [0, -2e-3]])
    tolerances = derive_tolerances({"test": {"y": rounded}}, {"test": {"y": exact}})

    assert tolerances.keys() == {("test", "y", "value")}
    tolerance = tolerances["test", "y", "value"]
    assert tolerance.atol == pytest.approx(10 * 2e-3)
    assert tolerance.rounding_error == pytest.approx(2e-3)
    assert tolerance.rtol == 0


def test_derived_tolerance_has_a_floor_where_nothing_rounds() -> None:
    exact = np.array([[1.0, -8.0]])
    tolerance = derive_tolerances({"test": {"y": exact.astype("float32")}}, {"test": {"y": exact}})[
        "test", "y", "value"
    ]

    assert tolerance.atol == 16 * UNIT_ROUNDOFF * 8
    assert tolerance.rounding_error == 0


def test_probe_that_rounds_well_by_luck_is_allowed_what_the_others_need() -> None:
    exact = {"test": {"y": np.array([[100.0]])}, "edge": {"y": np.array([[2.0]])}}
    reference = {"test": {"y": np.array([[101.0]])}, "edge": {"y": np.array([[2.0]])}}
    tolerances = derive_tolerances(reference, exact)

    assert tolerances["test", "y", "value"].atol == pytest.approx(10)
    # In proportion to its own size.
    assert tolerances["edge", "y", "value"].atol == pytest.approx(0.2)


def test_outputs_do_not_lend_each_other_tolerance() -> None:
    exact = {"test": {"rough": np.array([[1.0]]), "fine": np.array([[1.0]])}}
    reference = {"test": {"rough": np.array([[1.1]]), "fine": np.array([[1.0]])}}
    tolerances = derive_tolerances(reference, exact)

    assert tolerances["test", "rough", "value"].atol == pytest.approx(1)
    assert tolerances["test", "fine", "value"].atol == 16 * UNIT_ROUNDOFF


def test_integer_outputs_are_allowed_no_difference() -> None:
    values = {"test": {"ids": np.array([[7, 3]])}}

    assert derive_tolerances(values, values)["test", "ids", "value"].atol == 0


def test_elements_that_are_not_finite_are_left_out() -> None:
    values = {"test": {"y": np.array([[np.nan, 1.0, np.inf]])}}

    assert derive_tolerances(values, values)["test", "y", "value"].atol == 16 * UNIT_ROUNDOFF


def test_distributions_get_a_tolerance_for_their_logarithms_too() -> None:
    exact = np.array([[0.75, 0.25], [0.5, 0.5]])
    values = {"test": {"p": exact.astype("float32"), "y": 2 * exact.astype("float32")}}
    tolerances = derive_tolerances(values, {"test": {"p": exact, "y": 2 * exact}})

    assert set(tolerances) == {
        ("test", "p", "value"),
        ("test", "p", "log_probability"),
        ("test", "y", "value"),
    }
    assert tolerances["test", "p", "log_probability"].atol == pytest.approx(
        16 * UNIT_ROUNDOFF * np.log(4)
    )


def test_exact_predictions_may_be_of_fewer_samples() -> None:
    exact = np.linspace(1, 2, 6).reshape(3, 2)
    reference = np.concatenate([exact + 1e-3, np.full((4, 2), 99.0)])
    tolerance = derive_tolerances({"test": {"y": reference}}, {"test": {"y": exact}})

    assert tolerance["test", "y", "value"].rounding_error == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("atol", "rtol", "applied"),
    [(1e-3, None, (1e-3, 0.0)), (None, 1e-2, (0.0, 1e-2)), (2.0, 3.0, (2.0, 3.0)), (0, 0, (0, 0))],
)
def test_given_tolerance_is_used_as_it_is(
    atol: float | None, rtol: float | None, applied: tuple[float, float]
) -> None:
    reference = {"test": {"p": np.array([[0.5, 0.5]])}, "edge": {"p": np.array([[0.1, 0.9]])}}
    tolerances = given_tolerances(reference, atol, rtol)

    assert set(tolerances) == {("test", "p", "value"), ("edge", "p", "value")}
    for tolerance in tolerances.values():
        assert tolerance == Tolerance(*applied, derived=False, rounding_error=None)


def test_a_layer_without_a_kernel_for_float64_has_a_copy_all_the_same() -> None:
    import keras

    from exporter.graph.network import Network
    from exporter.verification.tolerance import float64_copy

    inputs = keras.Input((4, 4, 4, 2), name="x")
    network = Network(keras.Model(inputs, keras.layers.MaxPooling3D(name="y")(inputs)))
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 4, 2))
    exact = float64_copy(network).runner()({"x": x})["y"]
    assert exact.dtype == np.float64
    np.testing.assert_allclose(exact, network.runner()({"x": x})["y"], rtol=1e-6)
