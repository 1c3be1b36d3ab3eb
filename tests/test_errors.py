import inspect

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter import errors
from exporter.errors import brief, did_you_mean

ALL = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, Exception)
]


def test_every_error_has_one_base_and_an_exit_code():
    assert len(ALL) == 11
    codes = {errors.ConversionError: 3, errors.ClusterError: 4, errors.TrackingError: 5}
    for error in ALL:
        assert issubclass(error, errors.ExporterError)
        assert error.exit_code == codes.get(error, 2)


@pytest.mark.parametrize(
    ("received", "told"),
    [
        ("batch-sise", " Did you mean 'batch_size'?"),
        ("RANK", " Did you mean 'rank'?"),
        ("--size-batch", " Did you mean 'batch_size'?"),
        (["ranks", "nothing", "batchsize", "rang"], " Did you mean 'rank', 'batch_size'?"),
        ("nothing", ""),
        (["nothing"], ""),
        ([], ""),
        (3, ""),
        (None, ""),
    ],
)
def test_what_is_close_to_a_mistyped_name_is_suggested(received, told):
    assert did_you_mean(received, ("rank", "batch_size")) == told


def test_the_docstring_draws_the_tree():
    for error in ALL:
        assert error.__name__ in errors.__doc__


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain."),
        ("A sentence.", "A sentence."),
        ("Why?", "Why?"),
        ("\n\n   first line\nsecond line", "first line."),
        ("", "ValueError."),
        ("  \n ", "ValueError."),
        ("\x1b[1mbold\x1b[0m", "bold."),
        ("in user code:", "in user code:."),
    ],
)
def test_brief_is_the_first_line_as_a_sentence(text, expected):
    assert brief(ValueError(text)) == expected


@given(text=st.text(), limit=st.integers(10, 300))
def test_brief_is_one_line_within_the_limit(text, limit):
    short = brief(ValueError(text), limit)
    assert 0 < len(short) <= limit
    assert "\n" not in short


def test_brief_says_that_it_cut():
    assert brief(ValueError("x" * 400)) == "x" * 299 + "…"


def test_brief_finds_the_reason_that_keras_wraps():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="incompatible") as caught:
        model(np.ones((1, 5)))
    assert brief(caught.value).startswith("Input 0 with name 'None' of layer")


def test_brief_leaves_out_where_a_converter_was_called():
    text = "Could not translate.<unknown>:0: error: x\nNo./home/me/run.py:7:1: error: 'tf.A' op"
    assert brief(ValueError(text.partition("\n")[2])) == "No. error: 'tf.A' op."


def test_brief_finds_the_reason_that_tensorflow_wraps():
    import tensorflow as tf

    class Broken(keras.layers.Layer):
        def call(self, inputs):
            raise ValueError("The inner reason")

    function = tf.function(Broken())
    with pytest.raises(ValueError, match="in user code") as caught:
        function.get_concrete_function(tf.TensorSpec((None, 2)))
    assert brief(caught.value) == "The inner reason."


def test_brief_leaves_out_the_names_that_tensorflow_gives_operations():
    import tensorflow as tf

    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        tf.io.decode_image(b"text")
    assert brief(caught.value).startswith("Unknown image file format. One of JPEG, ")
    assert brief(caught.value).endswith(" required.")
