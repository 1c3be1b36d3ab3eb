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


def _transposed_convolution(layers):
    stack = [layers.Conv2DTranspose(4, 3, strides=2), layers.Conv2DTranspose(2, 3, padding="same")]
    return stack, (5, 5, 2), 25 * 9 * 2 * 4 + 121 * 9 * 4 * 2


def _transposed_convolution_1d(layers):
    return [layers.Conv1DTranspose(4, 3, strides=2)], (5, 2), 5 * 3 * 2 * 4


def _transposed_convolution_3d(layers):
    return [layers.Conv3DTranspose(4, 2)], (3, 3, 3, 2), 27 * 8 * 2 * 4


def _lstm(layers):
    return [layers.LSTM(4), layers.Dense(2)], (6, 3), 6 * 4 * 4 * (3 + 4) + 4 * 2


def _masked_gru(layers):
    return [layers.Masking(), layers.GRU(4, return_sequences=True)], (6, 3), 6 * 3 * 4 * (3 + 4)


def _recurrent_free_length(layers):
    return [layers.Bidirectional(layers.LSTM(4))], (None, 3), 2 * 32 * 4 * 4 * (3 + 4)


def _convolutional_lstm(layers):
    return [layers.ConvLSTM2D(4, 3, padding="same")], (6, 5, 5, 2), 6 * 25 * 9 * 4 * 4 * (2 + 4)


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
    _transposed_convolution,
    _transposed_convolution_1d,
    _transposed_convolution_3d,
    _lstm,
    _masked_gru,
    _recurrent_free_length,
    _convolutional_lstm,
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


def test_macs_of_states_that_are_handed_on():
    import keras

    first, second = keras.Input((6, 3)), keras.Input((5, 3))
    _, *states = keras.layers.LSTM(4, return_state=True)(first)
    outputs = keras.layers.LSTM(4)(second, initial_state=states)
    assert Network(keras.Model([first, second], outputs)).macs == (6 + 5) * 4 * 4 * (3 + 4)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "Conv2DTranspose"])
def test_plans_count_the_same_macs_as_graphs(kind):
    import keras

    from exporter.lowrank.engine import Engine
    from exporter.lowrank.planner import Planner
    from exporter.options.groups import Cut

    layers = keras.layers
    recurrent = kind != "Conv2DTranspose"
    layer = getattr(layers, kind)(8) if recurrent else layers.Conv2DTranspose(8, 3, strides=2)
    model = keras.Sequential([keras.Input((6, 8) if recurrent else (4, 4, 8)), layer])
    planner = Planner(Engine(Network(model), None, Cut(method="svd"), seed=0))
    assert planner.whole(planner.macs) == Network(model).macs
    smallest = planner.smallest(planner.macs)
    plan = planner.within(planner.macs, smallest)
    assert planner.engine.factorize(plan).network.macs == smallest
