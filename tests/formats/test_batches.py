import numpy as np
import pytest

from exporter.formats.batches import batched, whole_batches
from exporter.graph.signature import TensorInfo

SAMPLES = {"x": np.arange(5, dtype="float32"), "y": np.arange(5)}


class Doubling:
    """Takes batches of two alone."""

    def __call__(self, inputs):
        assert {len(array) for array in inputs.values()} == {2}
        return {"z": 2 * inputs["x"]}

    def prepare(self, inputs):
        return lambda: self(inputs)


def test_the_last_batch_is_filled_up():
    parts = list(whole_batches(SAMPLES, 3))
    assert [part["x"].tolist() for part in parts] == [[0, 1, 2], [3, 4, 0]]
    assert parts[0].keys() == SAMPLES.keys()


def test_without_a_size_samples_stay_together():
    (part,) = whole_batches(SAMPLES, None)
    assert part["y"].tolist() == [0, 1, 2, 3, 4]


def test_a_fixed_batch_takes_any_number_of_samples():
    runner = batched(Doubling(), [TensorInfo("x", (2,), "float32")])
    assert runner(SAMPLES)["z"].tolist() == [0, 2, 4, 6, 8]
    assert len(runner.prepare(SAMPLES)()) == 3


@pytest.mark.parametrize("shape", [(), (None, 3)])
def test_a_free_batch_goes_to_the_runner_as_it_is(shape):
    runner = Doubling()
    assert batched(runner, [TensorInfo("x", shape, "float32")]) is runner
