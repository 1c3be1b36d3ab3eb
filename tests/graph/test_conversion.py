import keras
import numpy as np
import pytest

from exporter.graph.conversion import recast


@pytest.mark.one_in(3)
def test_recast_has_every_layer_compute_in_the_new_type(zoo_model, samples, predict):
    copy = recast(zoo_model, "float64")
    inputs = samples(zoo_model, 4)
    exact = predict(copy, {name: value.astype("float64") for name, value in inputs.items()})
    half = zoo_model.name == "mixed_float16"
    for name, value in predict(zoo_model, inputs).items():
        assert exact[name].dtype == np.float64
        tolerance = 2e-3 if half else 5e-6
        np.testing.assert_allclose(value, exact[name], rtol=tolerance, atol=tolerance)


def test_recast_keeps_adapted_statistics(samples, predict):
    normalization = keras.layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(3, 2, (50, 6)).astype("float32"))
    body = keras.Sequential([keras.Input((6,)), normalization], name="body")
    model = keras.Sequential([keras.Input((6,), name="x"), body], name="outer")
    inputs = samples(model, 5)
    expected, actual = predict(model, inputs), predict(recast(model, "float64"), inputs)
    np.testing.assert_allclose(actual["body"], expected["body"], rtol=1e-5, atol=1e-5)
