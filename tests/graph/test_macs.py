import pytest

from exporter.graph.network import Network


def _dense(layers):
    return [layers.Dense(5), layers.Dense(3)], (7,), 7 * 5 + 5 * 3


def _dense_on_sequences(layers):
    return [layers.Dense(5)], (4, 7), 4 * 7 * 5


def _convolutions(layers):
    stack = [layers.Conv2D(8, 3, padding="same"), layers.Conv2D(4, 3, strides=2)]
    return stack, (9, 9, 2), 81 * 9 * 2 * 8 + 16 * 9 * 8 * 4


def _grouped_convolution(layers):
    return [layers.Conv2D(8, 3, padding="same", groups=2)], (5, 5, 4), 25 * 9 * 2 * 8


def _depthwise(layers):
    return [layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)], (5, 5, 3), 25 * 9 * 6


def _separable(layers):
    stack = [layers.SeparableConv2D(8, 3, padding="same")]
    return stack, (5, 5, 3), 25 * 9 * 3 + 25 * 3 * 8


def _convolution_1d(layers):
    return [layers.Conv1D(6, 3, padding="causal")], (10, 4), 10 * 3 * 4 * 6


def _einsum(layers):
    return [layers.EinsumDense("...x,xyz->...yz", output_shape=(3, 2))], (4, 5), 4 * 5 * 3 * 2


def _free_length(layers):
    return [layers.Dense(5)], (None, 7), 32 * 7 * 5


COUNTED_BY_HAND = [
    _dense,
    _dense_on_sequences,
    _convolutions,
    _grouped_convolution,
    _depthwise,
    _separable,
    _convolution_1d,
    _einsum,
    _free_length,
]


@pytest.mark.parametrize("case", COUNTED_BY_HAND, ids=lambda case: case.__name__.strip("_"))
def test_macs_counted_by_hand(case):
    import keras

    stack, shape, expected = case(keras.layers)
    assert Network(keras.Sequential([keras.Input(shape), *stack])).macs == expected


def test_macs_of_attention():
    import keras

    inputs = keras.Input((6, 8))
    attended = keras.layers.MultiHeadAttention(num_heads=2, key_dim=3)(inputs, inputs)
    # Query, key, value and output projections, then scores and their application.
    expected = 4 * 6 * 8 * 2 * 3 + 2 * 2 * 6 * 6 * 3
    assert Network(keras.Model(inputs, attended)).macs == expected


def test_macs_count_a_shared_layer_at_each_call(build):
    import keras

    first, second = keras.Input((4,)), keras.Input((4,))
    shared = keras.layers.Dense(5)
    model = keras.Model([first, second], keras.layers.Add()([shared(first), shared(second)]))
    assert Network(model).macs == 2 * 4 * 5


def test_macs_count_nested_models():
    import keras

    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    assert Network(keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(2)])).macs == 30


def test_macs_are_per_sample_of_a_fixed_batch():
    import keras

    inputs = keras.Input(batch_shape=(3, 4))
    assert Network(keras.Model(inputs, keras.layers.Dense(5)(inputs))).macs == 4 * 5
