"""The progress of long work on a terminal, or in a pipe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text


class ConsoleProgress:
    """Shows a bar on a terminal; prints a line for each stage elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
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
            self._console.print(Text(f"{label} ..."))
            yield lambda done, status: None
            return
        self._bars.start()
        task = self._bars.add_task(label, total=total, status="")
        try:
            yield lambda done, status: self._bars.update(task, completed=done, status=status)
        finally:
            self._bars.remove_task(task)
            if not self._bars.tasks:
                self._bars.stop()
