"""Two stations of the run on their own: writing artifacts, and verifying one."""

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from exporter.card import ModelCard
from exporter.data import Dataset, load_dataset
from exporter.data.metrics import snr_db
from exporter.datasets import NO_DATA
from exporter.errors import DataError, InputError
from exporter.formats import FORMATS
from exporter.formats.base import Artifact, ExportOptions, Format, describe
from exporter.formats.cards import check_card
from exporter.formats.variants import FLOAT32, Variant
from exporter.graph.fitting import fitted
from exporter.graph.runner import KerasRunner
from exporter.graph.signature import Signature
from exporter.graph.walk import check_rewritable
from exporter.isolation import ChildError
from exporter.lowrank.calibration import Calibration, calibration_from
from exporter.lowrank.engine import Compressed
from exporter.lowrank.ranks.policy import RankPlan
from exporter.output import staged_output
from exporter.quantization.gauge import Gauged, GaugeReport, regauge
from exporter.quantization.granularity import Trial, choose, to_try
from exporter.quantization.simulation import Scheme
from exporter.recipe.recipe import Recipe
from exporter.verification.parity import execute
from exporter.verification.probes import Probe, predict
from exporter.verification.verifier import ConversionVerdict, Verifier

RANGE_SAMPLES = 2000
"""Of the calibration samples, how many ranges of activations are observed on at the most."""


def export(
    model: Any,
    directory: str | Path,
    formats: Sequence[str] = ("tflite",),
    *,
    data: Dataset | str = NO_DATA,
    card: ModelCard | None = None,
    force: bool = False,
    **choices: Any,
) -> tuple[Artifact, ...]:
    """Converts a model, compressed or not, without verifying it; see ``verify`` and ``run``.

    Args:
        model: A built Keras model, or what ``compress`` returned.
        directory: Folder to write to; made if it does not exist.
        formats: Names of formats; ``"all"`` stands for every one that is installed.
        data: What ``load_dataset`` returned or takes; variants that are calibrated need its
            training part.
        card: What the artifacts tell of the model, such as names of its classes.
        force: Whether artifacts that are there already are replaced.
        choices: Other fields of ``Recipe``: ``opset``, ``quantize``, ``io_type``, ``granularity``,
            ``ranges``, ``gauge``, ``calibration``, ``seed``.

    Returns:
        The artifacts, in the order of the formats and of their variants.

    Raises:
        InputError: If an argument cannot be used, a format's packages are not installed, or an
            artifact is there and ``force`` is False.
        ConversionError: If a converter fails; nothing is written then.
    """
    recipe = Recipe(formats=tuple(formats), **choices)
    chosen = [(FORMATS[name], variant) for name, variant in recipe.artifacts]
    for fmt, _ in chosen:
        fmt.require_extra()
    compressed = _as_compressed(model)
    keras_model = compressed.model
    signature = Signature(keras_model)
    card = card or ModelCard()
    check_card(card, signature.inputs, signature.outputs)
    dataset = fitted(load_dataset(data) if isinstance(data, str) else data, keras_model)
    samples = quantization_samples(recipe, keras_model, dataset)
    target = Path(directory)
    gauges = Gauges(recipe, compressed, samples)
    artifacts = []
    with (
        staged_output(target, [artifact_name(*each) for each in chosen], force=force) as staging,
        tempfile.TemporaryDirectory(prefix="exporter-") as scratch,
    ):
        for fmt, variant in chosen:
            path = staging / artifact_name(fmt, variant)
            write_artifact(
                fmt,
                gauges.model(fmt.variant(variant)),
                path,
                export_options(recipe, fmt, variant, samples, card),
                granularity=recipe.granularity,
                samples=samples,
                scratch=Path(scratch),
            )
            artifact = describe(fmt, variant, path, keras_model)
            artifacts.append(replace(artifact, path=target / path.name))
    return tuple(artifacts)


class Gauges:
    """The factors that variants with integer weights are made of; made when first asked for."""

    def __init__(
        self, recipe: Recipe, compressed: Compressed, calibration: Calibration | None
    ) -> None:
        """Takes what they are made of.

        Args:
            recipe: Says whether, and for what.
            compressed: The model.
            calibration: What ``quantization_samples`` returned; without it there are none.
        """
        self._recipe, self._compressed, self._calibration = recipe, compressed, calibration
        self._made: dict[Scheme, Gauged | None] = {}

    def model(self, variant: Variant) -> Any:
        """Returns the Keras model that a variant is made of."""
        gauged = self._of(variant)
        return (gauged.compressed if gauged else self._compressed).model

    def report(self, variant: Variant) -> GaugeReport | None:
        """Returns what was chosen for a variant; None if it is made of the factors as cut."""
        gauged = self._of(variant)
        return gauged.report if gauged else None

    def _of(self, variant: Variant) -> Gauged | None:
        if not self._recipe.gauge or not variant.has_integers:
            return None
        scheme: Scheme = "static" if variant.calibrated else "dynamic"
        if scheme not in self._made:
            self._made[scheme] = self._make(scheme)
        return self._made[scheme]

    def _make(self, scheme: Scheme) -> Gauged | None:
        recipe, compressed = self._recipe, self._compressed
        if self._calibration is None or not compressed.factors:
            return None
        gauged = regauge(
            compressed,
            self._calibration,
            scheme,
            granularity="channel" if recipe.granularity == "channel" else "tensor",
            seed=recipe.seed,
        )
        return gauged if gauged.report.layers else None


def quantization_samples(recipe: Recipe, model: Any, dataset: Dataset) -> Calibration | None:
    """Returns the samples that artifacts are quantized by: of the training part, if there is one.

    None where no variant has integers, which nothing is read for.

    Raises:
        DataError: If a variant is calibrated, and there is no training part.
    """
    if not recipe.has_integers:
        return None
    calibration = calibration_from(model, dataset, min(recipe.calibration, RANGE_SAMPLES))
    if calibration is None and recipe.calibrates:
        raise DataError(
            f"quantize {', '.join(recipe.quantize)} calibrates ranges of activations on a training "
            f"part. Received: data {dataset.name!r} without one. Name data that have x_train, or x."
        )
    return calibration


def export_options(
    recipe: Recipe, fmt: Format, variant: str, samples: Calibration | None, card: ModelCard
) -> ExportOptions:
    """Returns how a recipe has a variant exported."""
    observed = samples if fmt.variant(variant).calibrated else None
    return ExportOptions(
        variant=variant,
        opset=recipe.opset,
        io_type=recipe.io_type,
        ranges=recipe.ranges,
        calibration=list(observed.batches()) if observed else (),
        card=card,
    )


def verify(
    artifact: Artifact | str | Path,
    model: Any,
    *,
    data: Dataset | str = NO_DATA,
    atol: float | None = None,
    rtol: float | None = None,
    seed: int = 0,
) -> ConversionVerdict:
    """Holds an artifact against the model that it was made from, in the artifact's own runtime.

    Args:
        artifact: What ``export`` returned, or the path of an artifact of the same model.
        model: The Keras model, or what ``compress`` returned: its plan is proven as well.
        data: What ``load_dataset`` returned or takes; ``"none"`` compares on random inputs.
        atol: Absolute tolerance; with ``rtol`` None as well, both are derived.
        rtol: Relative tolerance.
        seed: Of the random inputs.

    Raises:
        InputError: If the model, the data or the artifact's name cannot be used.
    """
    recipe = Recipe(atol=atol, rtol=rtol, seed=seed)
    compressed = _as_compressed(model)
    if not isinstance(artifact, Artifact):
        artifact = _described(Path(artifact), compressed.model)
    FORMATS[artifact.format].require_extra()
    dataset = load_dataset(data) if isinstance(data, str) else data
    with tempfile.TemporaryDirectory(prefix="exporter-") as scratch:
        verifier = Verifier(
            compressed,
            fitted(dataset, compressed.model),
            folder=Path(scratch),
            atol=recipe.atol,
            rtol=recipe.rtol,
            seed=recipe.seed,
        )
        return verifier.verify(artifact)


def write_artifact(
    fmt: Format,
    model: Any,
    path: Path,
    options: ExportOptions,
    *,
    granularity: str,
    samples: Calibration | None,
    scratch: Path,
) -> tuple[Trial, ...]:
    """Exports a model at a granularity, or at the better one of both.

    Args:
        fmt: The format.
        model: The Keras model.
        path: What is written; must not exist.
        options: All but the granularity.
        granularity: ``"tensor"``, ``"channel"``, or ``"auto"``; see ``Recipe``.
        samples: What ``quantization_samples`` returned; its first batch measures the error, and
            never what is reported on.
        scratch: Folder for what is not kept.

    Returns:
        What was tried, the one that was written first; nothing where weights are no integers.

    Raises:
        ConversionError: If the converter fails.
    """
    if not fmt.variant(options.variant).has_integers:
        fmt.export(model, path, options)
        return ()
    judge = None if samples is None else _Judge(fmt, options.variant, model, samples)
    trials: dict[Trial, Path] = {}
    for each in to_try(granularity):
        file = scratch / f"{each}-{path.name}"
        fmt.export(model, file, replace(options, granularity=each))
        ratio = None if judge is None else judge.snr(file)
        trials[Trial(each, fmt.size(file), ratio)] = file
    chosen = choose(list(trials))
    shutil.move(trials[chosen], path)
    return (chosen, *(trial for trial in trials if trial is not chosen))


class _Judge:
    """Measures artifacts of one model on the first batch of calibration data."""

    def __init__(self, fmt: Format, variant: str, model: Any, samples: Calibration) -> None:
        arrays = {name: np.asarray(array) for name, array in next(samples.batches()).items()}
        self._fmt, self._variant, self._model = fmt, variant, model
        self._probe = Probe("calibration", arrays, len(next(iter(arrays.values()))))
        self._expected = predict(KerasRunner(model), self._probe)

    def snr(self, path: Path) -> float:
        """Returns that of the worst output, in decibels; minus infinity if it cannot be run."""
        artifact = describe(self._fmt, self._variant, path, self._model)
        try:
            limits = dict.fromkeys(self._fmt.backends)
            outputs = execute(artifact, [self._probe], path.parent, limits)
        except ChildError:  # The verdict will tell of it, if this one is chosen.
            return -math.inf
        actual = outputs[self._fmt.backends[0]][self._probe.name]
        return min(snr_db(actual[name], values) for name, values in self._expected.items())


def artifact_name(fmt: Format, variant: str = FLOAT32) -> str:
    """Returns the name of an artifact in the output folder."""
    marker = "" if variant == FLOAT32 else f"-{variant}"
    return f"model{marker}{fmt.suffix}" if fmt.suffix else f"{fmt.name}{marker}"


def _as_compressed(model: Any) -> Compressed:
    if isinstance(model, Compressed):
        return model
    check_rewritable(model)
    return Compressed(model, RankPlan(()), {})


def _described(path: Path, model: Any) -> Artifact:
    fmt = next((fmt for fmt in FORMATS.values() if fmt.recognizes(path)), None)
    if fmt is None:
        raise InputError(
            f"An artifact is a folder or file of the formats {', '.join(FORMATS)}. "
            f"Received: {str(path)!r}{'' if path.exists() else ', which does not exist'}."
        )
    names = [variant.name for variant in fmt.variants]
    marker = path.stem.rpartition("-")[2]
    return describe(fmt, marker if marker in names else FLOAT32, path, model)
