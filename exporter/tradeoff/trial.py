"""One trial of a sweep: a run in a process and a folder of its own."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporter.data.metrics import Metric, loss_of
from exporter.errors import InputError
from exporter.formats.base import measure
from exporter.inputs import made_of
from exporter.output import MANIFEST
from exporter.recipe import Recipe
from exporter.report.manifest import read_manifest, what_lacks
from exporter.tradeoff.front import UNCOMPRESSED, Point
from exporter.version import __version__

RECIPE_FILE = "trial.json"
WORDS_FILE = "trial.log"

_RUN = (
    "import sys; from exporter.isolation import die_with; die_with(int(sys.argv[1])); "
    "from exporter.cli import main; sys.exit(main(sys.argv[2:]))"
)


@dataclass(frozen=True)
class Trial:
    """A run of a sweep.

    Attributes:
        goal: What its ranks are chosen by, in words.
        recipe: Of the run; its output is the folder of the trial.
    """

    goal: str
    recipe: Recipe

    @classmethod
    def of(cls, recipe: Recipe, goal: str, inputs: str, parent: Path) -> "Trial":
        """Makes a trial whose folder is named after all that its result depends on.

        Args:
            recipe: With the goal of the trial.
            goal: The same in words.
            inputs: Digest of the model and the data; see ``digest_of_inputs``.
            parent: Folder of all trials.
        """
        export = replace(recipe.export, output=None, force=False, report=False, mlflow=None)
        content = [Recipe(**{**vars(recipe), "export": export}).to_dict(), inputs, __version__]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
        name = re.sub(r"[^A-Za-z0-9.]+", "-", goal)[:40]
        export = replace(export, output=str(parent / f"{name}-{key}"), force=True)
        return cls(goal, Recipe(**{**vars(recipe), "export": export}))

    @property
    def folder(self) -> Path:
        """Where its run is, or will be."""
        return Path(self.recipe.export.output or "")

    @property
    def finished(self) -> bool:
        """Whether its run is there, and whole; a damaged one is carried out again."""
        try:
            return (self.folder / MANIFEST).exists() and not self._manifest["partial"]
        except (InputError, KeyError):
            return False

    @property
    def _manifest(self) -> dict[str, Any]:
        return read_manifest(self.folder / MANIFEST)

    def command(self) -> list[str]:
        """Writes its recipe beside its folder; returns the command that carries it out.

        The process ends with the one that started it.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(self.recipe.to_json())
        run = ["run", "--recipe", str(self.file), "--quiet"]
        return [sys.executable, "-P", "-c", _RUN, str(os.getpid()), *run]

    @property
    def file(self) -> Path:
        """File of its recipe."""
        return self._beside(RECIPE_FILE)

    @property
    def words(self) -> Path:
        """File of what its process prints."""
        return self._beside(WORDS_FILE)

    def _beside(self, name: str) -> Path:
        return self.folder.with_name(f"{self.folder.name}.{name}")

    def failure(self, code: int) -> str | None:
        """Returns why its process ended without a run; None if the run is there."""
        if code in (0, 1) and self.finished:
            return None
        words = self.words.read_text(errors="replace").strip().rpartition("\n")[2]
        return words.removeprefix("exporter: error: ") or f"it ended with exit code {code}"

    @property
    def points(self) -> list[Point]:
        """Its artifacts that were accepted, and the uncompressed network in their variants.

        Raises:
            InputError: If its manifest is damaged.
        """
        try:
            return list(self._points())
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{str(self.folder / MANIFEST)!r} is not the manifest of a trial: "
                f"{what_lacks(error)} Remove the folder, and sweep again."
            ) from error

    @property
    def rejected(self) -> list[str]:
        """Format and variant of its artifacts that were not accepted."""
        found = self._manifest["artifacts"]
        return [f"{a['format']} {a['variant']}" for a in found if not a["accepted"]]

    def _points(self) -> Iterator[Point]:
        outputs = {each["output"]: each for each in self._manifest["compression"]["outputs"]}
        before, after = (self._manifest["totals"][when]["macs"] for when in ("before", "after"))
        for found in self._manifest["artifacts"]:
            file, conversion, other = found["file"], found["conversion"], found["alternative"]
            kind = (found["format"], found["variant"], str(self.folder))
            cost = found["target_cost"]
            if found["accepted"]:
                loss, metric = _scores(conversion["standings"], outputs)
                yield Point(
                    self.goal,
                    *kind,
                    path=str(self.folder / file["path"]),
                    size=file["size"],
                    latency=found["latency"] and found["latency"]["compressed"]["p50"],
                    loss=loss,
                    metric=metric,
                    macs=after,
                    instructions=_value(cost, "artifact"),
                )
            if other and self.goal != UNCOMPRESSED:
                loss, metric = _scores(other["standings"], outputs)
                yield Point(
                    UNCOMPRESSED,
                    *kind,
                    path=None,
                    size=other["size"],
                    latency=other["latency"]["p50"],
                    loss=loss,
                    metric=metric,
                    macs=before,
                    instructions=_value(cost, "alternative"),
                )


def _value(cost: Mapping[str, Any] | None, whose: str) -> float | None:
    found = cost and cost[whose]
    return found["value"] if found else None


def _scores(
    standings: Mapping[str, Any], outputs: Mapping[str, Any]
) -> tuple[float, Metric | None]:
    """Returns the loss of the worst output, and the metric of the first that is labelled."""
    losses, metrics = [], []
    for name, standing in standings.items():
        if standing["metric"] is not None:
            metrics.append(made_of(Metric, standing["metric"]))
            losses.append(loss_of(made_of(Metric, outputs[name]["baseline"]), metrics[-1]))
        elif standing["top1_agreement"] is not None:
            losses.append(1 - standing["top1_agreement"])
        else:  # An infinite ratio is null.
            losses.append(0.0 if standing["snr_db"] is None else 10 ** (-standing["snr_db"] / 20))
    return max(losses), next(iter(metrics), None)


def digest_of_inputs(recipe: Recipe) -> str:
    """Returns a digest of the files that a recipe names: the model, the data, and code."""
    source = recipe.source
    names = [source.model, source.data, *source.imports, recipe.export.labels]
    paths = [Path(name) for name in names if name and Path(name).exists()]
    return hashlib.sha256("".join(measure(path)[1] for path in paths).encode()).hexdigest()
