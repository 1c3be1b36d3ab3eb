"""What the tests of data share."""

from types import SimpleNamespace
from typing import Any

import pytest


def _spec(name: str, shape: tuple[int | None, ...], dtype: str = "float32") -> SimpleNamespace:
    return SimpleNamespace(name=name, shape=(None, *shape), dtype=dtype)


@pytest.fixture(scope="session")
def spec() -> Any:
    """Makes an input or output of a model: ``spec(name, shape, dtype)``."""
    return _spec
