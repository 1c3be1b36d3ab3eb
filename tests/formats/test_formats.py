"""What every format promises, over models of many kinds."""

import os
import subprocess
import sys
from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf

from exporter.commands.compress import compress
from exporter.errors import ModelError
from exporter.formats import FORMAT_NAMES, FORMATS
from exporter.formats.base import ExportOptions, StoredTensor, describe, measure
from exporter.graph.network import Network
from exporter.graph.walk import walk
from exporter.options.groups import ALL


# C source is a flatbuffer like TFLite's, and takes longest; test_c.py has what is its own.
@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow) if name == "c" else name for name in FORMATS]
)
def fmt(installed, request):
    return installed(request.param)


LACKING = {("c", "residual"): "GELU"}
"""Operators that the runtime of a format has not, by format and model."""


@pytest.fixture
def exported(fmt, zoo_name, export_zoo):
    """Each model in each format."""
    if (fmt.name, zoo_name) in LACKING:
        pytest.skip(f"{fmt.name} has no operator {LACKING[fmt.name, zoo_name]}")
    return export_zoo(fmt.name, zoo_name)


def assert_close(actual, expected, model):
    """Equal within rounding: of float32, or of the model's coarsest layer."""
    half = any(layer.compute_dtype == "float16" for _, layer in walk(model))
    tolerance = 2e-3 if half else 5e-6
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].shape == value.shape
        np.testing.assert_allclose(
            actual[name], value, rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.mark.one_in(5)
def test_predictions_are_the_models_at_every_batch_size(fmt, exported, samples):
    """By the names of inputs and outputs, in every backend."""
    for backend in fmt.backends:
        runner = fmt.load(exported.path, backend)
        for count in (1, 5, 2):
            inputs = samples(exported.model, count)
            assert_close(
                runner(inputs), Network(exported.model).runner(eager=True)(inputs), exported.model
            )


@pytest.mark.one_in(5)
def test_names_and_sizes_of_inputs_are_read_from_the_file(fmt, exported):
    inputs, outputs = fmt.read_interface(exported.path)
    signature = Network(exported.model).signature
    assert {i.name: i.shape[1:] for i in inputs} == {i.name: i.shape[1:] for i in signature.inputs}
    assert {info.name for info in outputs} == {info.name for info in signature.outputs}


_EXPORT = """
import sys
from pathlib import Path
from exporter.graph.loading import load_model
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions
model, folder, *names = sys.argv[1:]
for name in names:
    FORMATS[name].export(load_model(model), Path(folder) / name, ExportOptions())
"""


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(build, tmp_path):
    """What it did before, and the order of its sets, must not show."""
    build("residual").save(tmp_path / "model.keras")
    names = [name for name in FORMATS if FORMATS[name].suffix]
    for seed, order in (("1", names), ("2", names[::-1])):
        (tmp_path / seed).mkdir()
        subprocess.run(
            [sys.executable, "-c", _EXPORT, tmp_path / "model.keras", tmp_path / seed, *order],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        )
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


@pytest.mark.one_in(5)
@pytest.mark.parametrize("zoo_name", ["residual", "nested_functional", "conv_batchnorm_dropout"])
def test_a_second_export_is_the_same_graph(fmt, exported, export):
    again = export(fmt.name, exported.model)
    if fmt.name == "saved_model":
        first, second = (
            tf.saved_model.experimental.read_fingerprint(str(path))
            for path in (exported.path, again)
        )
        assert first.graph_def_program_hash == second.graph_def_program_hash
        assert first.signature_def_hash == second.signature_def_hash
    else:
        assert measure(exported.path) == measure(again)


@pytest.mark.one_in(5)
def test_every_kernel_is_stored_in_full(fmt, exported):
    stored = fmt.stored_tensors(exported.path)
    digests = {tensor.digest for tensor in stored}
    for name, layer in walk(exported.model):
        if not isinstance(layer, keras.layers.Dense) or layer.compute_dtype != "float32":
            continue
        kernel = layer.kernel.numpy()
        # LiteRT keeps the kernels of dense layers transposed.
        forms = {StoredTensor.of(name, form).digest for form in (kernel, kernel.T.copy())}
        assert forms & digests, name


@pytest.mark.one_in(4)
def test_stored_tensors_have_the_sizes_of_the_weights(fmt, exported):
    """In some order of axes; what converters fold into its neighbours is left out."""
    folded = (keras.layers.BatchNormalization, keras.layers.LayerNormalization)
    wanted = Counter(
        tuple(sorted(weight.shape))
        for _, layer in walk(exported.model)
        if not isinstance(layer, folded)
        for weight in layer.weights
        if np.prod(weight.shape) > 1  # Single numbers become attributes.
    )
    stored = {t.digest: t for t in fmt.stored_tensors(exported.path)}.values()
    found = Counter(tuple(sorted(size for size in t.shape if size > 1)) for t in stored)
    missing = Counter({tuple(s for s in shape if s > 1): n for shape, n in wanted.items()}) - found
    assert not missing
    itemsize = (
        2 if any(layer.compute_dtype == "float16" for _, layer in walk(exported.model)) else 4
    )
    for tensor in stored:
        assert tensor.nbytes >= 0
        if tuple(sorted(tensor.shape)) in wanted:
            assert tensor.nbytes >= itemsize * np.prod(tensor.shape)


@pytest.mark.one_in(3)
def test_thin_factors_are_stored_and_their_product_is_not(fmt, export, build):
    compressed = compress(build("sequential_mlp"), {"hidden_1": 4, "hidden_2": 5}).model
    stored = fmt.stored_tensors(export(fmt.name, compressed))
    shapes = {tuple(sorted(tensor.shape)) for tensor in stored}
    assert {(4, 36), (4, 40), (5, 40), (5, 32)} <= shapes
    assert not {(36, 40), (32, 40)} & shapes


def test_prepared_call_leaves_the_runner_usable(fmt, export_zoo, samples):
    model, path = export_zoo(fmt.name, "functional_two_inputs_two_outputs")
    for backend in fmt.backends:
        runner = fmt.load(path, backend, threads=1)
        run = runner.prepare(samples(model, 4))
        for _ in range(3):
            run()
        inputs = samples(model, 2, seed=1)
        assert_close(runner(inputs), Network(model).runner(eager=True)(inputs), model)


@pytest.mark.parametrize("fmt", [name for name in FORMATS if name != "c"], indirect=True)
def test_integer_inputs_are_exported(fmt, export):
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32", name="tokens"),
            keras.layers.Embedding(10, 6, name="embedding"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(3, name="scores"),
        ]
    )
    inputs = {"tokens": np.random.default_rng(0).integers(0, 10, (5, 4), dtype="int32")}
    path = export(fmt.name, model)
    for backend in fmt.backends:
        assert_close(
            fmt.load(path, backend)(inputs), Network(model).runner(eager=True)(inputs), model
        )


def test_adapted_statistics_are_exported(fmt, export, samples):
    normalization = keras.layers.Normalization(name="normalization")
    normalization.adapt(np.random.default_rng(0).normal(3, 2, (50, 6)).astype("float32"))
    model = keras.Sequential(
        [keras.Input((6,), name="x"), normalization, keras.layers.Dense(3, name="y")]
    )
    inputs = samples(model, 5)
    path = export(fmt.name, model)
    for backend in fmt.backends:
        assert_close(
            fmt.load(path, backend)(inputs), Network(model).runner(eager=True)(inputs), model
        )


def test_a_fixed_batch_stays_fixed(fmt, export, samples):
    model = keras.Sequential(
        [keras.Input(batch_shape=(3, 6), name="x"), keras.layers.Dense(2, name="y")]
    )
    path = export(fmt.name, model)
    inputs = samples(model, 3)
    for backend in fmt.backends:
        assert_close(
            fmt.load(path, backend)(inputs), Network(model).runner(eager=True)(inputs), model
        )


@pytest.mark.one_in(2)
@pytest.mark.parametrize("fmt", [name for name in FORMATS if name != "c"], indirect=True)
def test_free_sequence_lengths_stay_free(fmt, export):
    model = keras.Sequential(
        [
            keras.Input((None, 4), name="sequence"),
            keras.layers.Dense(5, activation="relu", name="tokens"),
            keras.layers.GlobalAveragePooling1D(name="mean"),
        ]
    )
    path = export(fmt.name, model)
    generator = np.random.default_rng(0)
    for backend in fmt.backends:
        runner = fmt.load(path, backend)
        for shape in [(1, 7, 4), (3, 2, 4)]:
            inputs = {"sequence": generator.normal(size=shape).astype("float32")}
            assert_close(runner(inputs), Network(model).runner(eager=True)(inputs), model)


def test_names_that_are_no_identifiers_are_translated(fmt, export):
    inputs = keras.Input((4,), name="1st input:0")
    model = keras.Model(inputs, keras.layers.Dense(2, name="out-put.y")(inputs))
    path = export(fmt.name, model)
    for backend in fmt.backends:
        outputs = fmt.load(path, backend)({"t1st_input_0": np.ones((2, 4), "float32")})
        assert list(outputs) == ["out_put_y"]


def test_sparse_inputs_are_refused(fmt, export):
    inputs = keras.Input((4,), name="x", sparse=True)
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    with pytest.raises(ModelError, match="Sparse inputs cannot be exported"):
        export(fmt.name, model)


def _passed_on(inputs):
    return [inputs, keras.layers.Dense(3, name="y")(inputs)]


def _classes(inputs):
    return keras.ops.argmax(keras.layers.Dense(9, name="y")(inputs), axis=-1)


def _in_bfloat16(inputs):
    return keras.layers.Dense(3, name="y")(keras.layers.Dense(9, dtype="mixed_bfloat16")(inputs))


@pytest.mark.one_in(5)
@pytest.mark.parametrize("outputs", [_passed_on, _classes, _in_bfloat16])
def test_outputs_of_every_kind_convert(fmt, outputs, export, samples):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="x")
    model = keras.Model(inputs, outputs(inputs))
    runner = fmt.load(export(fmt.name, model), fmt.backends[0])
    batch = samples(model, 4)
    actual = runner(batch)
    for name, expected in Network(model).runner(eager=True)(batch).items():
        tolerance = 0.05 if outputs is _in_bfloat16 else 1e-5
        np.testing.assert_allclose(actual[name], expected, rtol=tolerance, atol=tolerance)


def test_describe_measures_the_artifact(fmt, export, build):
    model = build("tiny")
    path = export(fmt.name, model)
    described = describe(fmt, "float32", path, Network(model))
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    assert described.size == fmt.size(path) > 0
    assert described.size <= sum(file.stat().st_size for file in files)
    assert (described.format, described.variant, described.path) == (fmt.name, "float32", path)
    assert described.inputs == Network(model).signature.interface(fmt.fixed_batch(path))[0]
    assert described.sha256 == describe(fmt, "float32", path, Network(model)).sha256

    some = max(files, key=lambda file: file.stat().st_size)
    some.write_bytes(some.read_bytes()[:-1] + b"!")
    changed = describe(fmt, "float32", path, Network(model))
    assert changed.size == described.size
    assert changed.sha256 != described.sha256


def test_the_table_is_keyed_by_name():
    assert tuple(FORMATS) == FORMAT_NAMES
    assert all(fmt.name == name for name, fmt in FORMATS.items())
    assert ALL not in FORMATS


def test_every_format_has_what_the_contract_asks_for(fmt):
    assert fmt.backends
    names = [variant.name for variant in fmt.variants]
    assert names[0] == "float32"
    assert len(set(names)) == len(names)
    # Floats have the tolerance of their own rounding errors, integers have limits.
    assert fmt.variant("float32").rule is None
    assert all(variant.rule for variant in fmt.variants if variant.scheme)
    assert ExportOptions().opset == 17
