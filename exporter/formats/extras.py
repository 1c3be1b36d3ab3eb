"""What not every user installs."""

import sys
from dataclasses import dataclass

from exporter.errors import RecipeError


@dataclass(frozen=True)
class Extra:
    """An extra of this package, as pyproject.toml defines it.

    Attributes:
        name: As in ``pip install 'exporter[name]'``.
        packages: The distributions that it brings.
    """

    name: str
    packages: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """The packages that are not installed."""
        return tuple(package for package in self.packages if not _is_installed(package))

    def require(self, what: str) -> None:
        """Checks that all packages are installed.

        Args:
            what: Needs them; begins the message.

        Raises:
            RecipeError: If one is not; the message names the extra.
        """
        if self.missing:
            raise RecipeError(
                f"{what} needs the extra {self.name!r}, which is not installed. "
                f"Run: {sys.executable} -m pip install {' '.join(self.missing)}"
            )


NO_EXTRA = Extra("none", ())


def _is_installed(package: str) -> bool:
    # Takes a quarter of the time that --help takes.
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True
