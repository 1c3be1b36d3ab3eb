"""What works on this machine, as dataclasses, and how it is printed."""

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from exporter.report.tables import open_table
from exporter.screen import fits_screen

WIDTH = 80
"""Columns, on a wider terminal too: reports of faults are pasted elsewhere."""

_STYLES = {"works": "green", "missing": "yellow", "fails": "bold red"}


@dataclass(frozen=True)
class Package:
    """A distribution that is used, or Python itself.

    Attributes:
        wanted: The versions that are supported, as a requirement bounds them.
        installed: The version that is there; None if none is.
        fits: Whether the version that is there is supported; True if none is there.
        extra: The extra of this package that has it; empty if it is always needed.
    """

    name: str
    wanted: str
    installed: str | None
    fits: bool
    extra: str = ""


@dataclass(frozen=True)
class Trial:
    """What came of trying a format, a target or a plugin.

    Attributes:
        state: Whether it works, something is not installed that it needs, or it fails all the same.
        told: What was done, what is missing and how to get it, or the error.
    """

    name: str
    state: Literal["works", "missing", "fails"]
    told: str


@dataclass(frozen=True)
class Machine:
    """The computer.

    Attributes:
        features: Whether the processor has what makes artifacts fast; None if that is unknown.
        memory: Bytes of memory that are free; None if that is unknown.
    """

    system: str
    processor: str
    cores: int
    features: Mapping[str, bool | None]
    memory: int | None


@dataclass(frozen=True)
class Place:
    """A folder where runs write, and the bytes that are free there."""

    use: str
    path: Path
    free: int


@fits_screen
@dataclass(frozen=True)
class Diagnosis:
    """What works on this machine.

    Attributes:
        packages: Python and the packages that are used.
        plugins: What other packages add.
        advice: What else to do, as sentences.
        install: The command that installs packages that are missing or do not fit; None if there
            are none.
    """

    version: str
    machine: Machine
    places: tuple[Place, ...]
    packages: tuple[Package, ...]
    formats: tuple[Trial, ...]
    targets: tuple[Trial, ...]
    plugins: tuple[Trial, ...]
    advice: tuple[str, ...]
    install: str | None

    @property
    def passed(self) -> bool:
        """Whether all that is installed fits and works."""
        trials = (*self.formats, *self.targets, *self.plugins)
        fit = all(package.fits for package in self.packages)
        return fit and all(trial.state != "fails" for trial in trials)


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Prints what works on this machine, in 80 columns at most."""
    width = min(WIDTH, console.width)
    machine = diagnosis.machine
    known = {None: "unknown", True: "yes", False: "no"}
    features = ", ".join(f"{name} {known[there]}" for name, there in machine.features.items())
    memory = "unknown" if machine.memory is None else _gigabytes(machine.memory)
    lines = [
        f"exporter {diagnosis.version} on {machine.system}",
        f"Processor: {machine.processor}, cores: {machine.cores}",
        *([f"Processor's features: {features}"] if features else []),
        f"Free memory: {memory}",
        *(
            f"Free for {each.use}: {_gigabytes(each.free)} ({each.path})"
            for each in diagnosis.places
        ),
    ]
    for line in lines:
        console.print(Text(line), width=width)
    console.print()
    table = open_table("Packages", ["package", "installed", "wanted"], [], ["finding"])
    for package in diagnosis.packages:
        finding = "" if package.fits else "does not fit"
        if package.installed is None:
            finding = f"not installed (extra {package.extra})" if package.extra else "missing"
        style = "" if package.installed and package.fits else "yellow"
        wanted = package.wanted
        table.add_row(package.name, package.installed or "", Text(wanted), Text(finding, style))
    console.print(table, width=width)
    _print_trials("Formats: converted, run, and compared with Keras", diagnosis.formats, console)
    _print_trials("Targets", diagnosis.targets, console)
    if diagnosis.plugins:
        _print_trials("Plugins, of other packages", diagnosis.plugins, console)
    for advice in diagnosis.advice:
        console.print(Text(advice, "yellow"), width=width)
    if diagnosis.install is not None:
        console.print(Text("To install what is missing or does not fit:"), width=width)
        console.print(Text(_command(diagnosis.install, width), "yellow"), soft_wrap=True)
    ending = "All that is installed works." if diagnosis.passed else "NOT ALL THAT IS HERE WORKS."
    console.print(Text(ending, "green" if diagnosis.passed else "bold red"), width=width)


def _print_trials(title: str, trials: Iterable[Trial], console: Console) -> None:
    table = open_table(title, ["name", "state"], [], ["told"])
    for trial in trials:
        table.add_row(trial.name, Text(trial.state, _STYLES[trial.state]), Text(trial.told))
    console.print(table, width=min(WIDTH, console.width))


def _command(text: str, width: int) -> str:
    """Wraps a command so that a shell takes its lines together; no word is cut."""
    lines = textwrap.wrap(
        text, width - 4, break_long_words=False, break_on_hyphens=False, subsequent_indent="  "
    )
    return " \\\n".join(lines)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
