import numpy as np
import pytest

import exporter
from exporter.commands.pictures import picture_layers
from exporter.graph.fitting import fitted
from exporter.graph.network import Network
from exporter.lowrank.calibration import calibration_from
from exporter.lowrank.engine import Engine
from exporter.lowrank.ranks.policy import RankByLayer
from exporter.options.groups import Cut
from exporter.options.scale import AUTO


@pytest.fixture(scope="module")
def pictured(model, arrays):
    network = Network.of(model)
    dataset = fitted(exporter.load_dataset(arrays), network, AUTO)

    def draw(rank, merge=True):
        engine = Engine(network, calibration_from(network, dataset, 100), Cut(merge=merge))
        compressed = engine.factorize(engine.plan(RankByLayer({"deep": rank})))
        return engine, compressed, picture_layers(engine, compressed, dataset)

    return draw


@pytest.mark.parametrize("merge", [True, False])
def test_parts_of_the_product_make_up_the_kernel(merge, pictured):
    engine, _, pictures = pictured(6, merge)
    (kernel,) = [c.kernel for c in engine.candidates if c.name == "deep"]
    parts = {n: array.astype(np.float64) for n, array in pictures.weights["deep"].items()}
    np.testing.assert_allclose(parts["W"], kernel.matrices()[0], atol=1e-3)
    np.testing.assert_allclose(parts["product"] + parts["difference"], parts["W"], atol=2e-3)
    np.testing.assert_allclose(parts["U"] @ parts["S"] @ parts["V"], parts["product"], atol=5e-3)
    for basis in (parts["U"], parts["V"].T):
        np.testing.assert_allclose(basis.T @ basis, np.eye(6), atol=5e-3)


def test_measured_errors_are_near_the_predicted_ones(pictured):
    errors = {}
    for rank in (1, 3, 23):
        _, compressed, pictures = pictured(rank)
        errors[rank] = pictures.errors["deep"]
        predicted = compressed.factors["deep"].relative_error
        assert errors[rank] == pytest.approx(predicted, rel=0.7, abs=0.02)
    assert errors[1] > errors[3] > errors[23]


def test_spectra_fall_from_one(pictured):
    _, _, pictures = pictured(6)
    numbers, values = pictures.spectra["deep"]
    assert list(numbers) == list(range(1, 49))
    assert values[0] == 1
    assert (np.diff(values) <= 1e-6).all()
