"""Finds the processes that a run of the exporter has started."""

from pathlib import Path


def children_of(parent: int) -> list[int]:
    """Lists the servers of a process and their jobs, whose command line names it."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
        except OSError:  # It has ended.
            continue
        if words[2:5] == [b"-m", b"exporter.isolation", str(parent).encode()]:
            found.append(int(file.parent.name))
    return found
