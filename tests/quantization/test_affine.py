import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.graph.signature import Quantization
from exporter.quantization.affine import spread, to_integers, to_reals

ENDS = st.tuples(st.floats(-1e6, 0, width=32), st.floats(0, 1e6, width=32))
integers = pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])


@integers
@given(ends=ENDS)
def test_the_error_within_a_range_is_a_step_at_most(dtype, ends):
    quantization = spread(*ends, dtype)
    limits = np.iinfo(dtype)
    assert limits.min <= quantization.zero_point <= limits.max
    reals = np.linspace(*ends, 301)
    back = to_reals(to_integers(reals, quantization, dtype), quantization)
    # Half of one by rounding, and half of one by the rounding of the zero point, at the ends.
    slack = 1e-5 * max(map(abs, ends))
    assert np.abs(back - reals).max() <= 1.01 * quantization.scale + slack


@integers
@given(ends=ENDS)
def test_zero_is_exact(dtype, ends):
    quantization = spread(*ends, dtype)
    assert to_reals(to_integers(np.zeros(1), quantization, dtype), quantization) == 0


def test_what_is_out_of_range_is_clipped():
    quantization = Quantization(0.5, 10)
    found = to_integers(np.array([-1e9, -3.0, 0.0, 0.25, 0.75, 1e9]), quantization, "uint8")
    assert found.dtype == np.uint8
    assert found.tolist() == [0, 4, 10, 10, 12, 255]


def test_no_range():
    assert spread(0.0, 0.0, "int8") == Quantization(1.0, 0)
