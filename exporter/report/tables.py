"""Tables on a terminal that fit its width."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import measure_renderables
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

WIDTH = 120
"""Columns where the output is no terminal."""

_WRAPPED = 16
"""Columns that a wrapped column gets at least."""


class _OpenTable(Table):
    """A table that drops its lesser columns where it is too wide for the terminal.

    If that is not enough, it is a list with all of them: no cell is cut.

    Attributes:
        lesser: Headers of these columns, the least important first.
    """

    lesser: tuple[str, ...] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._needed(console, options) <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        for count in range(1, len(self.lesser) + 1):
            narrow = self._without(self.lesser[:count])
            if narrow._needed(console, options) <= options.max_width:
                yield narrow
                return
        yield Text(str(self.title or ""), "bold")
        columns = [(Text(str(column.header)), list(column.cells)) for column in self.columns]
        for name, *cells in zip(*(cells for _, cells in columns), strict=True):
            yield Padding(_text(name), (0, 0, 0, 2))
            facts = [
                Text(" ").join([header, text])
                for (header, _), text in zip(columns[1:], map(_text, cells), strict=True)
                if text
            ]
            yield Padding(Text(", ").join(facts), (0, 0, 0, 4))
        yield Text()

    def _without(self, headers: Sequence[str]) -> "_OpenTable":
        """Returns a table with some columns left out, which it names."""
        kept = [column for column in self.columns if column.header not in headers]
        table = _opened(f"{self.title}; in wider terminals: {', '.join(headers)}")
        for each in kept:
            table.add_column(
                each.header,
                justify=each.justify,
                no_wrap=each.no_wrap,
                overflow=each.overflow,
                min_width=each.min_width,
            )
        for cells in zip(*(column.cells for column in kept), strict=True):
            table.add_row(*cells)
        return table

    def _needed(self, console: Console, options: ConsoleOptions) -> int:
        unlimited, needed = options.update(max_width=10_000), 1
        for column in self.columns:
            cells = [column.header, *column.cells]
            width = measure_renderables(console, unlimited, cells).maximum
            needed += 3 + (width if column.no_wrap else min(width, column.min_width or _WRAPPED))
        return needed


def _opened(title: str) -> _OpenTable:
    return _OpenTable(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")


def open_table(
    title: str,
    left: Iterable[str],
    right: Iterable[str],
    last: Iterable[str] = (),
    *,
    lesser: Sequence[str] = (),
) -> Table:
    """Opens a table: columns aligned to the left, to the right, and wrapped ones.

    Where it is too wide, those that are ``lesser`` are left out, from the first on.
    """
    table = _opened(title)
    table.lesser = tuple(lesser)
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    for name in last:
        table.add_column(name, overflow="fold")
    return table


def _text(cell: RenderableType) -> Text:
    return cell if isinstance(cell, Text) else Text.from_markup(str(cell))


def print_lines(console: Console, *lines: str) -> None:
    """Prints lines as they are: without markup, and however long."""
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def optional(value: float | None, style: str) -> str:
    """Formats a value; None becomes an empty cell."""
    return "" if value is None else format(value, style)
