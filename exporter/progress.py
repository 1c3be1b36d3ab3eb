"""How long work tells what it does, without knowing who listens."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Listens to a run. The command line shows it; the API is silent by default."""

    def note(self, text: str) -> None:
        """Tells a fact worth a line, such as a choice that was made for the user."""

    def track(self, label: str, total: int) -> AbstractContextManager[Callable[[int, str], None]]:
        """Opens a bar of ``total`` steps; the callable sets the steps done and a short status."""


class Silent:
    """Shows nothing."""

    def note(self, text: str) -> None:
        """Drops the line."""

    @contextmanager
    def track(self, label: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Drops the steps."""
        del label, total
        yield lambda done, status: None
