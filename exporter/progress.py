"""How long work tells what it does, without knowing who listens."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

LOGGER = logging.getLogger("exporter")
LOGGER.addHandler(logging.NullHandler())  # Whoever calls the API decides what is printed.


class Progress(Protocol):
    """Listens to a run. The command line shows it; the API logs it by default."""

    def note(self, text: str) -> None:
        """Tells a fact worth a line, such as a choice that was made for the user."""

    def track(self, label: str, total: int) -> AbstractContextManager[Callable[[int, str], None]]:
        """Opens a bar of ``total`` steps; the callable sets the steps done and a short status."""


class Logged:
    """Logs facts and stages with their seconds as information, steps for debugging."""

    def note(self, text: str) -> None:
        """Logs the line."""
        LOGGER.info("%s", text)

    @contextmanager
    def track(self, label: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Logs each step, and the time that all of them took, or took until an error."""
        start = time.perf_counter()
        try:
            yield lambda done, status: LOGGER.debug("%s: %d of %d %s", label, done, total, status)
        finally:
            LOGGER.info("%s: %.2f s", label, time.perf_counter() - start)


class Silent:
    """Shows nothing."""

    def note(self, text: str) -> None:
        """Drops the line."""

    @contextmanager
    def track(self, label: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Drops the steps."""
        del label, total
        yield lambda done, status: None
