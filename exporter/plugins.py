"""What other installed packages add to the tables of formats, layer kinds and factorizers.

They name it by entry points, as docs/guides/extend.md tells. What cannot be used is left out of its
table and noted, so that ``doctor`` can list it; anything else refuses to go on.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporter.errors import PluginError, brief

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

FORMATS = "exporter.formats"
LAYERS = "exporter.layers"
FACTORIZERS = "exporter.factorizers"


@dataclass(frozen=True)
class Plugin:
    """An entry point of another package.

    Attributes:
        group: The table that it adds to.
        name: Its name within the group.
        package: The distribution that it came with.
        version: Of the distribution.
        fault: What keeps it from being used, and the way out; empty if nothing does.
    """

    group: str
    name: str
    package: str
    version: str
    fault: str = ""


_used: dict[tuple[str, str, str], Plugin] = {}


def extend(group: str, add: Callable[[Any], None]) -> None:
    """Adds what other packages have for a table.

    Args:
        group: The table.
        add: Is called with each object that an entry point names, and adds it to the table; raises
            a TypeError or ValueError if it cannot.
    """
    for package, version, entry in _entries(group):
        try:
            add(entry.load())
            fault = ""
        except (Exception, SystemExit) as error:  # A module may raise whatever it wants.
            fault = (
                f"Package {package} {version} adds to {group} by its entry point '{entry.name} = "
                f"{entry.value}', which must be importable, of the type that the group takes, and "
                f"of a new name. Received: {type(error).__name__}: {brief(error)} Upgrade the "
                f"package, or run: {sys.executable} -m pip uninstall {package}"
            )
        _used[group, package, entry.name] = Plugin(group, entry.name, package, version, fault)


def are_installed() -> bool:
    """Tells whether another package adds to any table."""
    return any(map(_entries, (FORMATS, LAYERS, FACTORIZERS)))


def _entries(group: str) -> "list[tuple[str, str, EntryPoint]]":
    """Returns name and version of the packages with their entry points, always in one order."""
    # Imported here, for it takes longer than the modules of this package.
    from importlib.metadata import entry_points

    found = [
        (str(e.dist.name), str(e.dist.version), e) for e in entry_points(group=group) if e.dist
    ]
    return sorted(found, key=lambda each: (each[0], each[2].name))


def used(*groups: str) -> list[Plugin]:
    """Returns the plugins of groups, or of all, whose tables have been made."""
    return [plugin for plugin in _used.values() if not groups or plugin.group in groups]


def check(*groups: str) -> None:
    """Raises a PluginError if a plugin of groups, or of any, whose tables were made has a fault."""
    if fault := next((plugin.fault for plugin in used(*groups) if plugin.fault), ""):
        raise PluginError(fault)


def require_new(what: str, taken: Any) -> None:
    """Raises a ValueError if something in a table, not None, has a name or a class already."""
    if taken is not None:
        kind = taken if isinstance(taken, type) else type(taken)
        raise ValueError(f"{what} is taken by {kind.__module__}.{kind.__qualname__}")
