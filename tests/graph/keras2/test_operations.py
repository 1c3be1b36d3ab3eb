"""Operations that files hold, against those of TensorFlow itself."""

import numpy as np
import pytest
import tensorflow as tf

from exporter.errors import ModelError

ELLIPSIS = {"class_name": "__ellipsis__"}
X = ["x", 0, 0]

OPERATIONS = [
    *((f"math.{n}", {}) for n in ("abs", "exp", "square", "tanh", "sigmoid", "sign", "negative")),
    *((f"nn.{n}", {}) for n in ("relu", "relu6", "selu", "elu", "silu", "gelu", "softmax")),
    *((f"nn.{n}", {}) for n in ("leaky_relu", "log_softmax", "softplus", "softsign")),
    *((f"math.{n}", {"y": 2.0}) for n in ("multiply", "subtract", "truediv", "maximum", "pow")),
    *((f"math.{n}", {"y": X}) for n in ("multiply", "divide_no_nan", "floormod")),
    ("math.multiply", {"y": [1.0, 2.0, 3.0]}),
    ("nn.bias_add", {"bias": [1.0, 2.0, 3.0], "data_format": None}),
    ("math.reduce_mean", {"axis": [1, 2], "keepdims": False}),
    ("math.reduce_sum", {"axis": 1, "keepdims": True}),
    *((f"math.reduce_{n}", {"axis": -1}) for n in ("max", "min", "prod", "std", "variance")),
    ("math.reduce_logsumexp", {"axis": 1}),
    ("clip_by_value", {"clip_value_min": -0.5, "clip_value_max": 0.5}),
    ("cast", {"dtype": "int32"}),
    ("expand_dims", {"axis": 1}),
    ("reshape", {"shape": [-1, 24]}),
    ("transpose", {"perm": [0, 3, 1, 2]}),
    ("tile", {"multiples": [1, 2, 1, 1]}),
    ("pad", {"paddings": [[0, 0], [1, 2], [0, 0], [0, 0]], "mode": "CONSTANT"}),
    ("pad", {"paddings": [[0, 0], [1, 1], [0, 0], [0, 0]], "mode": "REFLECT"}),
    ("reverse", {"axis": [1]}),
    ("math.argmax", {"axis": -1, "output_type": "int64"}),
    ("math.l2_normalize", {"axis": -1}),
    ("math.cumsum", {"axis": 1}),
    ("norm", {"axis": -1}),
    ("gather", {"indices": [2, 0], "axis": 3, "batch_dims": 0}),
    ("image.resize", {"size": [8, 6], "method": "bilinear"}),
    ("image.resize", {"size": [3, 1], "method": "nearest"}),
    ("linalg.matmul", {"b": X, "transpose_b": True}),
    ("identity", {}),
    ("keras.activations.hard_sigmoid", {}),
]


def in_tensorflow(symbol, first, arguments):
    if symbol == "keras.activations.hard_sigmoid":
        return np.clip(0.2 * first + 0.5, 0, 1)
    function = tf
    for name in symbol.split("."):
        function = getattr(function, name)
    given = {k: first if v == X else v for k, v in arguments.items()}
    given.pop("data_format", None)
    return function(first, **given).numpy()


@pytest.mark.parametrize(("symbol", "arguments"), OPERATIONS)
def test_operation_computes_what_tensorflow_computes(stored, arrays, symbol, arguments):
    (x,) = arrays((2, 4, 2, 3))
    call = ["x", 0, 0, {**arguments, "name": None}]
    op = stored.operation(symbol, "tf.op", call)
    path = stored.write_h5(stored.functional(stored.inputs(4, 2, 3), op, outputs=[["tf.op", 0, 0]]))
    expected = in_tensorflow(symbol, x, arguments)
    found = stored.predict(path, x)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "index"),
    [
        ([ELLIPSIS, 0], np.s_[..., 0]),
        ([{"start": None, "stop": None, "step": None}, 1], np.s_[:, 1]),
        ([ELLIPSIS, {"start": None, "stop": None, "step": -1}], np.s_[..., ::-1]),
        ([{"start": None, "stop": None, "step": None}, None, 2], np.s_[:, None, 2]),
        ([{"start": 0, "stop": 1, "step": None}], np.s_[0:1]),
    ],
)
def test_slices(stored, arrays, spec, index):
    (x,) = arrays((2, 4, 3))
    op = stored.operation("__operators__.getitem", "tf.cut", ["x", 0, 0, {"slice_spec": spec}])
    path = stored.write_h5(stored.functional(stored.inputs(4, 3), op, outputs=[["tf.cut", 0, 0]]))
    np.testing.assert_array_equal(stored.predict(path, x), x[index])


@pytest.mark.parametrize(
    ("symbol", "call", "expected"),
    [
        ("math.subtract", ["_CONSTANT_VALUE", -1, 2.0, {"y": X, "name": None}], lambda x: 2 - x),
        ("concat", [[*X, {"axis": -1}], [*X, {"axis": -1}]], lambda x: np.concatenate([x, x], -1)),
        ("stack", [[*X, {"axis": 1}], [*X, {"axis": 1}]], lambda x: np.stack([x, x], 1)),
        ("math.add_n", [[*X, {}], [*X, {}], [*X, {}]], lambda x: 3 * x),
    ],
)
def test_first_argument_may_be_a_constant_or_a_list(stored, arrays, symbol, call, expected):
    (x,) = arrays((2, 4))
    op = stored.operation(symbol, "tf.op", call)
    path = stored.write_h5(stored.functional(stored.inputs(4), op, outputs=[["tf.op", 0, 0]]))
    np.testing.assert_allclose(stored.predict(path, x), expected(x), rtol=1e-6)


@pytest.mark.parametrize("sizes", [2, [1, 3]])
def test_several_results_are_told_apart(stored, arrays, sizes):
    (x,) = arrays((2, 4))
    call = ["x", 0, 0, {"num_or_size_splits": sizes, "axis": 1}]
    op = stored.operation("split", "tf.split", call)
    out = [["tf.split", 0, 0], ["tf.split", 0, 1]]
    path = stored.write_h5(stored.functional(stored.inputs(4), op, outputs=out))
    for found, expected in zip(stored.predict(path, x), tf.split(x, sizes, axis=1), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_shapes_that_were_computed_are_known_when_the_model_is_built(stored, arrays):
    (x,) = arrays((2, 4, 3))
    spec = {"slice_spec": [0]}
    path = stored.write_h5(
        stored.functional(
            stored.inputs(4, 3),
            stored.operation("compat.v1.shape", "tf.shape", ["x", 0, 0, {}]),
            stored.operation("__operators__.getitem", "tf.cut", ["tf.shape", 0, 0, spec]),
            stored.operation("reshape", "tf.reshape", [*X, {"shape": [["tf.cut", 0, 0], 12]}]),
            outputs=[["tf.reshape", 0, 0]],
        )
    )
    np.testing.assert_array_equal(stored.predict(path, x), x.reshape(2, 12))


@pytest.mark.parametrize(
    ("symbol", "arguments", "told"),
    [
        ("signal.fft", {}, r"the operation tf\.signal\.fft has no counterpart"),
        ("os.system", {}, r"the operation tf\.os\.system has no counterpart"),
        ("nn.relu", {"strange": 3}, r"the arguments \{'strange': 3\} have no counterpart"),
    ],
)
def test_what_has_no_counterpart_is_named(stored, symbol, arguments, told):
    op = stored.operation(symbol, "tf.op", ["x", 0, 0, arguments])
    path = stored.write_h5(stored.functional(stored.inputs(4), op, outputs=[["tf.op", 0, 0]]))
    with pytest.raises(ModelError, match=rf"Keras 2\.9\.0.*layer 'tf\.op' \(TFOpLambda\): {told}"):
        stored.predict(path)
