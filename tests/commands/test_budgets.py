import numpy as np
import pytest

from exporter.commands.budgets import check_budget
from exporter.data import load_dataset
from exporter.errors import DataError
from exporter.recipe import Recipe


def test_drop_needs_labels():
    recipe = Recipe(max_drop=0.01, data="mine.npz")
    unlabelled = load_dataset({"x": np.zeros((8, 3), "float32")})
    for data in (None, unlabelled):
        with pytest.raises(DataError, match=r"validation data.*'mine\.npz'"):
            check_budget(recipe, data)
