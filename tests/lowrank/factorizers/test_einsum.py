import keras
import numpy as np
import pytest

from exporter.lowrank.factorizers import factorizer_for, reason_kept
from exporter.lowrank.factorizers.einsum import Equation
from exporter.lowrank.linalg.truncation import Truncation


def einsum(equation, sample_shape, output_shape, **arguments):
    keras.utils.set_random_seed(0)
    layer = keras.layers.EinsumDense(equation, output_shape, name="layer", **arguments)
    layer(keras.Input(sample_shape))
    return layer


@pytest.mark.parametrize(
    ("equation", "head", "tail"),
    [
        ("ab,bc->ac", "ab,bd->ad", "ad,dc->ac"),
        ("abc,cde->abde", "abc,cf->abf", "abf,fde->abde"),
        ("abcd,cde->abe", "abcd,cdf->abf", "abf,fe->abe"),
        ("...x,xy->...y", "...x,xa->...a", "...a,ay->...y"),
        ("ab...,bc->ac...", "ab...,bd->ad...", "ad...,dc->ac..."),
        ("abc,ecd->adbe", "abc,cf->afb", "afb,fde->adbe"),
    ],
)
def test_equations_of_the_factors(equation, head, tail):
    parsed = Equation.parse(equation)
    assert (parsed.head, parsed.tail) == (head, tail)


@pytest.mark.parametrize(
    "equation",
    [
        "abc,bcd->abd",  # A matrix for each b.
        "abc,cd->ad",  # Sums over b without the kernel.
        "ab,cd->abcd",  # Contracts nothing.
        "ab,b->a",  # Has no output.
        "aab,bc->aac",
        "ab,bc->ca",  # The batch comes last.
    ],
)
def test_other_equations_are_none(equation):
    assert Equation.parse(equation) is None


def test_layers_of_other_equations_stay():
    layer = einsum("abc,bcd->abd", (4, 5), (4, 6))
    assert factorizer_for(layer) is None
    assert reason_kept(layer) == "its equation abc,bcd->abd is not one matrix product"


def test_macs_are_those_of_every_position():
    layer = einsum("abc,cde->abde", (4, 9), (None, 2, 5))
    (kernel,) = factorizer_for(layer).kernels(layer)
    assert (kernel.m, kernel.n, kernel.positions) == (9, 10, 4)
    assert kernel.macs(3) == 4 * 3 * (9 + 10)


@pytest.mark.parametrize(
    ("bias_axes", "has_bias"), [("de", True), ("bde", True), ("e", False), (None, False)]
)
def test_the_bias_moves_where_it_has_all_outputs(bias_axes, has_bias):
    layer = einsum("abc,cde->abde", (4, 9), (4, 2, 5), bias_axes=bias_axes)
    factorizer = factorizer_for(layer)
    (kernel,) = factorizer.kernels(layer)
    assert kernel.has_bias is has_bias
    plain = kernel.truncate(3)
    shift = np.arange(10.0)[None]
    last = factorizer.replace(layer, {"": Truncation(plain.matrices, shift, 0.0)}).layers[-1]
    if bias_axes:
        moved = np.broadcast_to(last.bias.numpy() - layer.bias.numpy(), (4, 2, 5))
        expected = shift.reshape(2, 5) if has_bias else np.zeros((2, 5))
        np.testing.assert_allclose(moved, np.broadcast_to(expected, (4, 2, 5)))


def test_only_the_last_layer_has_what_is_not_linear():
    layer = einsum(
        "ab,bc->ac",
        (9,),
        7,
        activation="relu",
        bias_axes="c",
        kernel_regularizer="l2",
        bias_regularizer="l1",
        activity_regularizer="l1",
        kernel_constraint="non_neg",
    )
    factorizer = factorizer_for(layer)
    (kernel,) = factorizer.kernels(layer)
    layers = factorizer.replace(layer, {"": kernel.truncate(3, merge=False)}).layers
    assert [part.name for part in layers] == ["layer_u", "layer_s", "layer"]
    for part in layers:
        assert isinstance(part.kernel_regularizer, keras.regularizers.L2)
        assert part.kernel_constraint is None
    for part in layers[:-1]:
        assert part.activation is keras.activations.linear
        assert part.bias is part.bias_regularizer is part.activity_regularizer is None
    assert layers[-1].activation is keras.activations.relu
    assert isinstance(layers[-1].bias_regularizer, keras.regularizers.L1)
    assert isinstance(layers[-1].activity_regularizer, keras.regularizers.L1)
