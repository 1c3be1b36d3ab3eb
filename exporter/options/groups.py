"""The options of a run, one row each: name, default, values and help, in groups by what reads them.

The rows are the fields of the classes below, and nothing about an option is written anywhere else:
the command line, the checks, the JSON schema and the table in the documentation follow from them.
The name of a field is its name on the command line and in choices of public functions as well.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from exporter.datasets import DIGITS, KERAS_DATASETS, NO_DATA
from exporter.errors import RecipeError
from exporter.options.channels import AUTO_CHANNELS, FREE, ChannelPart
from exporter.options.quantities import parse_bytes, parse_count, parse_part, parse_seconds
from exporter.options.rank import AUTO_RANK, DEFAULT_RANK, RANK_NAMES, Rank
from exporter.options.scale import AUTO, Scale
from exporter.options.size import Size
from exporter.options.values import (
    Value,
    amount,
    channels,
    choice,
    flag,
    names,
    number,
    path,
    paths,
    rank,
    scale,
    size,
    text,
    whole,
)
from exporter.screen import fits_screen

FLOAT32 = "float32"
NOT_QUANTIZED = "none"
COMPENSATED = "compensated"
ALL = "all"

HERE = "here"
ARM64_TARGETS = ("arm64", "arm64-old")
TARGET_NAMES = (HERE, *ARM64_TARGETS, "micro", "macs")


class Option(NamedTuple):
    """One row.

    Attributes:
        default: Value of an option that is not given; None is then a value as well.
        value: Values that the option takes.
        help: Effect of the option, without the default.
        flag_name: Name on the command line, if it is another one there.
    """

    name: str
    default: Any
    value: Value
    help: str
    flag_name: str | None

    @property
    def flag(self) -> str:
        """The flag of the command line."""
        switched_off = "no-" if self.default is True else ""
        return f"--{switched_off}{(self.flag_name or self.name).replace('_', '-')}"

    @property
    def full_help(self) -> str:
        """The help, with the default where that is a value of its own."""
        if self.default in {None, ()} or isinstance(self.default, bool):
            return self.help
        shown = (
            ", ".join(map(str, self.default)) if isinstance(self.default, tuple) else self.default
        )
        return f"{self.help} (default: {shown})"

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of its values."""
        values = dict(self.value.schema)
        if self.default is None:
            values = {"anyOf": [values, {"type": "null"}]}
        return {"description": self.help, **values}


def option(default: Any, value: Value, told: str, *, flag_name: str | None = None) -> Any:
    """Makes a field of a group: its default, the values that it takes, and what it does."""
    return dataclasses.field(default=default, metadata={"option": (value, told, flag_name)})


@fits_screen
class Group:
    """Options that are read together; checked when they are made.

    Attributes:
        title: Heads them in help and documentation.

    Raises:
        RecipeError: If a value is out of its range; the message names the option.
    """

    title: ClassVar[str]

    def __post_init__(self) -> None:
        for option in self.options():
            value = getattr(self, option.name)
            if value is not None or option.default is not None:
                object.__setattr__(self, option.name, option.value.check(option.name, value))

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """Returns the rows of the group, in order."""
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # All groups are dataclasses.
        return tuple(Option(f.name, f.default, *f.metadata["option"]) for f in fields)


@dataclass(frozen=True, kw_only=True)
class Source(Group):
    """The model and the data."""

    title = "model and data"

    model: str | None = option(
        None,
        path("a path as text", metavar="MODEL"),
        "a .keras or .h5 file; without it, the reference MLP is trained on the data",
    )
    imports: tuple[str, ...] = option(
        (),
        paths("a list of Python files or modules", metavar="FILE.py|MODULE"),
        "code of yours that is run before the model is loaded, so that the classes of layers that "
        "it defines or registers are known; may be repeated",
        flag_name="import",
    )
    data: str = option(
        DIGITS,
        path("a name or a path as text", metavar="DATA"),
        f"{DIGITS} (embedded), {NO_DATA}, an .npz or .npy file, a folder of images by class, or "
        f"{', '.join(KERAS_DATASETS)}",
    )
    scale: Scale = option(
        AUTO,
        scale(),
        "what the model was trained on, given values of 0 to 255: none, unit (0 to 1), symmetric "
        "(-1 to 1), caffe or torch (as keras.applications has them), or MEAN,STD; auto decides by "
        "labels and weights",
    )
    size: Size | None = option(
        None,
        size(),
        "fixes the axes, beside the batch, that the model leaves free: 96,96 for height and width, "
        "image=96,96;tokens=128 for several inputs (default: free; costs are those of the data)",
    )
    allow_poor_baseline: bool = option(
        False, flag(False), "go on if the model is no better than a constant on the labels"
    )
    calibration: int = option(
        10_000, whole(1, unit="samples"), "how many training samples calibrate, at the most"
    )
    seed: int = option(0, whole(0, 2**32 - 1), "seed of all that is random")


@dataclass(frozen=True, kw_only=True)
class Goal(Group):
    """What the ranks are chosen by: one of these; without any, ``DEFAULT_RANK``."""

    title = "ranks, chosen by one of these"

    rank: Rank | None = option(
        None,
        rank(),
        "one rank for all layers, a part of each layer's parameters such as 0.25, "
        f"{', '.join(RANK_NAMES)}, or 'layer=rank,layer=rank' (default: {DEFAULT_RANK})",
    )
    energy: float | None = option(
        None,
        number(0, 1, inside=True, read=parse_part, metavar="PART"),
        "part of its energy that each layer keeps, e.g. 0.99",
    )
    max_params: float | None = option(
        None,
        amount(),
        "most parameters of the model, e.g. 200k, or 25% of the baseline's, which layers share by "
        "what each loses",
    )
    max_macs: float | None = option(
        None,
        amount(),
        "most multiply-accumulates for one sample, e.g. 1.5M, or 25% of the baseline's",
    )
    max_size: int | None = option(
        None, whole(1, read=parse_bytes), "most bytes of each artifact, e.g. 250KB"
    )
    max_latency: float | None = option(
        None,
        number(0, inside=True, read=parse_seconds, metavar="TIME"),
        "most time of one call (batch 1, one thread), measured in each runtime, e.g. 50us",
    )
    max_instructions: int | None = option(
        None,
        whole(1, read=parse_count),
        "most instructions of one call of each .tflite on an ARM64 processor, e.g. 1.5M; needs "
        "--target arm64 or arm64-old",
    )
    max_drop: float | None = option(
        None,
        number(0, 1, inside=True, read=parse_part, metavar="PART"),
        "most accuracy that may be lost on the validation data, e.g. 0.5%",
    )
    target: str | None = option(
        None,
        choice(*TARGET_NAMES),
        "where costs count, beside one of the others: here (time on this machine), arm64 or "
        "arm64-old (instructions on a Cortex-A76 or A53, see scripts/arm64), micro (MACs and arena "
        "of TensorFlow Lite Micro), macs; --max-drop then takes what costs least there, and a "
        "budget no rank that costs more than the whole layer (default: the fewest parameters)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self._given
        if self.rank == AUTO_RANK and len(given) == 2:  # The other one tells how.
            object.__setattr__(self, "rank", None)
            given = self._given
        if len(given) > 1:
            known = ", ".join(option.name for option in self.options() if option.name != "target")
            raise RecipeError(f"Give one of {known}. Received: {', '.join(given)}.")
        if not given:
            object.__setattr__(self, "rank", DEFAULT_RANK)
        elif self.rank == AUTO_RANK and self.target is not None:
            raise RecipeError(
                "rank 'auto' on a target needs a limit to keep: give max_drop, such as 1%, "
                f"max_size or another one. Received: target {self.target!r} alone."
            )
        if self.max_instructions is not None and self.target not in ARM64_TARGETS:
            raise RecipeError(
                f"max_instructions are counted on target {' or '.join(ARM64_TARGETS)}. Received: "
                f"target {self.target!r}."
            )
        if self.max_latency is not None and self.target not in (None, HERE):
            raise RecipeError(
                f"max_latency is measured on target {HERE!r}. Received: target {self.target!r}."
            )

    @property
    def _given(self) -> list[str]:
        return [k for k, value in vars(self).items() if value is not None and k != "target"]

    @property
    def kind(self) -> str:
        """The name of the option that ranks are chosen by."""
        return self._given[0]

    def limit(self, params: int, macs: int) -> float:
        """Returns the budget, given the figures of the baseline that it may be a part of."""
        value = float(getattr(self, self.kind))
        whole = {"max_params": params, "max_macs": macs}.get(self.kind)
        return value if whole is None or value >= 1 else int(value * whole)

    @property
    def is_budget(self) -> bool:
        """Whether ranks are what a limit leaves to them."""
        return self.kind.startswith("max_")

    @property
    def counts_macs(self) -> bool:
        """Whether multiply-accumulates tell what is wanted better than parameters do."""
        return self.target is not None or self.kind in {"max_macs", "max_latency"}

    @property
    def label(self) -> str:
        """The goal in the name of a folder, such as ``rank20`` or ``max-drop-0.01``."""
        if self.kind != "rank":
            return f"{self.kind.replace('_', '-')}-{getattr(self, self.kind)}"
        if isinstance(self.rank, Mapping):
            return "rank-mixed"
        return f"rank{self.rank}" if isinstance(self.rank, (int, float)) else f"rank-{self.rank}"


@dataclass(frozen=True, kw_only=True)
class Cut(Group):
    """Which channels are removed, and how kernels are factorized, whatever the ranks."""

    title = "what is cut, and how"

    channels: ChannelPart | None = option(
        None,
        channels(),
        "first removes units and filters until this part of the parameters is left (of the "
        "multiply-accumulates, where time or a target counts), e.g. 0.5; those that the loss "
        f"misses least go first; {FREE} removes those that cost nothing; {AUTO_CHANNELS} divides a "
        "budget between channels and ranks, by trying (default: all stay)",
    )
    method: str | None = option(
        None,
        choice("svd", "whitened", "kfac"),
        "svd: by the weights; whitened: by calibration data; kfac: by these and the loss gradient "
        "(default: kfac with training data, svd without)",
    )
    cascade: bool = option(
        True, flag(True), "let later layers make up for the errors of earlier ones; needs data"
    )
    convolution: str = option(
        "channel",
        choice("channel", "spatial", "tucker2"),
        "channel: k x k, then 1 x 1; spatial: k x 1, then 1 x k; tucker2: 1 x 1, k x k, 1 x 1",
    )
    fold: bool = option(True, flag(True), "fold batch normalisations into the layers before them")
    merge: bool = option(
        True, flag(True), "merge S into U (unmerged, S is a layer of its own, for study)"
    )


@dataclass(frozen=True, kw_only=True)
class Tuning(Group):
    """Training after the cut."""

    title = "fine-tuning"

    finetune: int = option(
        0, whole(0, unit="epochs"), "most epochs of each training phase; 0 does not train"
    )
    train: str = option(
        "factored",
        choice("factored", "adaptive", "projected", "projected+factored"),
        "factored: trains the factors; adaptive: first divides their parameters anew by short "
        "trainings; projected: trains full weights at their truncation; or one after the other",
    )
    export_from: str = option(
        "truncated",
        choice("truncated", "updated"),
        "what projected training hands on: the truncated model that it trained at, or the updated "
        "full weights, factorized anew by the data",
    )
    batch_size: int = option(
        256, whole(1, unit="samples"), "samples in a training step, of all devices together"
    )
    learning_rate: float = option(
        1e-3,
        number(1e-12, metavar="RATE"),
        "peak rate of Adam, which warms up and decays like a cosine",
    )
    distill: float = option(
        0.5,
        number(0, 1, metavar="W"),
        "weight of the divergence from the baseline in the loss, until the model is as good on "
        "validation data (1 stays); the task's own loss has the rest",
    )
    temperature: float = option(
        2.0,
        number(1, metavar="T"),
        "temperature at which the predictions of the two models are compared",
    )
    augment: str = option(
        "none",
        choice("none", "flip", "shift", "flip+shift"),
        "changes training images at random: flip mirrors them from left to right, shift moves them "
        "by up to an eighth of their size",
    )
    decay: float = option(
        0.0,
        number(0, metavar="W"),
        "weight of half the squared Frobenius norm of each product of factors",
    )
    patience: int = option(
        0,
        whole(0, unit="epochs"),
        "epochs without a better validation after which training stops; 0 never stops",
    )
    resume: bool = option(False, flag(False), "go on from the checkpoint of a run that was killed")
    distribute: str = option(
        "none",
        choice("none", "mirrored", "multiworker"),
        "mirrored: train on all devices of this machine; multiworker: on those that TF_CONFIG "
        "names",
    )

    @property
    def projects(self) -> bool:
        """Whether full weights are trained at their truncation."""
        return self.finetune > 0 and self.train.startswith("projected")


@dataclass(frozen=True, kw_only=True)
class Quantization(Group):
    """The numeric variants of the artifacts."""

    title = "quantization"

    quantize: tuple[str, ...] = option(
        (NOT_QUANTIZED,),
        names("VARIANT"),
        f"numeric variants, or {ALL}; may be repeated, or separated by commas; each format exports "
        "those that it has",
    )
    io_type: str = option(
        FLOAT32, choice(FLOAT32, "int8", "uint8"), "type of the inputs and outputs of int8 variants"
    )
    granularity: str = option(
        "auto",
        choice("auto", "tensor", "channel"),
        "weights have one scale a tensor or one a channel; auto measures both",
    )
    ranges: str = option(
        "mse",
        choice("minmax", "percentile", "mse", "entropy"),
        "how the ranges of activations are estimated from calibration samples",
    )
    rounding: str = option(
        COMPENSATED,
        choice(COMPENSATED, "nearest"),
        "round each weight to its nearest step, or so that errors of weights make up for one "
        "another; the latter needs data",
    )
    gauge: bool = option(
        True,
        flag(True),
        "choose, of the factor pairs with the same product, the one that loses least in integers; "
        "needs data",
    )


@dataclass(frozen=True, kw_only=True)
class Export(Group):
    """The artifacts, and where they are written."""

    title = "export"

    formats: tuple[str, ...] = option(
        ("tflite",),
        names("FORMAT"),
        f"formats, or {ALL} that are installed; may be repeated, or separated by commas",
        flag_name="format",
    )
    output: str | None = option(
        None,
        path("a path as text", metavar="DIR"),
        "folder to write to (default: one in artifacts/, named after model and rank)",
    )
    force: bool = option(False, flag(False), "replace a former run in the output folder")
    keep_baseline: bool = option(
        False,
        flag(False),
        "keep the uncompressed network in float32 and the variants asked for, which artifacts are "
        "held against, in the folder uncompressed",
    )
    report: bool = option(
        True,
        flag(True),
        "draw the report, which shows real test samples: report.html, report.md, report.npz and "
        "report_figures/",
    )
    mlflow: str | None = option(
        None,
        text("the name of an experiment as text", metavar="EXPERIMENT"),
        "logs the run to this experiment of MLflow, whose MLFLOW_TRACKING_URI says where; needs "
        "the extra 'mlflow'",
    )
    batch: int | None = option(
        None,
        whole(1, unit="samples"),
        "batch size of the artifacts' inputs, for models that take any; a SavedModel keeps it free "
        "(default: free; 1 in c, and in tflite for recurrent layers that are not unrolled)",
    )
    opset: int = option(17, whole(13, 18), "ONNX operator set, 13 to 18")
    labels: str | None = option(
        None,
        path("a path as text"),
        "text file with the name of a class a line, for artifacts to tell",
    )
    description: str | None = option(
        None, text("text", empty=True, metavar="TEXT"), "what the model does, for artifacts to tell"
    )


@dataclass(frozen=True, kw_only=True)
class Verification(Group):
    """Tolerances of parity, by default from the model's own rounding error, and of losses."""

    title = "verification"

    atol: float | None = option(
        None,
        number(0),
        "absolute tolerance in units of the output (default: derived from the model's own "
        "float32 rounding error)",
    )
    rtol: float | None = option(
        None, number(0), "relative tolerance, a fraction of the reference (default: derived)"
    )
    max_loss: float | None = option(
        None,
        number(0, read=parse_part, metavar="PART"),
        "most that an output may lose of the baseline's accuracy on the test data, e.g. 1%, or by "
        "which another figure may grow; more fails the verdict",
    )
