"""``doctor``: tells what works on this machine, by trying it."""

import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from exporter import plugins
from exporter.commands.environment import find_machine, find_packages, find_places
from exporter.datasets import NO_DATA
from exporter.disk import scratch_folder
from exporter.errors import InputError, PluginError, RecipeError, brief
from exporter.formats import FORMATS
from exporter.formats.base import Artifact, ExportOptions, Format, measure
from exporter.formats.variants import FLOAT32
from exporter.isolation import ChildError, call_in_child
from exporter.output import REFERENCE_FILE
from exporter.progress import Logged, Progress
from exporter.report.diagnosis import Diagnosis, Package, Trial
from exporter.targets import TARGETS
from exporter.verification.reference import Reference
from exporter.version import __version__

_CONVERTERS = {"tensorflow": "TensorFlow", "keras": "Keras"}
"""Modules without which nothing is converted, and their names in sentences."""

_NO_MODULE = re.compile(r"No module named '(\w+)")


def doctor(*, progress: Progress | None = None) -> Diagnosis:
    """Tells what works on this machine: versions, formats and targets, processor, room.

    A tiny Keras model is converted to every format, and each artifact is run in its runtime and
    compared with the model, all in processes of their own, for a library may crash. Without
    TensorFlow, the runtimes are loaded alone.

    Args:
        progress: Is told what goes on; by default it is logged.

    Raises:
        DiskError: If a disk is full.
    """
    packages = find_packages({fmt.extra.name for fmt in FORMATS.values()})
    formats = []
    with (
        (progress or Logged()).track("Trying formats", len(FORMATS)) as advance,
        scratch_folder() as scratch,
    ):
        for number, (name, fmt) in enumerate(FORMATS.items()):
            advance(number, name)
            formats.append(_try_format(fmt, packages, scratch))
        advance(len(FORMATS), "done")
    found = _try_plugins()
    return Diagnosis(
        __version__,
        find_machine(),
        find_places(),
        packages,
        tuple(formats),
        tuple(map(_look_for_target, TARGETS)),
        found,
        tuple(_advice(packages)),
        _installation(packages),
    )


def _try_format(fmt: Format, packages: Sequence[Package], scratch: Path) -> Trial:
    try:
        fmt.require_extra()
    except RecipeError as error:
        return Trial(fmt.name, "missing", str(error))
    lacking = [told for module, told in _CONVERTERS.items() if find_spec(module) is None]
    if lacking:
        return _try_runtime(fmt, packages, lacking[0])
    return _try_artifact(fmt, packages, scratch / fmt.name)


def _try_artifact(fmt: Format, packages: Sequence[Package], folder: Path) -> Trial:
    folder.mkdir()
    reference = folder.parent / REFERENCE_FILE
    job = {"format": fmt.name, "path": str(_path(fmt, folder)), "reference": str(reference)}
    try:
        # The server that runs a SavedModel has TensorFlow as well.
        call_in_child(f"{__name__}:_convert_here", job, ("tensorflow",))
    except ChildError as error:
        if module := _missing(str(error), packages):
            return _try_runtime(fmt, packages, module)
        return Trial(fmt.name, "fails", f"It cannot be converted here: {brief(error)}")
    path = _path(fmt, folder)
    artifact = Artifact(fmt.name, FLOAT32, path, *measure(path), (), ())
    verdict = Reference.load(reference).verify(artifact, folder)
    if verdict.passed:
        return Trial(fmt.name, "works", f"in {', '.join(fmt.backends)}")
    if module := _missing(verdict.error or "", packages):
        return Trial(fmt.name, "missing", f"It is converted, but not run here: no {module}.")
    reason = verdict.error or "it predicts something else than Keras."
    return Trial(fmt.name, "fails", f"It is converted, but does not run here: {reason}")


def _try_plugins() -> tuple[Trial, ...]:
    """Makes the tables that other packages add to, in a process of its own."""
    if not plugins.are_installed():
        return ()
    try:
        found = call_in_child(f"{__name__}:_find_plugins_here", {}, ("tensorflow",))
    except ChildError as error:
        return (Trial("entry points", "fails", f"They cannot be read: {error}"),)
    return tuple(
        Trial(package, "fails" if fault else "works", fault or f"{name}, in {group}")
        for group, name, package, fault in found
    )


def _try_runtime(fmt: Format, packages: Sequence[Package], lacking: str) -> Trial:
    """Loads the runtime of a format that is not converted here, because something is lacking."""
    told = f"not converted here: {lacking} is missing"
    try:
        call_in_child(f"{__name__}:_load_here", {"modules": fmt.runtime})
    except ChildError as error:
        if module := _missing(str(error), packages):
            also = "" if module == lacking.lower() else f", and so is its runtime, {module}"
            return Trial(fmt.name, "missing", f"{told}{also}.")
        return Trial(fmt.name, "fails", f"{told}, and its runtime cannot be loaded: {brief(error)}")
    return Trial(
        fmt.name, "missing", f"{told}. Its runtime loads: 'verify DIR' proves artifacts of a run."
    )


def _missing(error: str, packages: Sequence[Package]) -> str | None:
    """Returns the module that an error tells of, if its package is known not to be installed."""
    match = _NO_MODULE.search(error)
    absent = {p.name.replace("-", "_") for p in packages if p.installed is None}
    return match[1] if match and match[1] in absent else None


def _path(fmt: Format, folder: Path) -> Path:
    return folder / f"model{fmt.suffix}"


def _convert_here(job: dict[str, Any]) -> None:
    """Converts the tiny model in this process, and stores its predictions once, for ``doctor``."""
    import keras

    from exporter.graph.fitting import fitted
    from exporter.graph.network import Network
    from exporter.lowrank.engine import Compressed
    from exporter.options.scale import AUTO
    from exporter.verification.verifier import Verifier

    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Conv2D(4, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(3, bias_initializer="normal", name="scores"),
    ]
    model = keras.Sequential([keras.Input((8, 8, 1), name="image"), *layers])
    network, reference = Network.of(model), Path(job["reference"])
    FORMATS[job["format"]].export(network, Path(job["path"]), ExportOptions())
    if not reference.exists():  # The seed gives the model the same weights each time.
        dataset = fitted(NO_DATA, network, AUTO)
        verifier = Verifier(Compressed.of(network), dataset, folder=reference.parent)
        verifier.stored_reference(exact=True).save(reference)


def _find_plugins_here(job: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Makes the tables that other packages add to in this process, for ``doctor``."""
    del job
    if all(map(find_spec, _CONVERTERS)):  # Without Keras there are no layers.
        from exporter.graph.layers import kinds
        from exporter.lowrank.factorizers import factorizers

        for table in (kinds, factorizers):
            with suppress(PluginError):  # It is in the list.
                table()
    return [(p.group, p.name, f"{p.package} {p.version}", p.fault) for p in plugins.used()]


def _load_here(job: dict[str, Any]) -> None:
    """Imports the modules of a runtime in this process, for ``doctor``."""
    for module in job["modules"]:
        import_module(module)


def _look_for_target(name: str) -> Trial:
    try:
        TARGETS[name].check()
    except InputError as error:
        return Trial(name, "missing", str(error))
    return Trial(name, "works", "")


def _advice(packages: Sequence[Package]) -> list[str]:
    if not packages:
        return ["exporter is neither installed nor in its repository: it knows no bounds."]
    python = packages[0]
    return [] if python.fits else [f"Python must be {python.wanted}: make another environment."]


def _installation(packages: Sequence[Package]) -> str | None:
    """Returns the command that gets what is missing or does not fit, but for extras."""
    wrong = [p for p in packages[1:] if not p.fits or (p.installed is None and not p.extra)]
    if not wrong:
        return None
    wanted = (f"{package.name}{package.wanted}" for package in wrong)
    return shlex.join([sys.executable, "-m", "pip", "install", *wanted])
