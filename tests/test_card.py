import numpy as np
import pytest

from exporter.card import Normalization
from exporter.errors import InputError


@pytest.mark.parametrize("values", [(0, 0), (0, np.nan), (np.inf, 1)])
def test_what_normalizes_nothing_is_refused(values):
    with pytest.raises(InputError, match="a finite std other than 0"):
        Normalization(*values)
