import keras
import numpy as np
import pytest
from keras import layers

import exporter
from exporter.errors import RecipeError
from exporter.graph.fitting import fitted
from exporter.graph.network import Network
from exporter.lowrank.calibration import calibration_from
from exporter.pruning.pruner import Pruner


def accuracy(model, split):
    (labels,) = split.labels.values()
    (inputs,) = split.inputs.values()
    return np.mean(np.asarray(model(inputs[:1000])).argmax(axis=-1) == labels[:1000].ravel())


@pytest.mark.parametrize("unit", ["params", "macs"])
@pytest.mark.parametrize("part", [0.6, 0.3])
def test_the_part_is_kept_and_nearly_used(trained_mlp, digits, pruner_of, unit, part):
    network = Network(trained_mlp)
    pruned = pruner_of(trained_mlp, digits).prune(part, unit)
    reached = getattr(pruned.network, unit) / getattr(network, unit)
    assert part - 0.13 < reached <= part  # Units go by eights, of 64.


@pytest.fixture(scope="module")
def pruner_of():
    known = {}

    def made(model, dataset, **options):
        key = id(model), *options.items()
        if key not in known:
            network = Network(model)
            calibration = calibration_from(network, fitted(dataset, network), 2000)
            known[key] = Pruner(network, calibration, **options)
        return known[key]

    return made


def test_the_data_choose_better_than_the_weights(trained_mlp, digits, pruner_of):
    by_data = pruner_of(trained_mlp, digits).prune(0.3)
    by_weights = Pruner(Network(trained_mlp), None).prune(0.3)
    before = accuracy(trained_mlp, digits.test)
    assert accuracy(by_data.network.model, digits.test) > before - 0.03
    assert accuracy(by_data.network.model, digits.test) > accuracy(
        by_weights.network.model, digits.test
    )


def test_the_same_seed_gives_the_same_network(trained_mlp, digits, pruner_of):
    again = Pruner(Network(trained_mlp), pruner_of(trained_mlp, digits)._calibration)
    first, second = (
        pruner.prune(0.5).network.model.get_weights()
        for pruner in (pruner_of(trained_mlp, digits), again)
    )
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def with_dead_units(count=24):
    """A network of 40 hidden units, some of which never fire."""
    given = keras.Input((12,))
    x = layers.Dense(40, activation="relu", name="hidden")(given)
    model = keras.Model(given, layers.Dense(3, name="out")(x))
    rng = np.random.default_rng(0)
    hidden = model.get_layer("hidden")
    kernel = rng.normal(size=(12, 40))
    bias = rng.normal(size=40)
    kernel[:, :count], bias[:count] = 0, -1
    hidden.set_weights([kernel, bias])
    return model


@pytest.mark.parametrize("dead", [3, 24, 39])
def test_units_that_never_fire_go_for_nothing_however_many(dead):
    model = with_dead_units(dead)
    x = np.random.default_rng(1).normal(size=(2000, 12)).astype("float32")
    compressed = exporter.compress(
        model, "none", data={"x_train": x}, channels="free", scale="none"
    )
    (group,) = compressed.channels
    assert (group.layers, group.before, group.after) == (("hidden",), 40, 40 - dead)
    np.testing.assert_allclose(compressed.model(x), model(x), rtol=1e-4, atol=1e-4)
    assert [w.shape for w in compressed.model.weights] == [
        (12, 40 - dead),
        (40 - dead,),
        (40 - dead, 3),
        (3,),
    ]


def test_free_leaves_a_network_as_it_is_that_has_no_such_channels():
    given = keras.Input((12,))
    model = keras.Model(given, layers.Dense(3)(given))
    assert exporter.compress(model, "none", channels="free").channels == ()


def test_what_cannot_be_removed_is_told():
    given = keras.Input((12,))
    model = keras.Model(given, layers.Dense(3)(given), name="linear")
    with pytest.raises(RecipeError, match="model 'linear' has none that can be removed"):
        exporter.compress(model, "none", channels=0.5)
    with pytest.raises(RecipeError, match=r"with the fewest channels, 0\.\d+ of the params"):
        exporter.compress(with_dead_units(), "none", channels=0.01)


@pytest.mark.parametrize("wrong", [0, 1, 1.0, -0.5, "half", True, float("nan"), [0.5]])
def test_a_part_that_is_none_is_refused(wrong):
    with pytest.raises(RecipeError, match="channels must be a part of more than 0"):
        exporter.compress(with_dead_units(), "none", channels=wrong)


def test_parts_of_the_baseline_mean_the_network_with_all_channels(trained_mlp, digits):
    compressed = exporter.compress(trained_mlp, max_params=0.25, channels=0.5, data=digits)
    part = compressed.network.params / Network(trained_mlp).params
    assert 0.2 < part <= 0.25
    assert compressed.factors
    assert any(group.after < group.before for group in compressed.channels)


def test_what_was_removed_stays_known_in_a_copy(trained_mlp, digits):
    compressed = exporter.compress(trained_mlp, "none", channels=0.5, data=digits)
    assert compressed.copy().channels == compressed.channels
    assert not compressed.is_whole
    with pytest.raises(RecipeError, match="which has channels that were removed"):
        exporter.finetune(compressed, trained_mlp, data=digits, epochs=1, train="projected")
    tuned = exporter.finetune(compressed, trained_mlp, data=digits, epochs=1)
    assert tuned.compressed.network.params == compressed.network.params
    assert accuracy(tuned.compressed.model, digits.test) > accuracy(trained_mlp, digits.test) - 0.03
