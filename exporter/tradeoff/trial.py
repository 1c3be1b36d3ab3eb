"""One trial of a sweep: a run in a process and a folder of its own."""

import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporter.data.metrics import Metric
from exporter.errors import InputError
from exporter.formats.base import measure
from exporter.inputs import made_of
from exporter.output import MANIFEST
from exporter.recipe import Recipe
from exporter.report.manifest import read_manifest, what_lacks
from exporter.tradeoff.front import UNCOMPRESSED, Point
from exporter.verification.verdict import Standing
from exporter.version import __version__

RECIPE_FILE = "trial.json"
WORDS_FILE = "trial.log"

_METRICS = ("metric", "baseline")
"""Fields of a ``Standing`` that are metrics."""

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
        before, after = (self._manifest["totals"][when]["macs"] for when in ("before", "after"))
        for found in self._manifest["artifacts"]:
            file, conversion, other = found["file"], found["conversion"], found["alternative"]
            kind = (found["format"], found["variant"], str(self.folder))
            cost = found["target_cost"]
            if found["accepted"]:
                scores = _scores(conversion["standings"], found["validation"])
                yield Point(
                    self.goal,
                    *kind,
                    path=str(self.folder / file["path"]),
                    size=file["size"],
                    latency=found["latency"] and found["latency"]["compressed"]["p50"],
                    **scores,
                    macs=after,
                    instructions=_value(cost, "artifact"),
                )
            if other and self.goal != UNCOMPRESSED:
                scores = _scores(other["standings"], other["validation"])
                yield Point(
                    UNCOMPRESSED,
                    *kind,
                    path=None,
                    size=other["size"],
                    latency=other["latency"]["p50"],
                    **scores,
                    macs=before,
                    instructions=_value(cost, "alternative"),
                )


def _value(cost: Mapping[str, Any] | None, whose: str) -> float | None:
    found = cost and cost[whose]
    return found["value"] if found else None


def _scores(test: Mapping[str, Any], validation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a point tells of its outputs, given how they stand on both parts of the data."""
    tested, validated = (list(map(_standing, each.values())) for each in (test, validation))
    test_loss = max(each.loss for each in tested)
    return {
        "loss": max((each.loss for each in validated), default=test_loss),
        "test_loss": test_loss,
        "metric": next((each.metric for each in tested if each.metric), None),
    }


def _standing(described: Mapping[str, Any]) -> Standing:
    metrics = {name: described[name] and made_of(Metric, described[name]) for name in _METRICS}
    if described["snr_db"] is not None:
        return made_of(Standing, {**described, **metrics})
    # JSON knows no infinite ratio.
    return replace(made_of(Standing, {**described, **metrics, "snr_db": 0.0}), snr_db=math.inf)


def digest_of_inputs(recipe: Recipe) -> str:
    """Returns a digest of the files that a recipe names: the model, the data, and code."""
    source = recipe.source
    names = [source.model, source.data, *source.imports, recipe.export.labels]
    paths = [Path(name) for name in names if name and Path(name).exists()]
    return hashlib.sha256("".join(measure(path)[1] for path in paths).encode()).hexdigest()
