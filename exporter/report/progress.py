"""The progress of long work on a terminal, or in a pipe."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

FEW_STEPS = 32
"""Steps up to which each has a line in a pipe, if they are no part of a larger step."""

LINE_SECONDS = 10.0
"""Time after which another one has a line."""


class ConsoleProgress:
    """Shows a bar on a terminal; elsewhere prints lines for each stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = 0
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=console,
            transient=True,
        )

    def note(self, text: str) -> None:
        """Prints a line."""
        self._console.print(Text(text), soft_wrap=True)

    @contextmanager
    def track(self, label: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Opens a bar below those that are open; see ``exporter.progress.Progress``."""
        if not self._console.is_terminal:
            self.note(f"{label} ...")
            self._open += 1
            try:
                yield self._lines(label, total, listed=self._open == 1 and total <= FEW_STEPS)
            finally:
                self._open -= 1
            return
        self._bars.start()
        task = self._bars.add_task(label, total=total, status="")
        try:
            yield lambda done, status: self._bars.update(task, completed=done, status=status)
        finally:
            self._bars.remove_task(task)
            if not self._bars.tasks:
                self._bars.stop()

    def _lines(self, label: str, total: int, *, listed: bool) -> Callable[[int, str], None]:
        """Returns a function that prints a line for each step that is told of, or now and then."""
        told_at = time.monotonic()

        def advance(done: int, status: str) -> None:
            nonlocal told_at
            now = time.monotonic()
            if (listed and status) or now - told_at >= LINE_SECONDS:
                told_at = now
                self.note(f"{label}: {done} of {total}{status and ', '}{status}")

        return advance
