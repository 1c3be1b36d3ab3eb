import copy
import hashlib
import subprocess
import sys
from collections import Counter
from typing import Any, NamedTuple

import keras
import numpy as np
import onnx
import pytest

from exporter.commands.compress import compress
from exporter.data.metrics import snr_db
from exporter.errors import ConversionError, DataError, RecipeError
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions, describe
from exporter.formats.onnx import onnx as onnx_graph
from exporter.formats.onnx.quantization import VARIANTS, as_variant
from exporter.graph.fitting import fitted
from exporter.graph.network import Network
from exporter.quantization.affine import to_integers, to_reals
from exporter.verification.verifier import Verifier

FMT = FORMATS["onnx"]
QUANTIZED = [variant.name for variant in VARIANTS[1:]]
variants = pytest.mark.parametrize("variant", QUANTIZED)
BITS = {variant.name: variant.weight_bits for variant in VARIANTS}


@pytest.fixture
def quantize(export, samples):
    """Exports a variant, calibrated on random inputs."""

    def write(model, variant, **options):
        calibration = [samples(model, 64, seed) for seed in (1, 2)]
        return export("onnx", model, variant=variant, calibration=calibration, **options)

    return write


def predict(path, inputs):
    return FMT.load(path, "cpu")(inputs)


def dense(units=(48, 32), **options):
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(n, activation="relu") for n in units]
    last = keras.layers.Dense(4, name="scores", **options)
    return keras.Sequential([keras.Input((24,), name="features"), *hidden, last])


def operators(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def weights_of(path):
    """Types of the stored tensors that are large enough to be kernels."""
    tensors = onnx.load(path).graph.initializer
    return {onnx.numpy_helper.to_array(t).dtype.name for t in tensors if np.prod(t.dims) >= 100}


@pytest.fixture(scope="module")
def cache():
    return {}


class Converted(NamedTuple):
    """A model of the zoo and its float32 graph."""

    model: Any
    graph: Any


@pytest.fixture
def converted(zoo_name, build, cache):
    """Each model; converted once, for that is what takes time."""
    if zoo_name not in cache:
        model = build(zoo_name)
        graph = onnx_graph.build(Network(model).recast("float32"), ExportOptions())
        cache[zoo_name] = Converted(model, graph)
    return cache[zoo_name]


@pytest.mark.one_in(4)
@variants
def test_every_kind_of_model_has_the_variant(variant, converted, samples, tmp_path):
    model = converted.model
    calibration = [samples(model, 64, seed) for seed in (1, 2)]
    options = ExportOptions(variant=variant, calibration=calibration)
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_graph.checked(as_variant(copy.deepcopy(converted.graph), options)))
    assert_predicts(path, model, variant, samples)


@variants
def test_layers_of_half_precision_are_converted_as_float32(variant, build, quantize, samples):
    model = build("mixed_float16")
    assert_predicts(quantize(model, variant), model, variant, samples)


def assert_predicts(path, model, variant, samples):
    """Nearly what the model does, under its names."""
    expected_size = onnx.load(path).ByteSize()
    assert expected_size == path.stat().st_size
    inputs = samples(model, 16)
    expected, actual = Network(model).runner(eager=True)(inputs), predict(path, inputs)
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        assert actual[name].shape == values.shape
        assert actual[name].dtype == values.dtype
        assert snr_db(actual[name], values) > (45 if variant == "float16" else 15)


@variants
def test_names_and_batch_are_those_of_the_float_graph(variant, build, quantize, samples):
    model = build("functional_two_inputs_two_outputs")
    path = quantize(model, variant)
    graph = onnx.load(path).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    assert types == dict.fromkeys(("wide", "deep", "kind", "amount"), onnx.TensorProto.FLOAT)
    assert {v.type.tensor_type.shape.dim[0].dim_param for v in graph.input} == {"batch"}
    assert {v.type.tensor_type.shape.dim[0].dim_param for v in graph.output} == {"batch"}
    for count in (1, 5):
        assert len(predict(path, samples(model, count))["kind"]) == count


EXPORT = """
import sys
from pathlib import Path
import keras
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions
from exporter.graph.network import Network
import numpy as np

model = keras.models.load_model(sys.argv[1])
network = Network(model)
shape = model.inputs[0].shape[1:]
batch = np.random.default_rng(0).normal(size=(8, *shape)).astype("float32")
for variant in sys.argv[3:]:
    path = Path(sys.argv[2]) / f"{variant}.onnx"
    calibration = [{model.inputs[0].name: batch}]
    FORMATS["onnx"].export(network, path, ExportOptions(variant=variant, calibration=calibration))
"""


@pytest.mark.slow
def test_exports_by_different_processes_are_equal(build, tmp_path):
    model = build("conv_batchnorm_dropout")
    model.save(tmp_path / "model.keras")
    digests = []
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        arguments = [str(tmp_path / "model.keras"), str(tmp_path / run), *QUANTIZED]
        subprocess.run([sys.executable, "-c", EXPORT, *arguments], check=True)
        files = [tmp_path / run / f"{name}.onnx" for name in QUANTIZED]
        digests.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
    assert digests[0] == digests[1]


@pytest.mark.one_in(3)
@variants
def test_exports_are_equal(variant, build, quantize):
    model = build("residual")
    assert quantize(model, variant).read_bytes() == quantize(model, variant).read_bytes()


@pytest.mark.one_in(3)
@variants
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_kernels_are_stored_in_as_many_bits_as_promised(variant, granularity, build, quantize):
    path = quantize(build("conv_batchnorm_dropout"), variant, granularity=granularity)
    stored = [t for t in FMT.stored_tensors(path) if np.prod(t.shape) >= 100]
    assert sorted(np.prod(t.shape) for t in stored) == [120, 162, 16 * 6 * 24]
    assert {t.nbytes * 8 // np.prod(t.shape) for t in stored} == {BITS[variant]}
    scales = {t.shape for t in FMT.stored_tensors(path) if len(t.shape) == 1}
    assert ((24,) in scales) or granularity == "tensor" or variant == "float16"


@pytest.mark.parametrize("variant", ["dynamic", "int8"])
def test_weights_are_of_a_type_that_does_not_saturate(variant, build, quantize):
    assert weights_of(quantize(build("conv_batchnorm_dropout"), variant)) == {"uint8"}


@pytest.mark.parametrize("variant", ["dynamic", "int8"])
def test_kernels_of_other_operators_are_stored_as_integers(variant, quantize, samples):
    keras.utils.set_random_seed(0)
    layer = keras.layers.Conv2DTranspose(8, 3, strides=2, name="image")
    model = keras.Sequential([keras.Input((6, 6, 16), name="small"), layer])
    path = quantize(model, variant)
    assert weights_of(path) == {"uint8"}
    inputs = samples(model, 8)
    expected = Network(model).runner(eager=True)(inputs)["image"]
    assert snr_db(predict(path, inputs)["image"], expected) > 25


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Conv1D(8, 3, name="y"),
        keras.layers.Conv2D(8, 3, strides=2, padding="same", name="y"),
        keras.layers.Conv2D(8, 3, groups=2, name="y"),
        keras.layers.DepthwiseConv2D(3, name="y"),
        keras.layers.Conv3D(8, 2, use_bias=False, name="y"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_dynamic_convolutions_have_a_scale_for_each_channel(layer, quantize, samples):
    axes = len(layer.kernel_size)
    model = keras.Sequential([keras.Input((*[6] * axes, 8), name="x"), layer])
    kernel = layer.weights[0]
    # The channels of each output differ a thousandfold, and one is dead.
    factors = np.geomspace(1e-3, 1, 8)
    factors[3] = 0
    shape = (8, 1) if "Depthwise" in type(layer).__name__ else (8,)
    kernel.assign(kernel.numpy() * factors.reshape(shape))
    path, inputs = quantize(model, "dynamic"), samples(model, 16)
    assert operators(path)["ConvInteger"] == 1
    expected, actual = Network(model).runner(eager=True)(inputs)["y"], predict(path, inputs)["y"]
    for channel in range(8):
        if channel == 3:
            np.testing.assert_array_equal(actual[..., 3], 0)
        else:
            assert snr_db(actual[..., channel], expected[..., channel]) > 35


def test_masked_attention_keeps_its_logits_apart(masked_attention, quantize, samples):
    inputs = samples(masked_attention, 64)
    (expected,) = Network(masked_attention).runner(eager=True)(inputs).values()
    (actual,) = predict(quantize(masked_attention, "int8"), inputs).values()
    assert snr_db(actual, expected) > 25


def test_sums_of_dense_layers_are_not_quantized(quantize):
    path = quantize(dense(), "int8")
    # The inputs of three layers, and nothing else.
    assert operators(path)["QuantizeLinear"] == 3


def test_calibration_data_decide_on_the_ranges(export):
    model = dense()
    inputs = np.random.default_rng(0).normal(size=(256, 24)).astype("float32")
    expected = Network(model).runner(eager=True)({"features": inputs})["scores"]
    errors = []
    for scale in (0.1, 1.0, 100.0):
        calibration = [{"features": scale * inputs}]
        path = export("onnx", model, variant="int8", ranges="minmax", calibration=calibration)
        errors.append(snr_db(predict(path, {"features": inputs})["scores"], expected))
    assert errors[1] > errors[0] + 10
    assert errors[1] > errors[2] + 10


def test_the_method_is_used(export):
    model = dense()
    inputs = np.random.default_rng(0).normal(size=(2000, 24)).astype("float32")
    calibration = [{"features": np.append(inputs, np.full((1, 24), 40, "float32"), axis=0)}]
    expected = Network(model).runner(eager=True)({"features": inputs})["scores"]
    found = {}
    for ranges in ("minmax", "percentile", "mse", "entropy"):
        path = export("onnx", model, variant="int8", ranges=ranges, calibration=calibration)
        found[ranges] = snr_db(predict(path, {"features": inputs})["scores"], expected)
    assert len(set(found.values())) == 4
    assert found["entropy"] > found["minmax"]


@pytest.mark.parametrize("io_type", ["int8", "uint8"])
def test_integer_interface(io_type, build, quantize, samples):
    model = build("functional_two_inputs_two_outputs")
    path = quantize(model, "int8", io_type=io_type)
    artifact = describe(FMT, "int8", path, Network(model))
    graph = onnx.load(path).graph
    elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(io_type))
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    assert types == dict.fromkeys(("wide", "deep", "kind", "amount"), elem_type)
    for info in (*artifact.inputs, *artifact.outputs):
        assert info.dtype == io_type
        assert info.quantization.scale > 0
    # The runner sees to the conversion, as a caller of the runtime has to.
    import onnxruntime

    inputs = samples(model, 20)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {i.name: to_integers(inputs[i.name], i.quantization, i.dtype) for i in artifact.inputs}
    names = [info.name for info in artifact.outputs]
    raw = dict(zip(names, session.run(names, feeds), strict=True))
    actual, expected = predict(path, inputs), Network(model).runner(eager=True)(inputs)
    for info in artifact.outputs:
        assert raw[info.name].dtype == io_type
        np.testing.assert_array_equal(
            to_reals(raw[info.name], info.quantization), actual[info.name]
        )
        assert snr_db(actual[info.name], expected[info.name]) > 15


@pytest.mark.parametrize(("io_type", "count"), [("uint8", 3), ("int8", 4)])
def test_integers_are_taken_as_they_are_computed_with(io_type, count, quantize):
    # The activations of three layers; the output makes up for the input. Those of int8 are shifted.
    assert operators(quantize(dense(), "int8", io_type=io_type))["QuantizeLinear"] == count


@pytest.fixture(scope="module")
def verified(digits, trained_mlp, tmp_path_factory):
    """Exports a factorized classifier of the digits as a variant, and verifies it."""
    compressed = compress(trained_mlp, 16)
    dataset = fitted(digits, compressed.network)
    folder = tmp_path_factory.mktemp("verified")
    verifier = Verifier(compressed, dataset, folder=folder)
    images = dataset.train.inputs["image"][:500]
    calibration = [{"image": batch} for batch in np.array_split(images, 5)]

    def verify(variant, **options):
        path = folder / f"{variant}-{'-'.join(options.values())}.onnx"
        asked = ExportOptions(variant=variant, calibration=calibration, **options)
        FMT.export(compressed.network, path, asked)
        return verifier.verify(describe(FMT, variant, path, compressed.network))

    return verify


@pytest.mark.one_in(3)
@variants
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_factorized_model_passes_its_proofs(variant, granularity, verified):
    verdict = verified(variant, granularity=granularity)
    assert verdict.error is None
    assert verdict.structure.passed
    assert [layer.found and layer.dense_gone for layer in verdict.structure.layers] == [True]
    assert verdict.quality.passed
    assert verdict.passed


@pytest.mark.parametrize("io_type", ["int8", "uint8"])
def test_a_model_with_an_integer_interface_passes_its_proofs(io_type, verified):
    assert verified("int8", io_type=io_type).passed


def test_inputs_that_are_integers_stay_as_they_are(quantize, export):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,), dtype="int32", name="tokens"),
            keras.layers.Embedding(50, 16),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(8, name="scores"),
        ]
    )
    tokens = np.random.default_rng(0).integers(0, 50, (40, 6)).astype("int32")
    path = export("onnx", model, variant="int8", io_type="int8", calibration=[{"tokens": tokens}])
    (tokens_info,), (scores_info,) = FMT.interface(path, Network(model))
    assert (tokens_info.dtype, tokens_info.quantization) == ("int32", None)
    assert scores_info.dtype == "int8"
    expected = Network(model).runner(eager=True)({"tokens": tokens})["scores"]
    assert snr_db(predict(path, {"tokens": tokens})["scores"], expected) > 15


def test_the_bare_call_is_given_integers(quantize, samples):
    model = dense()
    path = quantize(model, "int8", io_type="uint8")
    FMT.load(path, "cpu").prepare(samples(model, 3))()


def test_an_unknown_method(quantize):
    with pytest.raises(RecipeError, match="median"):
        quantize(dense(), "int8", ranges="median")


def test_no_calibration_data(export):
    with pytest.raises(DataError, match=r"--data.*--calibration"):
        export("onnx", dense(), variant="int8")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"other": np.ones((2, 24), "float32")}, "features"),
        ({"features": np.ones((2, 7), "float32")}, "do not fit"),
        ({"features": np.full((2, 24), np.nan, "float32")}, "infinity or NaN"),
    ],
)
def test_calibration_data_that_do_not_fit(export, batch, message):
    with pytest.raises(DataError, match=message):
        export("onnx", dense(), variant="int8", calibration=[batch])


@variants
def test_an_operator_that_onnx_lacks_is_an_error(variant, unconvertible, quantize):
    with pytest.raises(ConversionError, match="Erfinv"):
        quantize(unconvertible, variant)


@pytest.mark.one_in(3)
@variants
def test_an_unquantized_graph_is_not_touched(variant, export, quantize):
    model = dense()
    before = export("onnx", model).read_bytes()
    quantize(model, variant)
    assert export("onnx", model).read_bytes() == before
