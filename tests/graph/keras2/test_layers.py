"""Losses of Keras 2."""

import keras
import numpy as np
import pytest

from exporter.errors import ModelError
from exporter.graph.loading import loss_in_file

CROSS_ENTROPY = {
    "class_name": "SparseCategoricalCrossentropy",
    "config": {"reduction": "auto", "name": "loss", "from_logits": True, "ignore_class": None,
               "fn": "sparse_categorical_crossentropy"},
}  # fmt: skip
FUNCTION = {"module": "builtins", "class_name": "function", "config": "mse",
            "registered_name": "function"}  # fmt: skip


@pytest.fixture(params=["h5", "keras"])
def compiled(request, stored):
    """Writes a model with a loss."""
    config = stored.functional(
        stored.inputs(4), stored.dense("a/b", 4, [stored.fed("x")]), outputs=[["a/b", 0, 0]]
    )
    write = stored.write_h5 if request.param == "h5" else stored.write_keras
    return lambda loss: write(config, {}, loss=loss)


def test_loss_object_has_its_options(compiled):
    loss = loss_in_file(compiled(CROSS_ENTROPY))
    assert isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
    assert loss.reduction == "sum_over_batch_size"
    logits = np.array([[0.0, 1.0]], "float32")
    expected = np.log(1 + np.exp(1.0))
    np.testing.assert_allclose(loss(np.array([0]), logits), expected, rtol=1e-6)


def test_losses_may_be_names_and_structures(compiled):
    assert loss_in_file(compiled("binary_crossentropy")) == "binary_crossentropy"
    assert loss_in_file(compiled(FUNCTION)) == "mse"
    listed, by_output = loss_in_file(compiled(["mse", CROSS_ENTROPY])), {"a/b": CROSS_ENTROPY}
    assert listed[0] == "mse"
    assert isinstance(listed[1], keras.losses.SparseCategoricalCrossentropy)
    assert list(loss_in_file(compiled(by_output))) == ["a_b"]


@pytest.mark.parametrize(
    "loss",
    ["of_my_own", {**FUNCTION, "config": "of_my_own"},
     {"class_name": "LossFunctionWrapper", "config": {"fn": "of_my_own", "reduction": "auto"}}],
)  # fmt: skip
def test_loss_of_the_users_own_is_an_error(compiled, loss):
    with pytest.raises(ModelError, match="was compiled with cannot be read"):
        loss_in_file(compiled(loss))
