"""The scales that models are commonly trained with."""

import keras
import numpy as np
import pytest

from exporter.card import Normalization
from exporter.data.scaling import Scaling, candidates
from exporter.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype("uint8")


@pytest.mark.parametrize(
    ("name", "mode"), [("symmetric", "tf"), ("caffe", "caffe"), ("torch", "torch")]
)
def test_named_scales_are_those_of_keras(name, mode):
    module = keras.applications.imagenet_utils
    expected = module.preprocess_input(IMAGES.astype("float32"), mode=mode)
    np.testing.assert_allclose(Scaling.of(name)(IMAGES), expected, rtol=1e-4, atol=1e-4)


def test_unit_is_a_division_and_none_changes_nothing():
    np.testing.assert_array_equal(Scaling.of("unit")(IMAGES), IMAGES / np.float32(255))
    assert Scaling.of("none")(IMAGES) is IMAGES
    assert Scaling.of("none").is_identity


def test_numbers_may_be_given_for_each_channel():
    scaling = Scaling.of(((1.0, 2.0, 3.0), (2.0,)))
    np.testing.assert_array_equal(scaling(IMAGES), (IMAGES - np.float32([1, 2, 3])) / 2)
    assert scaling.normalization == Normalization((1.0, 2.0, 3.0), 2.0)
    scaling.check("input 'x'", 3)
    with pytest.raises(DataError, match=r"is for 3 channels\. Received: input 'x' with 4"):
        scaling.check("input 'x'", 4)


def test_scales_of_colours_are_tried_on_colours_alone():
    assert [s.name for s in candidates(3)] == ["unit", "none", "symmetric", "caffe", "torch"]
    assert [s.name for s in candidates(1)] == ["unit", "none", "symmetric"]
