"""The progress of long work on a terminal, or in a pipe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text


class ConsoleProgress:
    """Shows a bar on a terminal, and a line a stage elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None

    def note(self, text: str) -> None:
        """Prints a line."""
        self._console.print(Text(text), soft_wrap=True)

    @contextmanager
    def track(self, label: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Opens a bar, below those that are open; see the protocol."""
        if not self._console.is_terminal:
            self._console.print(Text(f"{label} ..."))
            yield lambda done, status: None
            return
        with self._live() as bars:
            task = bars.add_task(label, total=total, status="")
            try:
                yield lambda done, status: bars.update(task, completed=done, status=status)
            finally:
                bars.remove_task(task)

    @contextmanager
    def _live(self) -> Iterator[Progress]:
        if self._bars is not None:
            yield self._bars
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}", markup=False),
        )
        with Progress(*columns, console=self._console, transient=True) as bars:
            self._bars = bars
            try:
                yield bars
            finally:
                self._bars = None
