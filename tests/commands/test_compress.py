import functools
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest

from exporter.commands.compress import compress
from exporter.commands.prepare import check_rank
from exporter.data import load_dataset
from exporter.errors import DataError, ModelError, RecipeError
from exporter.graph.network import Network
from exporter.graph.signature import Signature
from exporter.graph.walk import walk
from exporter.lowrank.candidates import candidates
from exporter.options import groups


def assert_same_predictions(actual, expected, model):
    """Equal within the rounding of the model's coarsest layer."""
    half = any(layer.compute_dtype == "float16" for _, layer in walk(model))
    tolerance = 1e-2 if half else 2e-5
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(
            actual[name], expected[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.mark.one_in(3)
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "unmerged"])
def test_full_rank_predicts_what_the_original_does(zoo_model, samples, predict, merge):
    inputs = samples(zoo_model, 5)
    compressed = compress(zoo_model, "full", merge=merge)
    kernels = [c.name for c in candidates(Network(zoo_model)) if c.kernel is not None]
    assert list(compressed.factors) == list(compressed.plan.ranks) == kernels
    assert_same_predictions(
        predict(compressed.model, inputs), predict(zoo_model, inputs), zoo_model
    )


class Cut(NamedTuple):
    """A model of the zoo, its weights before, and what it was compressed to."""

    model: Any
    weights: list[Any]
    compressed: Any


@pytest.fixture(scope="module")
def cut_once(build):
    """Compresses a model of the zoo by its name; what comes of it is not to be changed."""

    @functools.cache
    def cut(name):
        model = build(name)
        weights = [weight.copy() for weight in model.get_weights()]
        return Cut(model, weights, compress(model, 3))

    return cut


@pytest.fixture
def cut(zoo_name, cut_once):
    """Each small model and what it was compressed to."""
    return cut_once(zoo_name)


@pytest.mark.one_in(3)
def test_the_plan_counts_the_parameters_of_the_compressed_model(cut):
    unmerged = compress(cut.model, 3, merge=False)
    for compressed in (cut.compressed, unmerged):
        counted = sum(plan.params_after for plan in compressed.plan.layers)
        assert compressed.model.count_params() == counted < cut.model.count_params()


def test_signature_and_name_are_kept(cut):
    compressed = cut.compressed.model
    before, after = Signature(cut.model), Signature(compressed)
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    assert compressed.name == cut.model.name


@pytest.mark.one_in(3)
def test_the_compressed_model_is_an_ordinary_model(cut, samples, predict, fit_one_step, tmp_path):
    """It saves, loads without custom objects, and trains; the original stays as it was."""
    inputs = samples(cut.model, 4)
    compressed = cut.compressed.model
    expected = predict(compressed, inputs)

    compressed.save(tmp_path / "compressed.keras")
    loaded = keras.models.load_model(tmp_path / "compressed.keras", compile=False)
    for name, value in predict(loaded, inputs).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-6)

    kernels = [c.layer.kernel for c in candidates(Network(loaded)) if c.kind == "Dense"]
    before = [kernel.numpy() for kernel in kernels]
    fit_one_step(loaded, inputs)
    for kernel, old in zip(kernels, before, strict=True):
        assert (kernel.numpy() != old).any() == kernel.trainable

    for before, after in zip(cut.weights, cut.model.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)


def test_training_the_compressed_model_leaves_the_original_alone(build, samples, fit_one_step):
    model = build("sequential_mlp")
    before = model.get_weights()
    compressed = compress(model, 4).model
    fit_one_step(compressed, samples(model, 4))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_error_falls_with_the_rank(build, samples, predict):
    model = build("sequential_mlp")
    inputs = samples(model, 50)
    expected = predict(model, inputs)["probabilities"]
    errors = []
    for rank in (2, 6, 12, 17):
        compressed = compress(model, {"hidden_1": rank, "hidden_2": rank})
        errors.append(np.abs(predict(compressed.model, inputs)["probabilities"] - expected).mean())
        assert compressed.factors["hidden_1"].rank == rank
    assert errors == sorted(errors, reverse=True)


def test_a_trained_model_keeps_its_accuracy_at_a_low_rank(trained_mlp, digits):
    images, labels = digits.test.inputs["x"], digits.test.labels["y"]

    def accuracy(model):
        return (model.predict(images, verbose=0).argmax(axis=1) == labels).mean()

    baseline = accuracy(trained_mlp)
    compressed = compress(trained_mlp, {"hidden": 24}).model
    assert baseline > 0.85
    assert accuracy(compressed) > baseline - 0.05
    assert compressed.count_params() < 0.5 * trained_mlp.count_params()


def test_layers_that_stay_dense_are_copied_bit_for_bit(build):
    model = build("sequential_mlp")
    compressed = compress(model, {"hidden_1": 4}).model
    for name in ("hidden_2", "probabilities"):
        for old, new in zip(
            model.get_layer(name).get_weights(),
            compressed.get_layer(name).get_weights(),
            strict=True,
        ):
            np.testing.assert_array_equal(old, new)


def test_compressing_twice_gives_the_same_bits(build):
    first, second = (compress(build("residual"), 5).model.get_weights() for _ in range(2))
    for old, new in zip(first, second, strict=True):
        np.testing.assert_array_equal(old, new)


def test_each_factorized_layer_is_told_of_once(build, listener):
    compress(build("nested_sequential"), 4, progress=listener)
    assert [status for _, status in listener.steps] == ["body/first", "body/second", "head"]


def test_checking_finds_what_compressing_would(build):
    model = build("tiny")
    check_rank(Network(model), groups.Goal(rank=6), groups.Cut())
    with pytest.raises(RecipeError, match="at most 6"):
        check_rank(Network(model), groups.Goal(rank=7), groups.Cut())


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "Received: 0"),
        (-3, "Received: -3"),
        (True, "Received: True"),
        (2.5, r"Received: 2\.5"),
        (0.0, r"Received: 0\.0"),
        ("half", "Received: 'half'"),
        ({}, "names no layer"),
        (7, r"at most 6.*Received: 7.*scores \(8 x 6\)"),
        ({"scores": 7}, r"'scores' must be at most 6\. Received: 7"),
        ({"other": 2}, r"Unknown layer 'other'.*scores \(8 x 6\)"),
    ],
)
def test_refuses_ranks_that_are_none_or_do_not_fit(build, rank, message):
    with pytest.raises(RecipeError, match=message):
        compress(build("tiny"), rank)


def test_refuses_kernels_that_are_not_finite(build):
    model = build("tiny")
    kernel, bias = model.get_weights()
    model.set_weights([np.full_like(kernel, np.nan), bias])
    with pytest.raises(ModelError, match="'scores' must be finite"):
        compress(model, 2)


def test_refuses_what_is_no_graph_before_any_work():
    with pytest.raises(ModelError, match="Received: str"):
        compress("model.keras", 2)


def logits_error(model, compressed, images):
    return np.abs(compressed.model(images) - model(images)).mean()


def test_data_make_the_cut_cost_less(trained_mlp, digits):
    """In this order: by the weights, by the outputs, by the loss gradient too."""
    images = digits.test.inputs["x"]
    errors = [
        logits_error(trained_mlp, compress(trained_mlp, {"hidden": 6}, data=data, **how), images)
        for data, how in [(None, {}), (digits, {"method": "whitened"}), (digits, {})]
    ]
    assert errors[0] > 1.2 * errors[1] > 1.2 * errors[2]


def test_a_cascade_makes_up_for_earlier_layers(build):
    model = build("sequential_mlp")
    rng = np.random.default_rng(0)
    # Correlated inputs: a cut that knows them loses little.
    x = (rng.normal(size=(600, 4)) @ rng.normal(size=(4, 36))).reshape(600, *model.input_shape[1:])
    data = load_dataset({"x": x.astype("float32")})
    errors = [
        logits_error(model, compress(model, 3, data=data, cascade=cascade), data.test.inputs["x"])
        for cascade in (False, True)
    ]
    assert errors[1] < errors[0]


def test_means_are_kept_by_the_bias(build):
    model = build("tiny")
    x = np.random.default_rng(0).normal(3, 1, size=(500, 8)).astype("float32")
    data = load_dataset({"x_train": x, "x_validation": x, "x_test": x})
    compressed = compress(model, 1, data=data, calibration=500)
    np.testing.assert_allclose(
        np.mean(compressed.model(x), axis=0),
        np.mean(model(x), axis=0),
        atol=1e-4,
    )


def test_data_that_do_not_fit_are_refused(build):
    with pytest.raises(DataError, match="shape"):
        compress(build("tiny"), 2, data=load_dataset({"x": np.zeros((9, 5))}))


def test_folding_takes_a_layer_from_the_plan(build):
    model = build("conv_batchnorm_dropout")
    plans = {plan.name: plan for plan in compress(model, 2).plan.layers}
    assert (plans["norm"].params_before, plans["norm"].params_after) == (4 * 6, 0)
    assert plans["norm"].reason == "folded into conv"
    unfolded = {plan.name: plan for plan in compress(model, 2, fold=False).plan.layers}
    assert unfolded["norm"].params_after == 4 * 6


def test_other_goals_than_a_rank(build):
    model = build("sequential_mlp")
    total = model.count_params()
    fraction = compress(model, 0.5)
    assert fraction.model.count_params() < 0.6 * total
    budget = compress(model, max_params=total // 2)
    assert 0.4 * total < budget.model.count_params() <= total // 2
    assert compress(model, max_params="50%").plan == compress(model, max_params=total // 2).plan
    energy = compress(model, energy=0.8)
    assert all(parts.discarded_energy <= 0.2 + 1e-9 for parts in energy.factors.values())
    assert compress(model, "auto").plan.layers
