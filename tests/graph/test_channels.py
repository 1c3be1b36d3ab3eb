import keras
import numpy as np
import pytest
from keras import layers

from exporter.graph.channels import ChannelGraph
from exporter.graph.network import Network
from exporter.graph.removal import Refit, remove_channels


def se_block(x):
    scale = layers.GlobalAveragePooling2D(keepdims=True)(x)
    scale = layers.Conv2D(4, 1, activation="relu", name="squeeze")(scale)
    scale = layers.Conv2D(8, 1, activation="sigmoid", name="excite")(scale)
    return layers.Multiply()([x, scale])


def dense():
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="gelu", name="first"),
            layers.Dropout(0.5),
            layers.Dense(5, use_bias=False, name="second"),
            layers.PReLU(),
            layers.Dense(3, activation="softmax"),
        ]
    )


def residual():
    given = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(given)
    x = stem = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="inner")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(8, 3, padding="same", name="outer")(x)
    x = layers.Add()([layers.BatchNormalization()(x), stem])
    x = se_block(layers.Activation("relu")(x))
    return keras.Model(given, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def mobile():
    given = keras.Input((9, 9, 2))
    x = layers.Conv2D(6, 3, strides=2, name="stem")(given)
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Conv2D(8, 1, name="pointwise")(layers.ReLU(max_value=6.0)(x))
    x = layers.Flatten()(layers.MaxPooling2D(2)(x))
    return keras.Model(given, layers.Dense(3)(x))


def joined():
    given = keras.Input((8, 8, 3))
    left = layers.Conv2D(4, 3, padding="same", name="left")(given)
    right = layers.Conv2D(5, 1, activation="tanh", name="right")(given)
    x = layers.Concatenate()([left, right, left])
    x = layers.Conv2D(6, 3, name="mixing")(layers.UpSampling2D()(x))
    x = layers.Reshape((-1, 6))(x)
    return keras.Model(given, layers.Dense(2)(layers.Flatten()(x)))


def transposed():
    return keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            layers.Conv2DTranspose(6, 3, strides=2, padding="same", name="up"),
            layers.LeakyReLU(),
            layers.Conv2DTranspose(5, 2, strides=2, use_bias=False, name="further"),
            layers.Conv2D(2, 3),
        ]
    )


def nested():
    inner_given = keras.Input((7, 7, 5))
    x = layers.Conv2D(6, 3, activation="relu", name="within")(inner_given)
    inner = keras.Model(inner_given, layers.BatchNormalization()(x), name="inner")
    given = keras.Input((9, 9, 2))
    x = layers.Conv2D(5, 3, name="before")(given)
    return keras.Model(given, layers.Dense(2)(layers.GlobalMaxPooling2D()(inner(x))))


def shared():
    left, right = keras.Input((6,)), keras.Input((6,))
    encode = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu", name="hidden")])
    code = layers.Dense(4, name="code")
    codes = [code(encode(each)) for each in (left, right)]
    return keras.Model([left, right], layers.Dense(1)(layers.Subtract()(codes)))


def operations():
    given = keras.Input((6,))
    x = layers.Dense(7, name="gate")(given) * layers.Dense(7, activation="silu", name="up")(given)
    return keras.Model(given, layers.Dense(3)(x))


def reused():
    """One activation for tensors of several widths, and a mask of one channel."""
    given, relu = keras.Input((8, 8, 3)), layers.ReLU()
    x = relu(layers.Conv2D(8, 3, padding="same", name="wide")(given))
    mask = layers.Conv2D(1, 1, activation="sigmoid", name="mask")(x)
    x = layers.Multiply()([x, mask])
    x = relu(layers.Conv2D(6, 3, name="narrow")(x))
    return keras.Model(given, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


NETWORKS = {
    "reused": (reused, [("wide",), ("narrow",)]),
    "dense": (dense, [("first",), ("second",)]),
    "residual": (residual, [("inner",), ("squeeze",), ("stem", "outer", "excite")]),
    "mobile": (mobile, [("stem",), ("pointwise",)]),
    "joined": (joined, [("left",), ("right",), ("mixing",)]),
    "transposed": (transposed, [("up",), ("further",)]),
    "nested": (nested, [("inner/within",)]),
    "shared": (shared, [("hidden",), ("code",)]),
    "operations": (operations, [("gate", "up")]),
}


def samples_of(model, count=5):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(count, *each.shape[1:])).astype("float32") for each in model.inputs]


def predicted(network, samples):
    return np.asarray(network.model(samples if len(samples) > 1 else samples[0]))


def without_inputs(network, graph, removed):
    """Returns the network with zeros where consumers multiply the channels, of the same size."""
    copy = network.copy()
    for consumer in graph.consumers:
        kernel = consumer.kernel.copy()
        kernel[:, np.isin(consumer.lane.ids, list(removed))] = 0
        weight = copy.layers[consumer.path].kernel
        shape = tuple(weight.shape)
        if "Transpose" in type(consumer.layer).__name__:
            shape = (*shape[:-2], shape[-1], shape[-2])
            weight.assign(np.swapaxes(kernel.reshape(shape), -1, -2))
        else:
            weight.assign(kernel.reshape(shape))
    return copy


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_that_make_the_same_channels_are_found_together(name):
    build, expected = NETWORKS[name]
    graph = ChannelGraph(Network(build()))
    assert sorted(tuple(path.split("/")[-1] for path in g.producers) for g in graph.groups) == (
        sorted(tuple(path.split("/")[-1] for path in paths) for paths in expected)
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_without_channels_computes_what_one_does_that_ignores_them(
    name, randomize, tmp_path
):
    model = NETWORKS[name][0]()
    randomize(model, 1)
    network = Network(model)
    graph, samples = ChannelGraph(network), samples_of(model)
    before = predicted(network, samples)
    removed = [int(c) for group in graph.groups for c in group.ids[:: 2 + len(group.ids) % 2]]
    slim = remove_channels(graph, network, removed)

    assert slim.params < network.params
    assert slim.macs < network.macs
    expected = predicted(without_inputs(network, graph, removed), samples)
    np.testing.assert_allclose(predicted(slim, samples), expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(expected, before, rtol=1e-2, atol=1e-2), "the channels did matter"
    np.testing.assert_array_equal(predicted(network, samples), before)

    file = tmp_path / "slim.keras"
    slim.model.save(file)
    loaded = Network(keras.saving.load_model(file))
    np.testing.assert_allclose(predicted(loaded, samples), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dense", "mobile", "transposed", "joined"])
def test_a_refit_that_gives_the_removed_channels_exactly_changes_nothing(name, randomize):
    model = NETWORKS[name][0]()
    randomize(model, 2)
    network = Network(model)
    graph = ChannelGraph(network)
    # The channels of one group become copies of each other.
    path = graph.groups[0].producers[0]
    layer = network.layers[path]
    for weight in layer.weights:
        value = weight.numpy()
        if "Transpose" in type(layer).__name__ and value.ndim > 1:
            value[..., 1:, :] = value[..., :1, :]
        else:
            value[..., 1:] = value[..., :1]
        weight.assign(value)
    for each in network.layers.values():
        if type(each).__name__ in {"BatchNormalization", "PReLU", "DepthwiseConv2D"}:
            each.set_weights([np.full_like(weight, 0.5) for weight in each.get_weights()])
    ids = graph.groups[0].ids
    removed = set(map(int, ids[1:]))
    refits = {}
    for consumer in graph.consumers:
        stays = np.flatnonzero([int(c) not in removed for c in consumer.lane.ids])
        if len(stays) < len(consumer.lane.ids):
            matrix = np.eye(len(consumer.lane.ids))[:, stays]
            first = list(consumer.lane.ids[stays]).index(ids[0])
            for column in np.flatnonzero(np.isin(consumer.lane.ids, list(removed))):
                matrix[column, first] = 1
            refits[consumer.path] = Refit(matrix, np.zeros(len(matrix)))
    samples = samples_of(model)
    slim = remove_channels(graph, network, removed, refits)
    np.testing.assert_allclose(
        predicted(slim, samples), predicted(network, samples), rtol=1e-4, atol=1e-4
    )


def attention():
    given = keras.Input((6, 8))
    x = layers.MultiHeadAttention(2, 4)(given, given)
    return keras.Model(given, layers.Dense(2)(x))


def normalized():
    given = keras.Input((8,))
    return keras.Model(given, layers.Dense(2)(layers.LayerNormalization()(layers.Dense(6)(given))))


def softmaxed():
    given = keras.Input((8,))
    return keras.Model(given, layers.Dense(2)(layers.Dense(6, activation="softmax")(given)))


def grouped():
    given = keras.Input((8, 8, 4))
    x = layers.Conv2D(8, 3, name="before")(given)
    return keras.Model(given, layers.Conv2D(2, 3)(layers.Conv2D(6, 3, groups=2)(x)))


def permuted():
    given = keras.Input((8, 4))
    return keras.Model(given, layers.Dense(2)(layers.Permute((2, 1))(layers.Dense(6)(given))))


def seen():
    given = keras.Input((8,))
    hidden = layers.Dense(6, name="hidden")(given)
    return keras.Model(given, [hidden, layers.Dense(2)(hidden)])


def first_axis():
    given = keras.Input((4, 4, 3))
    x = layers.Conv2D(6, 3, padding="same")(given)
    x = layers.BatchNormalization(axis=1)(x)
    return keras.Model(given, layers.Dense(2)(x))


@pytest.mark.parametrize(
    "build", [attention, normalized, softmaxed, grouped, permuted, seen, first_axis]
)
def test_channels_that_are_mixed_or_given_out_stay(build):
    assert not ChannelGraph(Network(build())).groups


class Blackbox(keras.layers.Layer):
    def call(self, inputs):
        return inputs - keras.ops.mean(inputs, axis=-1, keepdims=True)


def test_channels_that_a_custom_layer_takes_stay():
    given = keras.Input((8,))
    x = layers.Dense(6, name="held")(given)
    x = Blackbox()(x)
    x = layers.Dense(5, activation="relu", name="free")(x)
    graph = ChannelGraph(Network(keras.Model(given, layers.Dense(2)(x))))
    assert [group.producers for group in graph.groups] == [("free",)]


def test_a_custom_activation_counts_if_it_computes_each_element_by_itself():
    given = keras.Input((8,))
    x = layers.Dense(6, activation=lambda v: v * keras.ops.sigmoid(1.7 * v), name="own")(given)
    x = layers.Dense(6, activation=lambda v: v / (1 + keras.ops.max(v)), name="mixed")(x)
    graph = ChannelGraph(Network(keras.Model(given, layers.Dense(2)(x))))
    assert [group.producers for group in graph.groups] == [("own",)]
