"""What the tests of data share."""

from types import SimpleNamespace
from typing import Any

import pytest

from exporter.data import Scaling, fit_to_model, scaled


def _spec(name: str, shape: tuple[int | None, ...], dtype: str = "float32") -> SimpleNamespace:
    return SimpleNamespace(name=name, shape=(None, *shape), dtype=dtype)


def fit_scaled(dataset: Any, inputs: Any, outputs: Any, scale: str = "unit") -> Any:
    """Fits a data set to a model and scales all of its inputs alike."""
    scalings = {info.name: Scaling.of(scale) for info in inputs}
    return scaled(fit_to_model(dataset, inputs, outputs), inputs, scalings)


@pytest.fixture(scope="session")
def fitted_and_scaled() -> Any:
    """Fits and scales: ``fitted_and_scaled(dataset, inputs, outputs, scale)``."""
    return fit_scaled


@pytest.fixture(scope="session")
def spec() -> Any:
    """Makes an input or output of a model: ``spec(name, shape, dtype)``."""
    return _spec
