import keras
import numpy as np
import pytest

from exporter.graph.signature import FREE_SIZE
from exporter.lowrank.factorizers import factorizer_for, reason_kept

REGULARIZERS = {
    "bias_regularizer": keras.regularizers.L1(0.5),
    "activity_regularizer": keras.regularizers.L1(0.125),
    "bias_constraint": "non_neg",
}


def called(layer, sample_shape):
    layer(keras.Input(sample_shape))
    generator = np.random.default_rng(0)
    layer.set_weights([generator.normal(size=weight.shape) for weight in layer.weights])
    return layer


def kernel_of(layer):
    (kernel,) = factorizer_for(layer).kernels(layer)
    return kernel


def replaced(layer, rank, *, merge=True):
    truncation = kernel_of(layer).truncate(rank, merge=merge)
    return factorizer_for(layer).replace(layer, {"": truncation}).layers


def test_the_first_one_keeps_the_geometry_and_the_last_one_the_rest():
    layer = called(
        keras.layers.Conv2D(
            6, (3, 2), strides=(2, 1), padding="same", activation="tanh", name="layer"
        ),
        (8, 7, 4),
    )
    head, scale, last = replaced(layer, 5, merge=False)
    assert [part.name for part in (head, scale, last)] == ["layer_u", "layer_s", "layer"]
    assert (head.kernel_size, head.strides, head.padding) == ((3, 2), (2, 1), "same")
    for part in (scale, last):
        assert (part.kernel_size, part.strides) == ((1, 1), (1, 1))
    assert [part.filters for part in (head, scale, last)] == [5, 5, 6]
    assert [part.use_bias for part in (head, scale, last)] == [False, False, True]
    assert last.activation is keras.activations.tanh
    for part in (head, scale):
        assert part.activation is keras.activations.linear


def test_groups_are_cut_one_by_one():
    layer = called(keras.layers.Conv1D(6, 3, groups=2), (9, 8))
    kernel = kernel_of(layer)
    assert (kernel.groups, kernel.m, kernel.n, kernel.full_rank) == (2, 12, 3, 3)
    head, last = replaced(layer, 2)
    assert (head.filters, head.groups, last.groups) == (4, 2, 2)
    group = kernel.matrices()[1]
    np.testing.assert_allclose(group, layer.kernel.numpy()[..., 3:].reshape(12, 3))
    u, s, vt = np.linalg.svd(group, full_matrices=False)
    product = head.kernel.numpy()[..., 2:].reshape(12, 2) @ last.kernel.numpy()[0, :, 3:]
    np.testing.assert_allclose(product, u[:, :2] * s[:2] @ vt[:2], atol=1e-5)


@pytest.mark.parametrize("kind", ["Conv1D", "Conv2D"])
def test_channels_first_gives_the_kernels_of_channels_last(kind):
    """TensorFlow has no such convolutions on CPUs, so that they cannot be called."""
    dimensions = int(kind[4])
    made = [
        called(
            getattr(keras.layers, kind)(5, 3, strides=2, data_format=data_format),
            (3, *(9,) * dimensions) if data_format == "channels_first" else (*(9,) * dimensions, 3),
        )
        for data_format in ("channels_first", "channels_last")
    ]
    first, last = (replaced(layer, 2, merge=False) for layer in made)
    for one, other in zip(first, last, strict=True):
        assert one.data_format == "channels_first"
        for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    assert kernel_of(made[0]).positions == kernel_of(made[1]).positions == 4**dimensions
    assert kernel_of(made[0]).gradient_at is None


@pytest.mark.parametrize(
    ("size", "positions"), [((8, 8), 16), ((None, 8), FREE_SIZE * 4), ((None, None), FREE_SIZE**2)]
)
def test_macs_are_those_of_every_position(size, positions):
    layer = called(keras.layers.Conv2D(6, 3, strides=2, padding="same"), (*size, 4))
    kernel = kernel_of(layer)
    assert kernel.macs(None) == positions * 36 * 6
    assert kernel.macs(2) == positions * 2 * (36 + 6)
    assert kernel.macs(2, merge=False) == positions * (2 * (36 + 6) + 4)


def test_transposed_convolutions_work_at_the_positions_of_their_inputs():
    layer = called(keras.layers.Conv2DTranspose(6, 2, strides=2), (5, 4, 3))
    kernel = kernel_of(layer)
    assert (kernel.m, kernel.n) == (12, 6)
    assert kernel.macs(None) == 20 * 12 * 6
    assert kernel.macs(2) == 20 * 12 * 2 + 80 * 2 * 6
    head, last = replaced(layer, 2)
    assert isinstance(head, keras.layers.Conv2DTranspose)
    assert isinstance(last, keras.layers.Conv2D)


def test_separable_convolutions_keep_their_filters():
    layer = called(keras.layers.SeparableConv2D(6, 3, depth_multiplier=2), (8, 8, 4))
    kernel = kernel_of(layer)
    assert (kernel.m, kernel.n, kernel.other_params) == (8, 6, 9 * 4 * 2 + 6)
    head, last = replaced(layer, 2)
    np.testing.assert_array_equal(head.depthwise_kernel.numpy(), layer.depthwise_kernel.numpy())
    assert isinstance(last, keras.layers.Conv2D)


def test_separable_convolutions_of_leading_channels_stay():
    layer = called(keras.layers.SeparableConv2D(6, 3, data_format="channels_first"), (4, 8, 8))
    assert factorizer_for(layer) is None
    assert "channels-first" in reason_kept(layer)


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [("Conv2D", "kernel"), ("Conv2DTranspose", "kernel"), ("SeparableConv2D", "pointwise")],
)
def test_regularizers_are_kept_and_kernel_constraints_are_not(kind, prefix):
    special = {
        f"{prefix}_regularizer": keras.regularizers.L2(0.25),
        f"{prefix}_constraint": "non_neg",
    }
    layer = called(getattr(keras.layers, kind)(6, 3, **REGULARIZERS, **special), (8, 8, 4))
    head, scale, last = replaced(layer, 3, merge=False)
    assert getattr(head, f"{prefix}_regularizer").get_config() == {"l2": 0.25}
    assert getattr(head, f"{prefix}_constraint") is None
    for part in (scale, last):
        assert part.kernel_regularizer.get_config() == {"l2": 0.25}
        assert part.kernel_constraint is None
    for part in (head, scale):
        assert part.activity_regularizer is None
        assert part.bias_regularizer is None
    assert last.bias_regularizer.get_config() == {"l1": 0.5}
    assert last.activity_regularizer.get_config() == {"l1": 0.125}
    assert isinstance(last.bias_constraint, keras.constraints.NonNeg)


def test_adapted_layers_are_not_supported():
    layer = called(keras.layers.Conv2D(6, 3), (8, 8, 4))
    layer.enable_lora(2)
    assert factorizer_for(layer) is None
    assert reason_kept(layer) == "has a LoRA adapter beside its kernel"
