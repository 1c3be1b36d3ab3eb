"""Optional extras of this package."""

import sys
from dataclasses import dataclass

from exporter.errors import RecipeError


@dataclass(frozen=True)
class Extra:
    """An extra of this package and the distributions in it, as pyproject.toml defines them."""

    name: str
    packages: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """The packages that are not installed."""
        # Imported here, for it takes a quarter of the time of --help.
        from importlib.metadata import distributions

        return tuple(name for name in self.packages if not any(distributions(name=name)))

    def require(self, user: str) -> None:
        """Raises a RecipeError that begins with the user of the packages, if one is missing."""
        if self.missing:
            raise RecipeError(
                f"{user} needs the extra {self.name!r}, which is not installed. "
                f"Run: {sys.executable} -m pip install {' '.join(self.missing)}"
            )


NO_EXTRA = Extra("none", ())
COMPLETION = Extra("completion", ("shtab",))
MICRO = Extra("micro", ("tflite-micro",))
