from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

from exporter.data.metrics import snr_db
from exporter.errors import ConversionError, DataError
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions, describe
from exporter.formats.tflite.flatbuffer import convert, list_tensors
from exporter.formats.tflite.quantization import VARIANTS, quantize
from exporter.graph.network import Network
from exporter.quantization.affine import to_integers, to_reals

TFLITE = FORMATS["tflite"]
CALIBRATED = [variant.name for variant in VARIANTS if variant.calibrated]
QUANTIZED = [variant.name for variant in VARIANTS if variant.name not in {"float32", "float16"}]


@pytest.fixture
def make(export, samples):
    """Exports a variant, calibrated on random inputs, and returns the path."""

    def write(model, variant, **options):
        batch = model.inputs[0].shape[0] or 64
        calibration = [samples(model, batch, seed) for seed in range(1, 5)]
        return export(
            "tflite", model, **{"variant": variant, "calibration": calibration, **options}
        )

    return write


@pytest.fixture(scope="module")
def cache():
    return {}


class Converted(NamedTuple):
    """A model of the zoo and its float32 flatbuffer."""

    model: Any
    content: bytes


@pytest.fixture
def converted(zoo_name, build, cache):
    """Each model; converted once, for that is what takes time."""
    if zoo_name not in cache:
        model = build(zoo_name)
        cache[zoo_name] = Converted(model, convert(Network(model), ExportOptions()))
    return cache[zoo_name]


def dense(units=(48, 32), inputs=24, **options):
    keras.utils.set_random_seed(0)
    hidden = [
        keras.layers.Dense(n, activation="relu", bias_initializer="random_normal") for n in units
    ]
    last = keras.layers.Dense(4, name="scores", **options)
    return keras.Sequential([keras.Input((inputs,), name="features"), *hidden, last])


def embedding():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,), dtype="int32", name="tokens"),
            keras.layers.Embedding(300, 16, name="embedding"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(3, name="scores"),
        ]
    )


def tokens(count, seed=0):
    return {"tokens": np.random.default_rng(seed).integers(0, 300, (count, 4), dtype="int32")}


def parsed(content):
    return read_model_from_bytearray(content)


def operators(content):
    """Names of the operators, in their order."""
    model = parsed(content)
    names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    codes = [model.operatorCodes[op.opcodeIndex] for op in model.subgraphs[0].operators]
    return [names[code.builtinCode] for code in codes]


def kernels(content):
    """The constant matrices."""
    model = parsed(content)
    return [
        tensor
        for tensor in model.subgraphs[0].tensors
        if len(tensor.shape) > 1 and model.buffers[tensor.buffer].data is not None
    ]


def predictions(path, inputs):
    """Of every backend."""
    return [TFLITE.load(path, backend)(inputs) for backend in TFLITE.backends]


@pytest.mark.one_in(9)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("variant", QUANTIZED)
def test_models_of_every_kind_have_every_variant(
    variant, granularity, converted, samples, tmp_path
):
    model = converted.model
    calibration = [samples(model, 64, seed) for seed in range(1, 9)]
    options = ExportOptions(variant=variant, granularity=granularity, calibration=calibration)
    path = tmp_path / "model.tflite"
    path.write_bytes(quantize(converted.content, options))
    inputs = samples(model, 64)
    expected = Network(model).runner(eager=True)(inputs)
    for actual in predictions(path, inputs):
        assert actual.keys() == expected.keys()
        for name, values in expected.items():
            assert actual[name].shape == values.shape
            assert actual[name].dtype == np.float32
            assert snr_db(actual[name], values) > (12 if variant == "int4" else 20)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("zoo_name", ["residual", "conv_batchnorm_dropout"])
def test_half_precision_is_stored_and_computed_in_float32(zoo_model, make, samples):
    path = make(zoo_model, "float16")
    inputs = samples(zoo_model, 16)
    expected = Network(zoo_model).runner(eager=True)(inputs)
    for actual in predictions(path, inputs):
        for name, values in expected.items():
            assert snr_db(actual[name], values) > 55
    assert {tensor.type for tensor in kernels(path.read_bytes())} == {schema.TensorType.FLOAT16}


@pytest.mark.slow
def test_fewer_bits_are_fewer_bytes(make):
    model = dense((256, 128))
    sizes = {variant.name: make(model, variant.name).stat().st_size for variant in VARIANTS}
    weights = 24 * 256 + 256 * 128 + 128 * 4
    for variant in VARIANTS:
        # Where layers differ, those have fewer bits whose kernels were rounded to them.
        extra = sizes[variant.name] - weights * variant.widest_bits / 8
        assert 0 < extra < 6000, variant.name


def test_weights_are_stored_in_the_bits_of_the_variant(make):
    model = dense((48, 256))
    for variant, bits in [("int8", 8), ("dynamic", 8), ("int16x8", 8), ("int4", 4)]:
        stored = TFLITE.stored_tensors(make(model, variant))
        for shape in [(48, 24), (256, 48), (4, 256)]:
            (tensor,) = [tensor for tensor in stored if tensor.shape == shape]
            assert tensor.nbytes == np.prod(shape) * bits // 8, variant


@pytest.mark.parametrize("variant", ["dynamic", "int4"])
def test_small_kernels_are_left_alone_where_activations_are(variant, make):
    stored = kernels(make(dense(), variant).read_bytes())
    assert {tuple(t.shape) for t in stored if t.type == schema.TensorType.FLOAT32} == {(4, 32)}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("variant", QUANTIZED)
def test_a_scale_for_each_tensor_or_channel(variant, make):
    model = dense((48, 256))
    per_tensor, per_channel = (
        make(model, variant, granularity=granularity).read_bytes()
        for granularity in ("tensor", "channel")
    )
    assert [len(t.quantization.scale) for t in kernels(per_tensor)] == [1, 1, 1]
    assert [len(t.quantization.scale) for t in kernels(per_channel)] == [
        t.shape[0] for t in kernels(per_channel)
    ]
    assert len(per_tensor) < len(per_channel)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("variant", QUANTIZED)
@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Conv2D(8, 3, groups=2, name="y"),
        keras.layers.Conv2DTranspose(8, 3, strides=2, name="y"),
        keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="y"),
        keras.layers.SeparableConv2D(8, 3, name="y"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_convolutions_of_every_kind_run_with_a_scale_a_tensor(variant, layer, make, samples):
    """LiteRT reads a scale of every channel in some, whatever there is."""
    keras.utils.set_random_seed(0)
    fresh = type(layer).from_config(layer.get_config())
    model = keras.Sequential([keras.Input((6, 6, 4), name="x"), fresh])
    path = make(model, variant, granularity="tensor")
    inputs = samples(model, 16)
    expected = Network(model).runner(eager=True)(inputs)["y"]
    for actual in predictions(path, inputs):
        assert snr_db(actual["y"], expected) > (15 if variant == "int4" else 25)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("variant", VARIANTS[1:], ids=lambda variant: variant.name)
def test_a_second_export_is_the_same(variant, make):
    model = dense()
    first, second = (make(model, variant.name) for _ in range(2))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.one_in(4)
@pytest.mark.parametrize("variant", QUANTIZED)
def test_data_lie_within_the_flatbuffer_and_are_aligned(variant, make):
    """TFLite Micro reads no data behind it, and some of its processors none that are unaligned."""
    content = make(dense((300, 300), inputs=784), variant).read_bytes()
    model = schema.Model.GetRootAs(content, 0)
    buffers = [model.Buffers(index) for index in range(model.BuffersLength())]
    assert not any(buffer.Offset() for buffer in buffers)
    starts = [
        buffer._tab.Vector(buffer._tab.Offset(4)) for buffer in buffers if buffer.DataLength()
    ]
    assert starts
    assert not any(start % 16 for start in starts)


class TestInterface:
    @pytest.mark.parametrize("io_type", ["int8", "uint8"])
    def test_integers_and_what_they_stand_for(self, io_type, build, make, samples):
        model = build("functional_two_inputs_two_outputs")
        path = make(model, "int8", io_type=io_type)
        artifact = describe(TFLITE, "int8", path, Network(model))
        runner = Interpreter(model_path=str(path)).get_signature_runner()
        inputs = samples(model, 6)
        integers = {}
        for info in artifact.inputs:
            detail = runner.get_input_details()[info.name]
            assert np.dtype(detail["dtype"]).name == info.dtype == io_type
            scale, zero_point = detail["quantization"]
            assert (info.quantization.scale, info.quantization.zero_point) == (scale, zero_point)
            integers[info.name] = to_integers(inputs[info.name], info.quantization, info.dtype)
        raw = runner(**integers)
        actual = TFLITE.load(path, "xnnpack")(inputs)
        for info in artifact.outputs:
            assert raw[info.name].dtype.name == info.dtype == io_type
            np.testing.assert_array_equal(
                actual[info.name], to_reals(raw[info.name], info.quantization)
            )

    def test_int8_is_not_converted_on_the_way(self, build, make):
        """Not even where the size of the batch is taken from the input."""
        content = make(build("sequential_mlp"), "int8", io_type="int8").read_bytes()
        names = operators(content)
        assert "SHAPE" in names
        assert not {"QUANTIZE", "DEQUANTIZE"} & set(names)
        types = {tensor.type for tensor in parsed(content).subgraphs[0].tensors}
        # One that nothing refers to is left of what is removed.
        used = {
            parsed(content).subgraphs[0].tensors[index].type
            for op in parsed(content).subgraphs[0].operators
            for index in [*op.inputs, *op.outputs]
            if index >= 0
        }
        assert schema.TensorType.INT8 in types
        assert schema.TensorType.FLOAT32 not in used

    @pytest.mark.parametrize("variant", CALIBRATED)
    def test_float32_is_converted_inside(self, variant, build, make):
        model = build("sequential_mlp")
        path = make(model, variant)
        artifact = describe(TFLITE, variant, path, Network(model))
        assert [(i.dtype, i.quantization) for i in (*artifact.inputs, *artifact.outputs)] == [
            ("float32", None)
        ] * 2
        names = operators(path.read_bytes())
        assert names.count("QUANTIZE") == names.count("DEQUANTIZE") == 1

    def test_prepared_call_takes_the_integers(self, make, samples):
        model = dense()
        path = make(model, "int8", io_type="int8")
        for backend in TFLITE.backends:
            runner = TFLITE.load(path, backend, threads=1)
            before = runner(samples(model, 3))
            runner.prepare(samples(model, 3))()
            after = runner(samples(model, 3))
            np.testing.assert_array_equal(before["scores"], after["scores"])

    @pytest.mark.one_in(4)
    @pytest.mark.parametrize("variant", QUANTIZED)
    def test_indices_stay_what_they_are(self, variant, export):
        model = embedding()
        calibration = [tokens(64, seed) for seed in range(1, 5)]
        io_type = "int8" if variant == "int8" else "float32"
        path = export("tflite", model, variant=variant, calibration=calibration, io_type=io_type)
        (info,) = describe(TFLITE, variant, path, Network(model)).inputs
        assert (info.dtype, info.quantization) == ("int32", None)
        expected = Network(model).runner(eager=True)(tokens(64))["scores"]
        for actual in predictions(path, tokens(64)):
            assert snr_db(actual["scores"], expected) > (12 if variant == "int4" else 20)
        (table,) = [t for t in TFLITE.stored_tensors(path) if t.shape == (300, 16)]
        assert table.nbytes == 300 * 16

    def test_images_of_uint8_stay_what_they_are(self, export):
        model = keras.Sequential(
            [
                keras.Input((6, 6, 1), dtype="uint8", name="image"),
                keras.layers.Rescaling(1 / 255, name="rescale"),
                keras.layers.Flatten(name="flatten"),
                keras.layers.Dense(5, name="scores"),
            ]
        )
        rng = np.random.default_rng(0)
        images = {"image": rng.integers(0, 256, (64, 6, 6, 1), dtype="uint8")}
        path = export("tflite", model, variant="int8", io_type="int8", calibration=[images])
        (image,), (scores,) = TFLITE.interface(path, Network(model))
        assert (image.dtype, image.quantization) == ("uint8", None)
        assert scores.dtype == "int8"
        expected = Network(model).runner(eager=True)(images)["scores"]
        for actual in predictions(path, images):
            assert snr_db(actual["scores"], expected) > 20


class TestRanges:
    @pytest.mark.slow
    def test_methods_clip_outliers_as_they_should(self, make, samples):
        """One far value in a hundred thousand: only minmax makes room for it."""
        model = dense()
        calibration = [samples(model, 64, seed) for seed in range(64)]
        calibration[0]["features"][0, 0] = 1000
        scales = {}
        for method in ("minmax", "percentile", "mse", "entropy"):
            path = make(model, "int8", io_type="int8", ranges=method, calibration=calibration)
            (info,), _ = TFLITE.interface(path, Network(model))
            scales[method] = info.quantization.scale
        assert scales["minmax"] == pytest.approx(1000 / 255, rel=0.01)
        assert max(scales["percentile"], scales["entropy"]) < 0.2 * scales["minmax"]
        assert len(set(scales.values())) == len(scales)

    def test_units_that_are_always_zero_do_no_harm(self, export, samples):
        """Their range is empty, and biases are counted in its steps."""
        model = keras.Sequential(
            [
                keras.Input((6,), name="x"),
                keras.layers.Dense(
                    5, activation="relu", bias_initializer=keras.initializers.Constant(-1000)
                ),
                keras.layers.Dense(3, bias_initializer="ones", name="y"),
            ]
        )
        inputs = samples(model, 8)
        path = export("tflite", model, variant="int8", calibration=[inputs])
        for actual in predictions(path, inputs):
            np.testing.assert_allclose(actual["y"], 1, atol=0.01)

    def test_values_that_are_not_finite_are_an_error(self, export, samples):
        model = dense()
        inputs = samples(model, 4)
        inputs["features"][0, 0] = np.inf
        with pytest.raises(DataError, match="finite"):
            export("tflite", model, variant="int8", calibration=[inputs])


class Doubling(keras.layers.Layer):
    """Loops by itself."""

    def call(self, inputs):
        return keras.ops.fori_loop(0, 3, lambda _, value: value * 2, inputs)

    def compute_output_shape(self, shape):
        return shape


class TestRefusals:
    @pytest.mark.parametrize("variant", CALIBRATED)
    def test_missing_calibration_names_the_options(self, variant, make):
        with pytest.raises(DataError, match=r"--data.*--calibration"):
            make(dense(), variant, calibration=[])

    def test_other_variants_need_none(self, make):
        for variant in VARIANTS:
            if not variant.calibrated:
                make(dense(), variant.name, calibration=[])

    def test_a_type_that_a_variant_does_not_have(self, make):
        with pytest.raises(ConversionError, match=r"'int16x8' takes and gives float32\. .*: int8"):
            make(dense(), "int16x8", io_type="int8")

    def test_loops_over_a_free_length_cannot_be_calibrated(self, export):
        layers = keras.layers
        model = keras.Sequential(
            [keras.Input((None, 3), name="x"), layers.GRU(4, name="memory"), layers.Dense(2)]
        )
        calibration = [{"x": np.ones((4, 5, 3), "float32")}]
        with pytest.raises(ConversionError, match=r"fixed length\. Received: .* in memory"):
            export("tflite", model, variant="int8", calibration=calibration)

    def test_loops_that_cannot_be_written_out(self, make):
        model = keras.Sequential([keras.Input((4,), name="x"), Doubling()])
        with pytest.raises(ConversionError, match="only recurrent layers"):
            make(model, "int8")

    @pytest.mark.one_in(4)
    @pytest.mark.parametrize("variant", QUANTIZED)
    def test_kernels_that_would_stay_float32(self, variant, make):
        model = keras.Sequential(
            [keras.Input((4, 4, 4, 8), name="x"), keras.layers.Conv3D(16, 3, name="y")]
        )
        with pytest.raises(ConversionError, match="operator CONV_3D"):
            make(model, variant)


@pytest.mark.parametrize("io_type", ["float32", "int8"])
def test_outputs_may_be_taken_further_or_be_inputs(io_type, make, samples):
    inputs = keras.Input((12,), name="features")
    hidden = keras.layers.Dense(16, name="hidden")(inputs)
    scores = keras.layers.Dense(4, name="scores")(keras.layers.ReLU()(hidden))
    best = keras.ops.argmax(scores, axis=-1)
    others = [keras.layers.Dense(n, name=f"head_{n}")(hidden) for n in (2, 3)]
    model = keras.Model(inputs, [inputs, hidden, scores, best, *others])
    batch, path = samples(model, 8), make(model, "int8", io_type=io_type)
    interpreter = Interpreter(str(path))
    listed = {detail["index"] for detail in interpreter.get_output_details()}
    taken = interpreter.get_signature_runner().get_output_details()
    assert listed == {detail["index"] for detail in taken.values()}
    assert {np.dtype(detail["dtype"]).name for detail in taken.values()} >= {io_type}
    expected = Network(model).runner(eager=True)(batch)
    for actual in predictions(path, batch):
        for name in ("features_output", "hidden", "scores", "head_2", "head_3"):
            assert snr_db(actual[name], expected[name]) > 20


def test_masked_attention_keeps_its_logits_apart(masked_attention, make, samples):
    inputs = samples(masked_attention, 64)
    (expected,) = Network(masked_attention).runner(eager=True)(inputs).values()
    for actual in predictions(make(masked_attention, "int8"), inputs):
        assert snr_db(*actual.values(), expected) > 25


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Conv2D(8, 3, name="dead"),
        keras.layers.DepthwiseConv2D(3, name="dead"),
        keras.layers.Dense(8, name="dead"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_bias_of_dead_units_is_kept(layer, granularity, make, samples):
    model = keras.Sequential([keras.Input((6, 6, 8), name="x"), layer, keras.layers.ReLU()])
    kernel, _ = layer.get_weights()
    dead = np.arange(8) % 2 == 0
    channels = np.moveaxis(kernel, -2, -1) if kernel.shape[-1] == 1 else kernel  # A view
    channels[..., dead] = 0
    layer.set_weights([kernel, np.linspace(0.1, 2, 8, dtype="float32")])
    inputs = samples(model, 64)
    (expected,) = Network(model).runner(eager=True)(inputs).values()
    for actual in predictions(make(model, "int8", granularity=granularity), inputs):
        (values,) = actual.values()
        step = expected.max() / 255
        np.testing.assert_allclose(values[..., dead], expected[..., dead], atol=1.5 * step)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_logits_far_off_leave_the_steps_of_others_fine(activation, make, samples):
    """A network that is sure of most samples, and a class that its bias rules out."""
    model = dense(activation=activation)
    kernel, bias = model.layers[-1].get_weights()
    kernel[:, 0] *= 60 if activation == "sigmoid" else 3
    bias[3] = -500
    model.layers[-1].set_weights([kernel, bias])
    inputs = samples(model, 200)
    expected = Network(model).runner(eager=True)(inputs)["scores"]
    # Some are in doubt, and logits reach far.
    assert np.mean((expected > 0.1) & (expected < 0.9)) > 0.05
    for actual in predictions(make(model, "int8"), inputs):
        assert np.mean(abs(actual["scores"] - expected) > 0.1) < 0.02
        assert snr_db(actual["scores"], expected) > 30


@pytest.mark.parametrize("varies", [0, 1e-7, 1e-4])
def test_outputs_that_hardly_vary_are_no_failure(varies, make, samples):
    """As latents of a dead layer: XNNPACK refuses steps far finer than those of the sums."""
    model = dense(units=(48,), inputs=24)
    kernel = np.ones((48, 4)) * np.array([1, 1, -2, 1])
    kernel[24:] = -kernel[:24]
    hidden = np.tile(np.random.default_rng(0).normal(size=(24, 24)), 2)
    hidden[:, 24:] *= 1 + varies
    model.layers[0].set_weights([hidden, np.zeros(48)])
    model.layers[1].set_weights([kernel, np.zeros(4)])
    path = make(model, "int8")
    inputs = samples(model, 16)
    expected = Network(model).runner(eager=True)(inputs)["scores"]
    for actual in predictions(path, inputs):
        # Of sums of some 48 numbers of about one.
        np.testing.assert_allclose(actual["scores"], expected, atol=0.5)


def test_a_fixed_batch_stays_fixed(make, samples):
    model = keras.Sequential(
        [keras.Input(batch_shape=(3, 6), name="x"), keras.layers.Dense(2, name="y")]
    )
    path = make(model, "int8", io_type="int8")
    inputs = samples(model, 3)
    for actual in predictions(path, inputs):
        assert snr_db(actual["y"], Network(model).runner(eager=True)(inputs)["y"]) > 20


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("kind", "batch"), [("LSTM", 2), ("GRU", None), ("Bidirectional", None)])
def test_the_steps_of_recurrent_layers_are_written_out(kind, batch, make, samples):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    layer = layers.Bidirectional(layers.LSTM(4)) if kind == "Bidirectional" else None
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(batch, 4, 3), name="x"),
            layer or getattr(layers, kind)(6),
            layers.Dense(2, name="y"),
        ]
    )
    inputs, path = samples(model, 4), make(model, "int8", calibration=[samples(model, 99)])
    for actual in predictions(path, inputs):
        assert snr_db(actual["y"], Network(model).runner(eager=True)(inputs)["y"]) > 20


def test_indices_are_not_rounded(make):
    keras.utils.set_random_seed(0)
    layers, ids = keras.layers, keras.Input((1,), dtype="int32", name="ids")
    scores = layers.Dense(4, name="scores")(layers.CategoryEncoding(24, "one_hot")(ids))
    model, given = keras.Model(ids, scores), {"ids": np.arange(24, dtype="int32")[:, None]}
    path = make(model, "int8", calibration=[given])
    expected = Network(model).runner(eager=True)(given)["scores"]
    for actual in predictions(path, given):
        assert snr_db(actual["scores"], expected) > 30


@pytest.mark.one_in(2)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_small_states_keep_more_than_the_steps_of_a_tanh(kind, make):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 8), name="x")
    layer = getattr(keras.layers, kind)(8)
    model = keras.Model(inputs, keras.layers.Dense(3, name="y")(layer(inputs)))
    given = {"x": 0.02 * np.random.default_rng(0).normal(size=(64, 6, 8)).astype("float32")}
    path = make(model, "int8", calibration=[given])
    expected = Network(model).runner(eager=True)(given)["y"]
    for actual in predictions(path, given):
        assert snr_db(actual["y"], expected) > 25
    assert {k.type for k in kernels(path.read_bytes())} == {schema.TensorType.INT8}


def test_nothing_is_printed(lstm, make, capsys):
    """The quantizer draws progress bars for large graphs."""
    make(lstm(unroll=True), "int8")
    assert capsys.readouterr() == ("", "")


def test_packed_weights_have_their_shape_and_bytes(make):
    """Also where their number is odd."""
    model = keras.Sequential([keras.Input((41,), name="x"), keras.layers.Dense(27, name="y")])
    stored = list_tensors(make(model, "int4").read_bytes())
    assert [(tensor.shape, tensor.nbytes) for tensor in stored if len(tensor.shape) == 2] == [
        ((27, 41), 554)
    ]
