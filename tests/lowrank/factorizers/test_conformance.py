"""What every row of the table promises, for several layers of each kind."""

import functools
from dataclasses import dataclass, field

import keras
import numpy as np
import pytest

from exporter.commands.compress import compress
from exporter.errors import ModelError, RecipeError
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions
from exporter.graph.network import Network
from exporter.graph.rewrite import rewrite
from exporter.graph.signature import Signature
from exporter.lowrank.calibration import Calibration
from exporter.lowrank.engine import Engine
from exporter.lowrank.factorizers import FACTORIZERS, factorizer_for
from exporter.lowrank.ranks.policy import FixedRank
from exporter.lowrank.statistics import gather
from exporter.options.groups import Cut

VOCABULARY = 12

PARTS = {"least": lambda full: 1, "half": lambda full: (full + 1) // 2, "full": lambda full: full}

NONLINEAR = {"LSTM", "GRU", "MultiHeadAttention"}
"""Kinds whose output need not come closer to the original's where the kernel's does."""


@dataclass(frozen=True, eq=False)
class Case:
    """Arguments of a layer, the shapes of the samples that it takes, and how it is called."""

    id: str
    arguments: dict
    shapes: tuple
    call: dict = field(default_factory=dict)
    batch: int | None = None


def conv(name, sample_shape, **arguments):
    return Case(name, arguments, (sample_shape,))


def attention(name, *shapes, call=None, **arguments):
    return Case(name, {"num_heads": 2, "key_dim": 3, **arguments}, shapes, call or {})


# The first one of each row is the one that is exported.
CASES = {
    "Dense": [
        conv("wide", (20,), units=12),
        conv("tall", (20,), units=30),
        conv("square", (16,), units=16, activation="relu"),
        conv("no_bias", (14,), units=9, use_bias=False),
        conv("one_unit", (14,), units=1, activation="sigmoid"),
        conv("sequences", (5, 11), units=8, activation="softmax"),
        conv("float64", (8,), units=10, dtype="float64"),
    ],
    "Conv1D": [
        conv("same", (9, 4), filters=10, kernel_size=3, padding="same", activation="relu"),
        conv("causal", (9, 4), filters=6, kernel_size=3, padding="causal", dilation_rate=2),
        conv("strides", (9, 4), filters=6, kernel_size=3, strides=2, use_bias=False),
        conv("groups", (9, 4), filters=6, kernel_size=3, groups=2),
    ],
    "Conv2D": [
        conv("same", (8, 7, 3), filters=9, kernel_size=3, padding="same", activation="relu"),
        conv("strides", (8, 7, 3), filters=6, kernel_size=(3, 2), strides=(2, 3)),
        conv("dilation", (8, 7, 3), filters=6, kernel_size=3, dilation_rate=(1, 2)),
        conv("no_bias", (8, 7, 3), filters=6, kernel_size=3, use_bias=False),
        conv("pointwise", (4, 4, 7), filters=5, kernel_size=1, strides=2),
        conv("groups", (6, 6, 4), filters=6, kernel_size=3, groups=2, padding="same"),
        conv(
            "channels_first",
            (4, 6, 6),
            filters=6,
            kernel_size=3,
            # TensorFlow cannot convolve these on a CPU, unless there are groups.
            groups=2,
            data_format="channels_first",
        ),
        conv("float64", (6, 6, 3), filters=4, kernel_size=3, dtype="float64"),
    ],
    "Conv2D/spatial": [
        conv("same", (8, 7, 3), filters=9, kernel_size=3, padding="same", activation="relu"),
        conv("strides", (8, 7, 3), filters=6, kernel_size=(3, 2), strides=(2, 3)),
        conv("same_strides", (8, 7, 3), filters=6, kernel_size=3, strides=2, padding="same"),
        conv("dilation", (8, 7, 3), filters=6, kernel_size=(2, 3), dilation_rate=(1, 2)),
        conv("no_bias", (8, 7, 3), filters=6, kernel_size=3, use_bias=False),
    ],
    "Conv2D/tucker2": [
        conv("same", (8, 7, 5), filters=9, kernel_size=3, padding="same", activation="relu"),
        conv("strides", (8, 7, 3), filters=6, kernel_size=(3, 2), strides=(2, 3)),
        conv("dilation", (8, 7, 6), filters=4, kernel_size=(2, 3), dilation_rate=(1, 2)),
        conv("few_inputs", (8, 7, 1), filters=12, kernel_size=3, use_bias=False),
        conv("few_filters", (8, 7, 20), filters=2, kernel_size=2),
    ],
    "Conv3D": [
        conv("same", (5, 4, 4, 2), filters=5, kernel_size=2, padding="same", activation="relu"),
        conv("strides", (5, 4, 4, 2), filters=5, kernel_size=(2, 1, 2), strides=2),
        conv(
            "channels_first", (2, 5, 4, 4), filters=5, kernel_size=2, data_format="channels_first"
        ),
    ],
    "Conv1DTranspose": [
        conv("strides", (5, 4), filters=6, kernel_size=3, strides=2, activation="relu"),
        conv("same", (5, 4), filters=6, kernel_size=3, padding="same", output_padding=0),
    ],
    "Conv2DTranspose": [
        conv("strides", (5, 4, 3), filters=6, kernel_size=3, strides=2, activation="relu"),
        conv(
            "same",
            (5, 4, 3),
            filters=6,
            kernel_size=(2, 3),
            strides=2,
            padding="same",
            output_padding=1,
        ),
        conv("no_bias", (5, 4, 6), filters=2, kernel_size=2, use_bias=False),
    ],
    "Conv3DTranspose": [
        conv("strides", (3, 3, 3, 2), filters=4, kernel_size=2, strides=2, activation="relu"),
    ],
    "SeparableConv1D": [
        conv("same", (9, 6), filters=5, kernel_size=3, padding="same", activation="relu"),
        conv("strides", (9, 4), filters=9, kernel_size=3, strides=2, depth_multiplier=2),
    ],
    "SeparableConv2D": [
        conv("same", (8, 7, 6), filters=5, kernel_size=3, padding="same", activation="relu"),
        conv("strides", (8, 7, 4), filters=9, kernel_size=3, strides=2, depth_multiplier=2),
        conv("no_bias", (8, 7, 4), filters=9, kernel_size=3, dilation_rate=2, use_bias=False),
    ],
    "EinsumDense": [
        conv("dense", (9,), equation="ab,bc->ac", output_shape=7, bias_axes="c"),
        conv(
            "sequences",
            (4, 9),
            equation="abc,cd->abd",
            output_shape=(None, 7),
            bias_axes="d",
            activation="relu",
        ),
        conv("heads", (4, 9), equation="abc,cde->abde", output_shape=(4, 2, 5), bias_axes="de"),
        conv("joined", (4, 3, 4), equation="abcd,cde->abe", output_shape=(4, 7), bias_axes="e"),
        conv("no_bias", (4, 9), equation="abc,dc->abd", output_shape=(4, 7)),
        conv("dots_first", (4, 9), equation="...x,xy->...y", output_shape=7, bias_axes="y"),
        conv("dots_last", (9, 4), equation="ab...,bc->ac...", output_shape=7, bias_axes="c"),
        conv("moved", (4, 9), equation="abc,cde->adbe", output_shape=(2, 4, 5), bias_axes="dbe"),
        conv("some_bias", (4, 9), equation="abc,cde->abde", output_shape=(4, 2, 5), bias_axes="e"),
    ],
    "MultiHeadAttention": [
        attention("cross", (5, 8), (4, 7)),
        attention("three_inputs", (5, 8), (4, 7), (4, 9), value_dim=4, output_shape=10),
        attention("no_bias", (5, 8), (4, 8), use_bias=False),
        attention("scores", (5, 8), (4, 7), call={"return_attention_scores": True}),
        attention("causal", (5, 8), (5, 7), call={"use_causal_mask": True}),
        attention("images", (3, 2, 8), (3, 2, 7), attention_axes=(1, 2)),
    ],
    "Embedding": [
        conv("tall", (6,), input_dim=VOCABULARY, output_dim=8),
        conv("wide", (6,), input_dim=VOCABULARY, output_dim=15),
        conv("masked", (6,), input_dim=VOCABULARY, output_dim=8, mask_zero=True),
        conv("scalars", (), input_dim=VOCABULARY, output_dim=8),
    ],
    "ReversibleEmbedding": [
        conv("tall", (6,), input_dim=VOCABULARY, output_dim=8),
        conv("masked", (6,), input_dim=VOCABULARY, output_dim=8, mask_zero=True),
    ],
    "LSTM": [
        conv("unrolled", (5, 10), units=4, unroll=True),
        conv("sequences", (5, 10), units=4, return_sequences=True, go_backwards=True),
        conv("states", (5, 10), units=4, return_state=True),
        conv("no_bias", (5, 10), units=3, use_bias=False),
    ],
    "GRU": [
        conv("unrolled", (5, 10), units=4, unroll=True),
        conv("reset_before", (5, 10), units=4, reset_after=False, return_sequences=True),
        conv("no_bias", (5, 10), units=4, use_bias=False),
    ],
}


def key(factorizer):
    special = factorizer.convolution not in {None, "channel"}
    return f"{factorizer.kind}/{factorizer.convolution}" if special else factorizer.kind


def all_cases():
    """Every row of the table with each of its cases, of which all but the first are left to CI."""
    for factorizer in FACTORIZERS:
        first, *others = CASES[key(factorizer)]
        yield pytest.param(factorizer, first, id=f"{key(factorizer)}-{first.id}")
        for case in others:
            identifier = f"{key(factorizer)}-{case.id}"
            yield pytest.param(factorizer, case, id=identifier, marks=pytest.mark.slow)


def first_cases():
    for factorizer in FACTORIZERS:
        yield pytest.param(factorizer, CASES[key(factorizer)][0], id=key(factorizer))


def built(factorizer, case, **arguments):
    """Returns a model of one layer, called ``layer``."""
    keras.utils.set_random_seed(0)
    layer = getattr(keras.layers, factorizer.kind)(
        **{"name": "layer", **case.arguments, **arguments}
    )
    dtype = "int32" if "Embedding" in factorizer.kind else layer.compute_dtype
    inputs = [
        keras.Input(batch_shape=(case.batch, *shape), dtype=dtype, name=f"input_{number}")
        for number, shape in enumerate(case.shapes)
    ]
    model = keras.Model(inputs, layer(*inputs, **case.call))
    generator = np.random.default_rng(0)
    layer.set_weights([generator.normal(0, 0.5, weight.shape) for weight in layer.weights])
    return model, layer


# For tests that only look: to build layers takes most of their time.


@functools.cache
def shared(factorizer, case):
    """Returns a model of one layer, which no test changes, and the layer."""
    return built(factorizer, case)


@functools.cache
def without_activation(factorizer, case):
    """Returns the shared model and its layer, or those of a layer that is linear."""
    if "activation" not in case.arguments:
        return shared(factorizer, case)
    return built(factorizer, case, activation=None)


@functools.cache
def shared_replacement(factorizer, case, part="full", *, merge=True):
    """Returns the layers that replace the shared one at the least, half or full ranks."""
    _, layer = shared(factorizer, case)
    ranks = {k.name: PARTS[part](k.full_rank) for k in factorizer.kernels(layer)}
    return replaced(factorizer, layer, ranks, merge=merge)


def drawn(model, count=6, seed=1):
    """Returns inputs whose elements hang together, as those of trained models do."""
    generator = np.random.default_rng(seed)
    inputs = []
    for tensor in model.inputs:
        shape = tensor.shape[1:]
        if tensor.dtype == "int32":
            draws = generator.geometric(0.3, size=(count, *shape)) % VOCABULARY
            inputs.append(draws.astype("int32"))
            continue
        mixing = np.random.default_rng(7).normal(size=(3, *shape))
        values = np.tensordot(generator.normal(size=(count, 3)), mixing, 1) + 0.5
        values += 0.1 * generator.normal(size=(count, *shape))
        inputs.append(values.astype(tensor.dtype))
    return inputs


def outputs(model, inputs):
    return [np.asarray(output) for output in keras.tree.flatten(model(inputs))]


def replaced(factorizer, layer, ranks=None, moments=None, *, merge=True):
    truncations = {
        kernel.name: kernel.truncate(
            ranks[kernel.name] if ranks else kernel.full_rank,
            (moments or {}).get(kernel.name),
            merge=merge,
        )
        for kernel in factorizer.kernels(layer)
        if not ranks or kernel.name in ranks
    }
    return factorizer.replace(layer, truncations)


def assert_close(actual, expected, dtype):
    """Equal within the rounding of about a hundred products of size one."""
    tolerance = 512 * np.finfo(dtype).eps
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


# All tests of a case follow each other, for the sake of what they share.
@pytest.mark.parametrize(("factorizer", "case"), list(all_cases()), scope="class")
class TestConformance:
    @pytest.mark.parametrize("merge", [True, False], ids=["merged", "unmerged"])
    def test_full_rank_gives_the_same_output(self, factorizer, case, merge):
        model, layer = shared(factorizer, case)
        copy = rewrite(model, {"layer": shared_replacement(factorizer, case, merge=merge)})
        inputs = drawn(model)
        assert_close(outputs(copy, inputs), outputs(model, inputs), layer.compute_dtype)
        assert [o.shape for o in copy.outputs] == [o.shape for o in model.outputs]

    @pytest.mark.parametrize("merge", [True, False], ids=["merged", "unmerged"])
    def test_params_counts_what_the_layers_hold(self, factorizer, case, merge):
        _, layer = shared(factorizer, case)
        kernels = factorizer.kernels(layer)
        assert sum(k.params(None, merge=merge) for k in kernels) == layer.count_params()
        for part, choose in PARTS.items():
            replacement = shared_replacement(factorizer, case, part, merge=merge)
            counted = sum(k.params(choose(k.full_rank), merge=merge) for k in kernels)
            assert sum(layer.count_params() for layer in replacement.layers) == counted

    def test_factors_have_the_shapes_that_are_foretold(self, factorizer, case):
        _, layer = shared(factorizer, case)
        for kernel in factorizer.kernels(layer):
            for merge in (True, False):
                matrices = kernel.truncate(1, merge=merge).matrices
                assert tuple(m.shape for m in matrices) == kernel.factor_shapes(1, merge=merge)

    def test_the_factors_are_weights_of_the_layers(self, factorizer, case):
        _, layer = shared(factorizer, case)
        replacement = shared_replacement(factorizer, case)
        weights = {id(weight) for part in replacement.layers for weight in part.weights}
        kernels = factorizer.kernels(layer)
        assert list(replacement.factors) == [kernel.name for kernel in kernels]
        for kernel in kernels:
            factors = replacement.factors[kernel.name]
            assert {id(factor) for factor in factors} <= weights
            shapes = kernel.factor_shapes(kernel.full_rank)
            assert [np.prod(f.shape) for f in factors] == [np.prod(shape) for shape in shapes]

    def test_break_even_rank_divides_smaller_from_larger(self, factorizer, case):
        _, layer = shared(factorizer, case)
        for kernel in factorizer.kernels(layer):
            for rank in range(1, kernel.full_rank + 1):
                smaller = kernel.params(rank) < kernel.params(None)
                assert smaller == (rank < kernel.break_even_rank)

    def test_costs_rise_with_the_rank(self, factorizer, case):
        _, layer = shared(factorizer, case)
        for kernel in factorizer.kernels(layer):
            ranks = range(1, kernel.full_rank + 1)
            for cost in (kernel.params, kernel.macs):
                costs = [cost(rank) for rank in ranks]
                assert costs == sorted(set(costs))
            assert (kernel.macs(None) == 0) is ("Embedding" in factorizer.kind)

    def test_the_error_curve_falls_to_zero(self, factorizer, case):
        _, layer = shared(factorizer, case)
        for kernel in factorizer.kernels(layer):
            curve = kernel.error_curve()
            assert curve.shape == (kernel.full_rank + 1,)
            assert (np.diff(curve) <= 0).all()
            assert curve[0] == pytest.approx(np.sum(kernel.matrices() ** 2))
            assert curve[-1] == 0
            rank = (kernel.full_rank + 1) // 2
            # Tucker factors are improved after the bound that the curve gives.
            error = kernel.truncate(rank).discarded_energy * curve[0]
            assert error <= curve[rank] * (1 + 1e-9) + 1e-9 * curve[0]

    def test_names_dtype_policy_and_trainability_are_kept(self, factorizer, case):
        _, layer = shared(factorizer, case)
        assert_is_like(layer, shared_replacement(factorizer, case, merge=False))

    def test_frozen_layers_and_mixed_precision_are_kept(self, factorizer, case):
        own = "dtype" in case.arguments
        mixed = {} if own else {"dtype": "mixed_float16"}
        _, layer = built(factorizer, case, trainable=False, **mixed)
        replacement = replaced(factorizer, layer, merge=False)
        assert_is_like(layer, replacement)
        for part in replacement.layers:
            kinds = (part.compute_dtype, part.variable_dtype)
            assert kinds == ((layer.dtype,) * 2 if own else ("float16", "float32"))

    def test_the_original_is_left_as_it_was(self, factorizer, case):
        _, original = built(factorizer, case)
        _, layer = shared(factorizer, case)
        for merge in (True, False):
            shared_replacement(factorizer, case, merge=merge)
        assert layer.get_config() == original.get_config()
        for old, new in zip(original.get_weights(), layer.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)

    def test_supports_its_kind_and_no_subclass_that_adds_something(self, factorizer, case):
        _, layer = shared(factorizer, case)
        assert factorizer.supports(layer)
        assert factorizer_for(layer, factorizer.convolution or "channel") is factorizer
        derived = type("Derived", (type(layer),), {"call": type(layer).call})
        derived = derived.from_config(layer.get_config())
        assert not factorizer.supports(derived)
        assert factorizer_for(derived) is None

    def test_ranks_out_of_range_are_refused(self, factorizer, case):
        _, layer = shared(factorizer, case)
        for kernel in factorizer.kernels(layer):
            for rank in (0, kernel.full_rank + 1):
                message = f"within 1 and {kernel.full_rank}.*Received: {rank}"
                with pytest.raises(RecipeError, match=message):
                    kernel.truncate(rank)

    def test_kernels_that_are_not_finite_are_refused(self, factorizer, case, request):
        _, layer = shared(factorizer, case)
        for kernel in factorizer.kernels(layer):
            before = kernel.variable.numpy()
            values = before.copy()
            values.flat[:2] = np.nan, np.inf
            kernel.variable.assign(values)
            request.addfinalizer(functools.partial(kernel.variable.assign, before))
            for compute in (kernel.error_curve, lambda kernel=kernel: kernel.truncate(1)):
                with pytest.raises(ModelError, match=f"Received: 2 NaN.*of {values.size}"):
                    compute()

    def test_saves_and_loads(self, factorizer, case, tmp_path):
        model, layer = shared(factorizer, case)
        copy = rewrite(model, {"layer": shared_replacement(factorizer, case, "least")})
        copy.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        inputs = drawn(model)
        assert_close(outputs(loaded, inputs), outputs(copy, inputs), layer.compute_dtype)

    def test_data_tells_what_to_keep(self, factorizer, case):
        model, layer = without_activation(factorizer, case)
        kernels = {k.name: k for k in factorizer.kernels(layer) if k.data_aware}
        if not kernels:
            pytest.skip("is cut by its weights alone")
        inputs = drawn(model, count=case.batch or 60, seed=2)
        names = [info.name for info in Signature(model).inputs]
        calibration = Calibration(dict(zip(names, inputs, strict=True)), case.batch or 20)
        moments = gather(Network(model), kernels, calibration)
        assert moments.keys() == kernels.keys()

        ranks = {name: max(1, kernel.full_rank // 4) for name, kernel in kernels.items()}
        for name, kernel in kernels.items():
            assert output_error(kernel, ranks[name], moments[name]) <= (
                output_error(kernel, ranks[name], moments[name], aware=False) * (1 + 1e-6)
            )
        if factorizer.kind in NONLINEAR:
            return
        errors = []
        for given in (moments, None):
            copy = rewrite(model, {"layer": replaced(factorizer, layer, ranks, given)})
            pairs = zip(outputs(copy, inputs), outputs(model, inputs), strict=True)
            errors.append(sum(np.sum(np.square(one - other)) for one, other in pairs))
        aware, plain = errors
        assert aware <= plain * (1 + 1e-5)


def assert_is_like(layer, replacement):
    """Tells of names, dtypes and trainability."""
    *heads, last = replacement.layers
    assert last.name == "layer"
    assert all(head.name.startswith("layer_") for head in heads)
    assert len({head.name for head in heads}) == len(heads)
    for part in (*heads, last):
        assert part.dtype_policy == layer.dtype_policy
        assert part.trainable is layer.trainable
        assert len(part.trainable_weights) == (len(part.weights) if layer.trainable else 0)


def output_error(kernel, rank, moments, *, aware=True):
    """Returns the mean squared error of a kernel's outputs, given their moments."""
    cut = kernel.truncate(rank, moments if aware else None)
    error = 0.0
    for group, matrix in enumerate(kernel.matrices()):
        first, last = (matrices[group] for matrices in cut.matrices)
        lost = np.eye(kernel.n) - np.linalg.pinv(matrix) @ first @ last
        shift = 0.0 if cut.bias_shift is None else cut.bias_shift[group]
        mean = moments.mean[group] @ lost - shift
        error += np.trace(lost.T @ moments.scatter[group] @ lost) + mean @ mean
    return error


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("factorizer", "case"), list(first_cases()))
def test_the_engine_reaches_its_outputs_and_their_gradients(factorizer, case):
    model, layer = shared(factorizer, case)
    flat = [keras.layers.Flatten()(tensor) for tensor in model.outputs]
    longer = keras.Model(model.inputs, keras.layers.Dense(6, name="last")(flat[0]))
    names = [info.name for info in Signature(longer).inputs]
    calibration = Calibration(dict(zip(names, drawn(longer, count=40), strict=True)), 20)
    engine = Engine(
        Network(longer), calibration, Cut(convolution=factorizer.convolution or "channel")
    )
    compressed = engine.factorize(engine.plan(FixedRank(2)))
    kernels = {
        f"layer/{kernel.name}" if kernel.name else "layer": kernel
        for kernel in factorizer.kernels(layer)
    }
    assert compressed.factors.keys() == {*kernels, "last"}
    for name, kernel in kernels.items():
        assert (name in engine.moments) is kernel.data_aware
        if kernel.data_aware:
            fisher = engine.moments[name].fisher
            assert (fisher is None) is (kernel.gradient_at is None)
            assert fisher is None or np.trace(fisher.matrix[0]) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("format_name", "backend"), [("tflite", "xnnpack"), ("onnx", "cpu")])
@pytest.mark.parametrize(("factorizer", "case"), list(first_cases()))
def test_compressed_models_can_be_exported(factorizer, case, format_name, backend, tmp_path):
    model, layer = shared(factorizer, case)
    compressed = compress(model, 2, convolution=factorizer.convolution or "channel")
    assert len(compressed.factors) == len(factorizer.kernels(layer))
    written = FORMATS[format_name]
    path = tmp_path / f"model{written.suffix}"
    written.export(compressed.network, path, ExportOptions())
    names = [info.name for info in Signature(model).inputs]
    inputs = dict(zip(names, drawn(model), strict=True))
    actual = written.load(path, backend)(inputs)
    for output, value in compressed.network.runner(eager=True)(inputs).items():
        np.testing.assert_allclose(actual[output], value, rtol=1e-4, atol=1e-4)
