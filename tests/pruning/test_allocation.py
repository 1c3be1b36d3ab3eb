import keras
import numpy as np
import pytest
from keras import layers

from exporter.graph.channels import ChannelGraph
from exporter.graph.network import Network
from exporter.graph.removal import remove_channels
from exporter.pruning.allocation import Costs, Curve, allocate, levels


def mixed():
    """A network with every kind of layer that costs something, one of them called twice."""
    given = keras.Input((9, 9, 2))
    x = layers.Conv2D(6, 3, strides=2, use_bias=False)(given)
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x)
    x = layers.PReLU(shared_axes=[1, 2])(layers.BatchNormalization()(x))
    x = layers.Concatenate()([layers.Conv2D(8, 1)(x), layers.Conv2D(5, 3, padding="same")(x)])
    x = layers.Conv2DTranspose(6, 3, strides=2)(x)
    square = layers.Conv2D(6, 3, padding="same", activation="relu")
    x = layers.Add()([square(square(x)), x])
    x = layers.Dense(7, activation="relu")(layers.Flatten()(x))
    return keras.Model(given, layers.Dense(3)(x))


@pytest.mark.parametrize("unit", ["params", "macs"])
def test_costs_are_those_of_the_network_without_the_channels(unit):
    network = Network(mixed())
    graph = ChannelGraph(network)
    costs = Costs(network, graph, unit)
    assert costs.of(np.array([len(group.ids) for group in graph.groups], float)) == (
        pytest.approx(getattr(network, unit))
    )
    counts = [max(1, len(group.ids) // 2) for group in graph.groups]
    removed = [int(c) for g, k in zip(graph.groups, counts, strict=True) for c in g.ids[k:]]
    slim = remove_channels(graph, network, removed)
    assert costs.of(np.array(counts, float)) == pytest.approx(getattr(slim, unit))


def test_levels_are_multiples_of_what_kernels_compute_at_once():
    assert levels(64) == [64, 56, 48, 40, 32, 24, 16, 8]
    assert levels(45)[:3] == [45, 40, 32]
    assert levels(12) == [12, 8, 4]
    assert levels(3) == [3, 2, 1]
    assert levels(1) == [1]


def two_groups(inputs, outputs, errors):
    """Two dense layers before a last one: names, costs in multiply-accumulates, and curves.

    ``errors`` has the curve of each of the two layers, by its name.
    """
    x = given = keras.Input((inputs,))
    for name, (units, _) in errors.items():
        x = layers.Dense(units, name=name)(x)
    network = Network(keras.Model(given, layers.Dense(outputs)(x)))
    graph = ChannelGraph(network)
    names = [group.producers[0] for group in graph.groups]
    curves = [Curve(levels(errors[name][0]), errors[name][1]) for name in names]
    return names, Costs(network, graph, "macs"), curves


def test_the_cheapest_loss_is_taken_first_until_the_budget_is_kept():
    errors = {"dear": (16, [0, 5, 11, 20]), "cheap": (16, [0, 1, 2, 9])}
    names, costs, curves = two_groups(16, 16, errors)
    kept = allocate(costs, curves, 512)
    assert dict(zip(names, kept, strict=True)) == {"dear": 16, "cheap": 8}
    assert allocate(costs, curves, costs.whole) == [16, 16]
    assert allocate(costs, curves, 100) is None


def test_what_was_taken_too_much_is_given_back():
    # The small group seems to cost nothing, but a step of the large one alone is enough.
    large = [0, 200, 300, 400, 500, 600, 700, 800]
    _, costs, curves = two_groups(4, 2, {"small": (8, [0, 1]), "large": (64, large)})
    kept = allocate(costs, curves, 300)
    used = costs.of(np.array(kept, float))
    assert used <= 300
    for number, curve in enumerate(curves):
        place = curve.counts.index(kept[number])
        if place:
            more = list(kept)
            more[number] = curve.counts[place - 1]
            assert costs.of(np.array(more, float)) > 300
