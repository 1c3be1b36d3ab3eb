import math
import re
import shutil
import subprocess

import keras
import numpy as np
import pytest

from exporter.card import ModelCard
from exporter.errors import ConversionError, DataError, RecipeError
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions, describe
from exporter.formats.extras import Extra
from exporter.formats.tflite.c_source import HEADER, SOURCE, identifier
from exporter.formats.tflite.flatbuffer import convert, list_operators, read_interface
from exporter.formats.tflite.micro import MicroRunner, adapted
from exporter.formats.tflite.packing import unpack
from exporter.graph.network import Network

C = FORMATS["c"]

MAIN = """
#include <stdio.h>
#include "model_data.h"

static unsigned char arena[TINY_ARENA_BYTES];

int main(void) {
  const int shape[] = TINY_INPUT_0_SHAPE;
  TINY_INPUT_0_TYPE input[TINY_INPUT_0_SIZE] = {0};
  if ((size_t)tiny_data % 16 != 0 || shape[1] != 8 || sizeof input != 8 || sizeof arena < 100) {
    return 1;
  }
  printf("%s %g %d\\n", TINY_INPUT_0_NAME, TINY_INPUT_0_SCALE, TINY_INPUT_0_ZERO_POINT);
  return fwrite(tiny_data, 1, tiny_data_size, stdout) != tiny_data_size;
}
"""


@pytest.fixture
def export_int8(export, samples):
    """Writes the int8 variant of a model, calibrated on random inputs."""

    def write(model, **options):
        calibration = [samples(model, 32, seed=seed) for seed in (1, 2)]
        return export("c", model, variant="int8", calibration=calibration, **options)

    return write


def constants(path):
    """What the header defines, by name."""
    return dict(re.findall(r"^#define (\w+) (.+)$", (path / HEADER).read_text(), re.MULTILINE))


def array(path):
    """The bytes that the source defines, read in another way than the format does."""
    digits = re.search(r"\{(.*)\}", (path / SOURCE).read_text(), re.DOTALL)[1]
    return bytes(int(digit, 16) for digit in re.findall(r"0x\w\w", digits))


@pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("g++")), reason="needs gcc and g++")
def test_compiled_array_is_the_flatbuffer(build, export_int8, samples, tmp_path):
    model = build("tiny")
    path = export_int8(model, io_type="int8")
    main = tmp_path / "main.c"
    main.write_text(MAIN)
    strict = ["-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{path}", "-c"]
    for command in (
        ["g++", "-std=c++11", *strict, str(path / SOURCE), "-o", "model.o"],
        # The header suits both languages.
        ["g++", "-std=c++11", "-xc++", *strict, str(main), "-o", "main.o"],
        ["gcc", "-std=c99", *strict, str(main), "-o", "main.o"],
        ["g++", "main.o", "model.o", "-o", "main"],
    ):
        subprocess.run(command, cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "main"], capture_output=True, check=True)
    first, _, content = done.stdout.partition(b"\n")
    calibration = [samples(model, 32, seed=seed) for seed in (1, 2)]
    options = ExportOptions("int8", batch=1, io_type="int8", calibration=calibration)
    assert content == adapted(convert(Network(model), options))
    (info,), _ = read_interface(content)
    name, scale, zero_point = first.decode().split()
    assert name == "features"
    assert float(scale) == pytest.approx(info.quantization.scale, rel=1e-5)
    assert int(zero_point) == info.quantization.zero_point


def test_header_tells_what_the_interpreter_takes_and_gives(export_zoo):
    path = export_zoo("c", "functional_two_inputs_two_outputs").path
    inputs, outputs = read_interface(array(path))
    defined = constants(path)
    prefix = "FUNCTIONAL_TWO_INPUTS_TWO_OUTPUTS"
    for kind, infos in (("INPUT", inputs), ("OUTPUT", outputs)):
        for index, info in enumerate(infos):
            assert defined[f"{prefix}_{kind}_{index}_NAME"] == f'"{info.name}"'
            assert defined[f"{prefix}_{kind}_{index}_TYPE"] == "float"
            assert defined[f"{prefix}_{kind}_{index}_SHAPE"] == f"{{1, {info.shape[1]}}}"
            assert defined[f"{prefix}_{kind}_{index}_SIZE"] == str(info.shape[1])
    assert {info.name for info in inputs} == {"wide", "deep"}
    assert {info.name for info in outputs} == {"kind", "amount"}
    assert not [name for name in defined if "SCALE" in name or "ZERO_POINT" in name]
    operators = list_operators(array(path))
    assert defined[f"{prefix}_OPERATOR_COUNT"] == str(len(operators))
    assert f"// {', '.join(operators)}\n" in (path / HEADER).read_text()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("reference_mlp", "reference_mlp"),
        ("my model-2.keras", "my_model_2_keras"),
        ("_a__b_", "a_b"),
        ("3d", "model_3d"),
        ("größe", "gr_e"),
        ("数", "model"),
        ('*/ "', "model"),
    ],
)
def test_names_of_models_become_identifiers(name, expected):
    assert identifier(name) == expected


def test_description_is_of_the_array_with_a_batch_of_one(export_zoo):
    model, path = export_zoo("c", "sequential_mlp")
    described = describe(C, "float32", path, Network(model))
    assert [info.shape for info in described.inputs] == [(1, 6, 6, 1)]
    assert [info.shape for info in described.outputs] == [(1, 10)]
    # Without a shape to compute at run time, as a free batch needs one.
    assert list_operators(array(path)) == ["FULLY_CONNECTED", "RESHAPE", "SOFTMAX"]
    assert described.size == C.size(path) == len(array(path))
    assert (path / SOURCE).stat().st_size > 4 * C.size(path)


def test_array_has_no_bytes_that_the_interpreter_ignores(build, export):
    model = build("sequential_mlp")
    card = ModelCard("Sorts images.", labels={"probabilities": tuple("abcdefghij")})
    content = array(export("c", model, card=card))
    plain = convert(Network(model), ExportOptions(batch=1))
    for word in (b"MLIR", b"CONVERSION_METADATA", b"min_runtime_version", b"hidden", b"Sorts"):
        assert word not in content
    assert b"hidden" in plain
    assert len(content) < len(plain) - 500


def test_dense_layers_have_one_scale_and_convolutions_one_a_channel(build, export_int8):
    tensors = unpack(array(export_int8(build("conv_batchnorm_dropout"), granularity="channel")))
    scales = {
        len(tensor.shape): len(tensor.quantization.scale)
        for tensor in tensors.subgraphs[0].tensors
        if len(tensor.shape) in {2, 4} and tensors.buffers[tensor.buffer].data is not None
    }
    assert scales[2] == 1
    assert scales[4] > 1


@pytest.mark.one_in(2)
@pytest.mark.parametrize("variant", ["float32", "int8"])
def test_arena_is_the_least_that_will_do(variant, build, export, samples):
    model = build("conv_batchnorm_dropout")
    calibration = [samples(model, 16)]
    path = export("c", model, variant=variant, calibration=calibration)
    (arena,) = C.figures(path).values()
    assert C.figures(path) == {"arena_bytes": arena}
    assert constants(path)["CONV_BATCHNORM_DROPOUT_ARENA_BYTES"] == str(arena)
    MicroRunner(array(path), arena)
    with pytest.raises(RuntimeError, match="failed to allocate"):
        MicroRunner(array(path), arena - 16)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("zoo_name", ["conv_batchnorm_dropout", "dense_on_sequences"])
def test_both_runtimes_give_the_same_bits_in_float32(zoo_name, export_zoo, samples):
    model, path = export_zoo("c", zoo_name)
    inputs = samples(model, 50)
    micro, reference = (C.load(path, backend)(inputs) for backend in C.backends)
    for name, values in reference.items():
        np.testing.assert_array_equal(micro[name], values)


def rescaled(sums, real, *, twice):
    """Sums times a real multiplier below 1/2, rounded as fixed-point arithmetic does.

    The multiplier is m * 2^(-31 - shift). Either the product is shifted and rounded once, or first
    by 31 bits and then by the rest (Jacob et al., 2018, and gemmlowp).
    """
    fraction, exponent = math.frexp(real)
    products = sums * round(fraction * 2**31)
    if not twice:
        total = 31 - exponent
        return (products + 2 ** (total - 1)) >> total
    high = (products + np.where(products >= 0, 2**30, 1 - 2**30)).astype(float) / 2**31
    high = np.trunc(high).astype(np.int64)
    # Ties away from zero.
    return np.sign(high) * ((np.abs(high) + 2 ** (-exponent - 1)) >> -exponent)


def test_int8_differs_where_one_runtime_rounds_twice(export_int8, samples, randomize):
    """Both compute the same sums, and bring them to the scale of the output in their own way."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((30,), name="x"), keras.layers.Dense(36, name="y")])
    randomize(model, 0)
    path = export_int8(model, io_type="int8")
    inputs = samples(model, 400)
    (given,), (taken,) = C.interface(path, Network(model))
    step, zero = taken.quantization.scale, taken.quantization.zero_point
    integers = [
        np.rint(C.load(path, backend)(inputs)["y"] / step).astype(int) + zero
        for backend in C.backends
    ]
    expected = [
        rescaled_sums(array(path), inputs["x"], given, taken, twice) for twice in (True, False)
    ]
    differing = np.count_nonzero(integers[0] != integers[1])
    assert 0 < differing < 0.01 * integers[0].size
    for actual, wanted in zip(integers, expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


def rescaled_sums(content, x, given, taken, twice):
    """What a dense layer gives in integers."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    details = interpreter.get_tensor_details()
    (kernel,) = (d for d in details if d["shape"].tolist() == [36, 30])
    (bias,) = (d for d in details if d["dtype"] in {np.int32, np.int64})
    weights, biases = (interpreter.get_tensor(d["index"]).astype(np.int64) for d in (kernel, bias))
    centred = np.rint(x.astype(float) / given.quantization.scale)
    centred = np.clip(centred + given.quantization.zero_point, -128, 127)
    sums = (centred.astype(np.int64) - given.quantization.zero_point) @ weights.T + biases
    real = given.quantization.scale * kernel["quantization"][0] / taken.quantization.scale
    steps = rescaled(sums, real, twice=twice) + taken.quantization.zero_point
    return np.clip(steps, -128, 127)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("zoo_name", ["conv_batchnorm_dropout"])
@pytest.mark.parametrize("io_type", ["float32", "uint8"])
def test_int8_predicts_nearly_what_the_model_does(zoo_model, io_type, export_int8, samples):
    path = export_int8(zoo_model, io_type=io_type)
    inputs = samples(zoo_model, 100)
    (given,), _ = C.interface(path, Network(zoo_model))
    assert given.dtype == io_type
    assert (given.quantization is None) == (io_type == "float32")
    expected = Network(zoo_model).runner(eager=True)(inputs)["probabilities"]
    for backend in C.backends:
        actual = C.load(path, backend)(inputs)["probabilities"]
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, atol=0.06)


def test_variants_are_those_that_tflite_micro_runs(export, build):
    assert [variant.name for variant in C.variants] == ["float32", "int8"]
    with pytest.raises(DataError, match="--data"):
        export("c", build("tiny"), variant="int8")


def test_an_operator_that_tflite_micro_lacks_is_named(build, export, tmp_path):
    with pytest.raises(ConversionError, match="has no operator GELU,") as raised:
        export("c", build("residual"))
    assert "--batch" not in str(raised.value)  # Its batch is 1 already.
    assert not list(tmp_path.iterdir())


def test_an_operator_that_lacks_the_type_is_named(export):
    """Keras counts indices below zero from the end, by a selection between integers."""
    tokens = keras.Input((4,), dtype="int32", name="tokens")
    with pytest.raises(ConversionError, match="got INT32 Node SELECT_V2"):
        export("c", keras.Model(tokens, keras.layers.Embedding(10, 6)(tokens)))


@pytest.mark.parametrize("variant", ["float32", pytest.param("int8", marks=pytest.mark.slow)])
def test_selections_are_written_as_tflite_micro_has_them(variant, build, export, samples):
    model = build("regression")  # With a SELU.
    calibration = [samples(model, 64)]
    path = export("c", model, variant=variant, calibration=calibration)
    operators = list_operators(array(path))
    assert "SELECT_V2" in operators
    assert "SELECT" not in operators
    expected = Network(model).runner(eager=True)(calibration[0])["targets"]
    for backend in C.backends:
        actual = C.load(path, backend)(calibration[0])["targets"]
        np.testing.assert_allclose(actual, expected, atol=1e-5 if variant == "float32" else 0.2)


def test_free_sizes_are_refused(export):
    model = keras.Sequential([keras.Input((None, 4), name="sequence"), keras.layers.Dense(3)])
    with pytest.raises(ConversionError, match=r"'sequence' of shape \(None, None, 4\)"):
        export("c", model)


@pytest.mark.slow
def test_recurrent_layers_convert_with_a_free_batch(lstm, export, samples):
    """For the batch is 1 here."""
    model = lstm()
    path = export("c", model)
    inputs = samples(model, 3)
    expected = Network(model).runner(eager=True)(inputs)["scores"]
    for backend in C.backends:
        actual = C.load(path, backend)(inputs)["scores"]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_missing_interpreter_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setattr(C, "extra", Extra("micro", ("no-such-distribution",)))
    with pytest.raises(RecipeError, match=r"extra 'micro'.*pip install no-such-distribution"):
        C.require_extra()


def test_folder_is_recognized(build, export):
    path = export("c", build("tiny"))
    assert [fmt.name for fmt in FORMATS.values() if fmt.recognizes(path)] == ["c"]
    (path / HEADER).unlink()
    assert not C.recognizes(path)
