"""The order of the rooms: the list at the top of docs/architecture.md, held against the imports."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = re.findall(
    r"^\d+\. `(exporter/\S+)`:", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE
)
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("exporter/**/*.py"))


def room_of(file):
    """The position in the list of the room that a file stands in."""
    (position,) = (
        number
        for number, room in enumerate(ROOMS)
        if file == room or (room.endswith("/") and file.startswith(room))
    )
    return position


def file_of(module):
    path = module.replace(".", "/")
    return next((f for f in (f"{path}.py", f"{path}/__init__.py") if f in FILES), None)


def imports_of(file):
    """The files of the package that a file imports, wherever in its text."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if file_of(name) else node.module for name in inner]
        else:
            continue
        yield from filter(None, map(file_of, names))


def test_the_list_names_every_room_once_and_nothing_else():
    assert len(ROOMS) == len(set(ROOMS))
    for room in ROOMS:
        assert (ROOT / room).exists()
    for file in FILES:
        room_of(file)


@pytest.mark.parametrize("file", FILES)
def test_no_file_imports_from_a_room_above_its_own(file):
    upward = [other for other in imports_of(file) if room_of(other) > room_of(file)]
    assert not upward


def test_no_two_files_import_each_other_however_indirectly():
    # A package's __init__ may list what its files define.
    graph = {file: set(imports_of(file)) for file in FILES}
    done, path = set(), []

    def visit(file):
        assert file not in path, " -> ".join([*path[path.index(file) :], file])
        if file not in done:
            path.append(file)
            for other in graph[file]:
                visit(other)
            path.pop()
            done.add(file)

    for file in FILES:
        visit(file)


def test_relative_imports_are_not_used():
    for file in FILES:
        tree = ast.parse((ROOT / file).read_text())
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
