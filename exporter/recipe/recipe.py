"""What a run is asked to do."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.errors import RecipeError
from exporter.formats import ALL, FORMAT_NAMES, FORMATS, VARIANT_NAMES
from exporter.formats.variants import FLOAT32, Variant
from exporter.lowrank.ranks.rank import DEFAULT_RANK, Rank, checked_rank

METHODS = ("svd", "whitened", "kfac")
CONVOLUTIONS = ("channel", "spatial", "tucker2")

GOALS = ("rank", "energy", "max_params", "max_macs", "max_size", "max_latency", "max_drop")
"""The fields that say what ranks are chosen by; one of them is given."""

TRAININGS = ("factored", "adaptive", "projected", "projected+factored")
EXPORTS_FROM = ("truncated", "updated")
DISTRIBUTIONS = ("none", "mirrored", "multiworker")

NOT_QUANTIZED = "none"
QUANTIZATIONS = (NOT_QUANTIZED, *(name for name in VARIANT_NAMES if name != FLOAT32))
IO_TYPES = (FLOAT32, "int8", "uint8")
GRANULARITIES = ("auto", "tensor", "channel")
RANGES = ("minmax", "percentile", "mse", "entropy")

OPSETS = range(13, 19)
"""ONNX operator sets that the converter can be asked for."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a run is asked to do; validated, and the same after a trip through JSON.

    Attributes:
        model: Path of a ``.keras`` or ``.h5`` file; None trains the reference MLP on ``data``.
        data: ``"digits"`` (embedded), ``"none"``, a path to ``.npz``, ``.npy`` or a folder of
            images, or a Keras data set by name.
        rank: One rank for all layers, a part of each layer's parameters between 0 and 1, a name of
            ``RANK_NAMES``, or a mapping from layer name to rank. ``DEFAULT_RANK`` where none of
            the next six is given either; None where one is.
        energy: Part of each layer's energy that is kept, between 0 and 1.
        max_params: Most parameters of the compressed model.
        max_macs: Most multiply-accumulates for one sample.
        max_size: Most bytes of each artifact.
        max_latency: Most seconds of one call, one thread, batch 1, measured in each runtime.
        max_drop: Most accuracy that may be lost on the validation data, 0 to 1.
        formats: Formats to export to, in this order. ``"all"`` stands for every one whose packages
            are installed.
        quantize: Numeric variants to export, in this order, of ``QUANTIZATIONS``; each format
            exports those that it has. ``"all"`` stands for every one.
        io_type: Element type of the inputs and outputs of variants that compute in integers.
        granularity: Whether weights are quantized with one scale a ``"tensor"`` or a ``"channel"``;
            ``"auto"`` measures both.
        ranges: How the ranges of activations are estimated from the calibration samples.
        gauge: Whether variants with integer weights are made of factors of the same products that
            lose less in integers; needs data.
        output: Folder to write to; None is ``artifacts/<model name>-rank<rank>``.
        atol: Absolute tolerance of parity, in units of the output. None, with ``rtol`` None as
            well, derives the tolerance from the float32 rounding error of the model itself.
        rtol: Relative tolerance of parity, a fraction of the reference value.
        seed: Seed of training, of random inputs, and of what is sampled in calibration.
        method: ``"svd"`` cuts by the weights alone, ``"whitened"`` by calibration data, ``"kfac"``
            by these and the loss gradient. None is ``"kfac"`` with data and ``"svd"`` without.
        cascade: Whether later layers make up for the errors of earlier ones; needs data.
        calibration: How many training samples are looked at.
        convolution: How a convolution is cut: ``"channel"`` (k x k, then 1 x 1), ``"spatial"``
            (k x 1, then 1 x k) or ``"tucker2"`` (1 x 1, k x k, 1 x 1).
        fold: Whether batch normalisations are folded into the layers before them.
        merge: Whether S is merged into U. False gives the three-layer U, S, V graph.
        finetune: Epochs of training after the cut, at the most; of each phase, where there are two.
            0 does not train.
        train: ``"factored"`` trains the factors, ``"adaptive"`` as well, after it has divided what
            the ranks take anew, by short trainings; ``"projected"`` trains the full weights at
            their truncation, ``"projected+factored"`` the one after the other.
        export_from: What the projected training hands on: the ``"truncated"`` model that it trained
            at, or the ``"updated"`` full weights, cut anew by the data.
        batch_size: Samples in a training step, of all devices together.
        learning_rate: Of Adam, at its peak; it warms up, and decays like a cosine.
        distill: Weight of the divergence from the baseline in the loss, 0 to 1; the rest is the
            task's own loss.
        temperature: That predictions are softened by when the two are compared, at least 1.
        decay: Weight of half the squared Frobenius norm of each product of factors.
        patience: Epochs without a better validation after which training stops; 0 never stops.
        resume: Whether to go on from the checkpoint of a run that was killed.
        distribute: ``"mirrored"`` trains on all devices of this machine, ``"multiworker"`` on those
            that ``TF_CONFIG`` names.
        opset: ONNX operator set.
        labels: Path of a text file with a label a line, for the output that has as many classes.
        description: What the model does, for artifacts to tell.
        force: Whether a former run in the output folder may be replaced.

    Raises:
        RecipeError: If a value is out of its range.
    """

    model: str | None = None
    data: str = "digits"
    rank: Rank | None = None
    energy: float | None = None
    max_params: int | None = None
    max_macs: int | None = None
    max_size: int | None = None
    max_latency: float | None = None
    max_drop: float | None = None
    formats: tuple[str, ...] = ("tflite",)
    quantize: tuple[str, ...] = (NOT_QUANTIZED,)
    io_type: str = FLOAT32
    granularity: str = "auto"
    ranges: str = "mse"
    gauge: bool = True
    output: str | None = None
    atol: float | None = None
    rtol: float | None = None
    seed: int = 0
    method: str | None = None
    cascade: bool = True
    calibration: int = 10_000
    convolution: str = "channel"
    fold: bool = True
    merge: bool = True
    finetune: int = 0
    train: str = "factored"
    export_from: str = "truncated"
    batch_size: int = 256
    learning_rate: float = 1e-3
    distill: float = 0.5
    temperature: float = 2.0
    decay: float = 0.0
    patience: int = 0
    resume: bool = False
    distribute: str = "none"
    opset: int = 17
    labels: str | None = None
    description: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        given = [name for name in GOALS if getattr(self, name) is not None]
        if len(given) > 1:
            raise RecipeError(f"Give one of {', '.join(GOALS)}. Received: {', '.join(given)}.")
        if not given:
            object.__setattr__(self, "rank", DEFAULT_RANK)
        if self.rank is not None:
            object.__setattr__(self, "rank", checked_rank(self.rank))
        self._check_goals()
        installed = [name for name, fmt in FORMATS.items() if not fmt.extra.missing]
        formats = _checked_names("formats", self.formats, FORMAT_NAMES, installed)
        object.__setattr__(self, "formats", formats)
        variants = _checked_names("quantize", self.quantize, QUANTIZATIONS, QUANTIZATIONS)
        if ALL in self.quantize:
            had = {quantization for name in formats for quantization in _quantizations(name)}
            variants = tuple(name for name in variants if name in had)
        object.__setattr__(self, "quantize", variants)
        self._check_variants()
        self._check_choices()
        self._check_numbers()

    def _check_goals(self) -> None:
        for name in ("max_params", "max_macs", "max_size"):
            value = getattr(self, name)
            if value is not None and (not _is_whole(value) or value < 1):
                raise RecipeError(f"{name} must be a whole number >= 1. Received: {value!r}.")
        for name, below in (("energy", 1.0), ("max_latency", math.inf), ("max_drop", 1.0)):
            value = getattr(self, name)
            if value is not None and (not _is_number(value) or not 0 < value < below):
                upper = "" if below == math.inf else f" and less than {below:g}"
                raise RecipeError(f"{name} must be more than 0{upper}. Received: {value!r}.")

    def _check_variants(self) -> None:
        """Checks that each format has one of the variants, and each variant is one of a format."""
        if self.io_type != FLOAT32 and not self.calibrates:
            raise RecipeError(
                f"io_type {self.io_type!r} needs a variant that computes in integers. "
                f"Received: quantize {', '.join(self.quantize)}."
            )
        for name in self.formats:
            had = _quantizations(name)
            if not set(had) & set(self.quantize):
                raise RecipeError(
                    f"quantize must name a variant of each format; {name} has {', '.join(had)}. "
                    f"Received: {', '.join(self.quantize)}."
                )
        for quantization in self.quantize:
            if not any(quantization in _quantizations(name) for name in self.formats):
                having = [name for name in FORMAT_NAMES if quantization in _quantizations(name)]
                raise RecipeError(
                    f"quantize {quantization!r} is a variant of the formats {', '.join(having)}. "
                    f"Received: formats {', '.join(self.formats)}."
                )

    def _check_choices(self) -> None:
        for name in ("model", "output", "labels"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise RecipeError(f"{name} must be a path as text. Received: {value!r}.")
        if self.description is not None and not isinstance(self.description, str):
            raise RecipeError(f"description must be text. Received: {self.description!r}.")
        if not isinstance(self.data, str) or not self.data:
            raise RecipeError(f"data must be a name or a path as text. Received: {self.data!r}.")
        choices: dict[str, tuple[str | None, ...]] = {
            "method": (None, *METHODS),
            "convolution": CONVOLUTIONS,
            "train": TRAININGS,
            "export_from": EXPORTS_FROM,
            "distribute": DISTRIBUTIONS,
            "io_type": IO_TYPES,
            "granularity": GRANULARITIES,
            "ranges": RANGES,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise RecipeError(
                    f"{name} must be one of {', '.join(filter(None, known))}. "
                    f"Received: {getattr(self, name)!r}."
                )
        if self.train == "adaptive" and self.rank == "full":
            raise RecipeError(
                "train 'adaptive' divides what low ranks take. Received: rank 'full', which takes "
                "more than the layers themselves. Give another rank, or a budget."
            )
        for name in ("gauge", "cascade", "fold", "merge", "resume", "force"):
            if not isinstance(getattr(self, name), bool):
                raise RecipeError(
                    f"{name} must be True or False. Received: {getattr(self, name)!r}."
                )

    def _check_numbers(self) -> None:
        for name in ("atol", "rtol"):
            value = getattr(self, name)
            if value is None:
                continue
            if not _is_number(value) or not math.isfinite(value) or value < 0:
                raise RecipeError(f"{name} must be a finite number >= 0. Received: {value!r}.")
        if not _is_whole(self.seed) or not 0 <= self.seed < 2**32:
            raise RecipeError(f"seed must be within 0 and 2**32 - 1. Received: {self.seed!r}.")
        counts = {
            "calibration": (1, "samples"),
            "finetune": (0, "epochs"),
            "batch_size": (1, "samples"),
            "patience": (0, "epochs"),
        }
        for name, (least, what) in counts.items():
            value = getattr(self, name)
            if not _is_whole(value) or value < least:
                raise RecipeError(
                    f"{name} must be a number of {what} >= {least}. Received: {value!r}."
                )
        bounds = {
            "learning_rate": (1e-12, math.inf),
            "distill": (0.0, 1.0),
            "temperature": (1.0, math.inf),
            "decay": (0.0, math.inf),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not _is_number(value) or not math.isfinite(value) or not low <= value <= high:
                upper = "" if high == math.inf else f" and at most {high:g}"
                raise RecipeError(
                    f"{name} must be a number of at least {low:g}{upper}. Received: {value!r}."
                )
        if not _is_whole(self.opset) or self.opset not in OPSETS:
            raise RecipeError(
                f"opset must be within {OPSETS.start} and {OPSETS.stop - 1}; 17 is the default. "
                f"Received: {self.opset!r}."
            )

    @property
    def artifacts(self) -> tuple[tuple[str, str], ...]:
        """Format and variant of each artifact, in order."""
        return tuple(
            (name, FLOAT32 if quantization == NOT_QUANTIZED else quantization)
            for name in self.formats
            for quantization in self.quantize
            if quantization in _quantizations(name)
        )

    @property
    def calibrates(self) -> bool:
        """Whether a variant asks for ranges of activations, and so for data."""
        return any(variant.calibrated for variant in self._variants)

    @property
    def has_integers(self) -> bool:
        """Whether weights of a variant are integers, whose scales are chosen by data."""
        return any(variant.scheme for variant in self._variants)

    @property
    def _variants(self) -> list[Variant]:
        return [FORMATS[name].variant(variant) for name, variant in self.artifacts]

    @property
    def projects(self) -> bool:
        """Whether full weights are trained at their truncation."""
        return self.finetune > 0 and self.train.startswith("projected")

    @property
    def goal(self) -> str:
        """Which of ``GOALS`` is given."""
        return next(name for name in GOALS if getattr(self, name) is not None)

    @property
    def goal_label(self) -> str:
        """The goal as it stands in a folder's name, such as ``rank20`` or ``max-drop-0.01``."""
        if self.goal != "rank":
            return f"{self.goal.replace('_', '-')}-{getattr(self, self.goal)}"
        if isinstance(self.rank, Mapping):
            return "rank-mixed"
        return f"rank{self.rank}" if isinstance(self.rank, (int, float)) else f"rank-{self.rank}"

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as values that JSON knows."""
        return {
            **dataclasses.asdict(self),
            "formats": list(self.formats),
            "quantize": list(self.quantize),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """Reads what ``to_dict`` returned.

        Raises:
            RecipeError: If a key is unknown or a value is out of its range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise RecipeError(f"Unknown options {unknown}. Known: {sorted(known)}.")
        return cls(**values)

    def to_json(self) -> str:
        """Returns the recipe as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Reads what ``to_json`` returned.

        Raises:
            RecipeError: If the text is no JSON object, or ``from_dict`` refuses it.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise RecipeError(f"The recipe is not JSON: {error}.") from error
        if not isinstance(values, dict):
            raise RecipeError(f"A recipe is a JSON object. Received: {type(values).__name__}.")
        return cls.from_dict(values)


def _checked_names(
    field: str, names: object, known: Sequence[str], every: Sequence[str]
) -> tuple[str, ...]:
    """Checks a list of names, of which ``all`` stands for ``every``."""
    if isinstance(names, str) or not isinstance(names, (list, tuple)):
        raise RecipeError(f"{field} must be a list of names. Received: {names!r}.")
    chosen: list[str] = []
    for name in names:
        if name != ALL and name not in known:
            raise RecipeError(
                f"Unknown name {name!r} in {field}. Known: {', '.join([*known, ALL])}."
            )
        chosen.extend(every if name == ALL else [name])
    if not chosen:
        raise RecipeError(f"{field} is empty. Known: {', '.join(known)}.")
    return tuple(dict.fromkeys(chosen))


def _quantizations(fmt: str) -> list[str]:
    """Returns the values of ``quantize`` that a format has variants for."""
    names = (variant.name for variant in FORMATS[fmt].variants)
    return [NOT_QUANTIZED if name == FLOAT32 else name for name in names]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
