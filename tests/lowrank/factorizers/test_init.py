import keras
import pytest

from exporter.lowrank.factorizers import FACTORIZERS, factorizer_for, reason_kept


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (keras.layers.BatchNormalization(), "has no matrix, only one factor a channel"),
        (keras.layers.PReLU(), "has no matrix, only one factor a channel"),
        (keras.layers.DepthwiseConv2D(3), "each output takes one channel: nothing to factorize"),
        (
            keras.layers.SpectralNormalization(keras.layers.Dense(3)),
            "its kernel is scaled anew at every step of training",
        ),
        (keras.layers.ReLU(), "this kind is not factorized"),
    ],
)
def test_other_kinds_stay_for_a_reason(layer, reason):
    assert factorizer_for(layer) is None
    assert reason_kept(layer) == reason


def test_all_kinds_are_those_of_keras():
    for factorizer in FACTORIZERS:
        assert issubclass(getattr(keras.layers, factorizer.kind), keras.layers.Layer)


@pytest.mark.parametrize("convolution", ["channel", "spatial", "tucker2"])
def test_the_scheme_of_a_convolution_is_chosen(convolution):
    layer = keras.layers.Conv2D(6, 3)
    layer(keras.Input((8, 8, 4)))
    assert factorizer_for(layer, convolution).convolution == convolution
