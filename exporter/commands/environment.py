"""Looks at what this process runs on: packages and their bounds, processor, memory, disks."""

import os
import platform
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from exporter.disk import SCRATCH, free_bytes, temporary
from exporter.output import ARTIFACTS
from exporter.report.diagnosis import Machine, Package, Place

_NAME = "exporter"
_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)(\[.*?\])?(?P<bounds>[^;]*)(;.*extra == ['\"](?P<extra>\w+))?"
)
_BOUND = re.compile(r"(>=|<)(.+)")
_VERSION = re.compile(r"(\d+(?:\.\d+)*)(?:[-_.]?(dev|a|b|rc|post)(\d*))?")
_STAGES = ["dev", "a", "b", "rc", "", "post"]

_FEATURES = {
    "x86_64": {"AVX2": "avx2", "AVX512-VNNI": "avx512_vnni", "AMX": "amx_tile"},
    "aarch64": {"dot products": "asimddp", "I8MM": "i8mm"},
}
"""What integer kernels of the runtimes use, by the names in ``/proc/cpuinfo``."""

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def find_packages(extras: Iterable[str]) -> tuple[Package, ...]:
    """Returns Python and the packages that are needed, or are in some extras, with their bounds.

    The bounds are those of the repository where this is run from one, as it may be without being
    installed, otherwise those that it was installed with. Without either, nothing is returned.
    """
    declared = _declared()
    if declared is None:
        return ()
    wanted, requirements = declared
    version = platform.python_version()
    found = [Package("Python", wanted, version, fits(version, wanted))]
    known = {"", *extras}
    for match in filter(None, map(_REQUIREMENT.match, requirements)):
        name, bounds, extra = match["name"], match["bounds"].strip(), match["extra"] or ""
        if extra in known:
            installed = _installed(name)
            fit = installed is None or fits(installed, bounds)
            found.append(Package(name, bounds, installed, fit, extra))
    return tuple(found)


def _declared() -> tuple[str, list[str]] | None:
    """Returns the bounds of Python and the requirements, as metadata of packages tell them."""
    file = Path(__file__).parents[2] / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == _NAME:
            optional = project["optional-dependencies"].items()
            extra = [f"{each} ; extra == '{name}'" for name, listed in optional for each in listed]
            return project["requires-python"], [*project["dependencies"], *extra]
    try:
        found = metadata.metadata(_NAME)
    except metadata.PackageNotFoundError:
        return None
    return found["Requires-Python"], metadata.requires(_NAME) or []


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def fits(version: str, bounds: str) -> bool:
    """Tells whether a version is within bounds such as ``>=2.21,<2.22``.

    As pip has it, no version before the first of 2.22 is below 2.22.

    Raises:
        ValueError: If a bound begins with anything but ``>=`` or ``<``, or has no version.
    """
    for bound in filter(None, bounds.split(",")):
        match = _BOUND.fullmatch(bound.strip())
        if match is None:
            raise ValueError(f"A bound must be >= or < a version. Received: {bound!r}.")
        ours, theirs = _key(version), _key(match[2])
        if not (ours >= theirs if match[1] == ">=" else ours[0] < theirs[0]):
            return False
    return True


def _key(version: str) -> tuple[tuple[int, ...], int, int]:
    """Returns a value by which versions are sorted: numbers, stage, number of the stage."""
    match = _VERSION.match(version)
    if match is None:
        raise ValueError(f"A version must begin with a number. Received: {version!r}.")
    numbers = [int(each) for each in match[1].split(".")]
    while numbers and not numbers[-1]:  # 2.21 is 2.21.0.
        numbers.pop()
    return tuple(numbers), _STAGES.index(match[2] or ""), int(match[3] or 0)


def find_machine() -> Machine:
    """Returns what is known of the computer; Linux alone tells most of it."""
    machine = platform.machine().lower()
    machine = _MACHINES.get(machine, machine)
    facts = _facts(Path("/proc/cpuinfo"))
    listed = facts.get("flags", facts.get("Features"))
    features = {
        name: None if listed is None else flag in listed.split()
        for name, flag in _FEATURES.get(machine, {}).items()
    }
    affinity = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return Machine(
        f"{platform.system()} {machine}",
        facts.get("model name") or platform.processor() or machine,
        affinity or 1,
        features,
        free_memory(),
    )


def free_memory() -> int | None:
    """Returns the free bytes of the machine, or of the container if it has fewer."""
    kilobytes = _facts(Path("/proc/meminfo")).get("MemAvailable")
    if kilobytes is None:
        return None
    free = 1024 * int(kilobytes.split()[0])
    try:
        limit, used = (
            Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current")
        )
    except OSError:  # No container, or one of another kind.
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - int(used)))


def _facts(file: Path) -> dict[str, str]:
    """Reads a file with lines of a name, a colon and a value; the first of a name counts."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:  # Not Linux.
        return {}
    found: dict[str, str] = {}
    for name, _, value in (line.partition(":") for line in lines):
        found.setdefault(name.strip(), value.strip())
    return found


def find_places() -> tuple[Place, ...]:
    """Returns where runs write by default, and what is free there."""
    scratch = temporary()
    # The command line has a folder of its own in it.
    scratch = scratch.parent if scratch.name.startswith(SCRATCH) else scratch
    uses = {"artifacts and cache": ARTIFACTS.absolute(), "temporary files": scratch}
    return tuple(Place(use, path, free_bytes(path)) for use, path in uses.items())
