"""The arguments of the command line, and their help."""

import argparse
from typing import Any

from exporter.datasets import DIGITS, KERAS_DATASETS, NO_DATA
from exporter.formats import ALL, FORMAT_NAMES
from exporter.lowrank.ranks.rank import DEFAULT_RANK, RANK_NAMES
from exporter.recipe.recipe import (
    CONVOLUTIONS,
    DISTRIBUTIONS,
    EXPORTS_FROM,
    GRANULARITIES,
    IO_TYPES,
    METHODS,
    OPSETS,
    QUANTIZATIONS,
    RANGES,
    TRAININGS,
    Recipe,
)
from exporter.version import __version__

INSPECT = "inspect"

_EXIT_CODES = """\
exit codes:
  0    all artifacts were written and passed
  1    a verdict failed; what did not pass is in rejected/
  2    wrong usage or bad input; nothing was written
  3    a conversion failed
  4    a worker of a cluster was lost; --resume goes on
  130  interrupted; nothing was written
"""


def run_parser() -> argparse.ArgumentParser:
    """Returns what parses the arguments of a run."""
    parser = argparse.ArgumentParser(
        prog="exporter",
        description=(
            "Compresses a trained Keras model by low-rank factorization, exports it, and checks "
            "that every artifact predicts what TensorFlow predicts. 'exporter inspect MODEL' shows "
            "what there is to gain, without exporting."
        ),
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_model(parser)
    ranks = parser.add_argument_group("ranks, chosen by one of these")
    ranks.add_argument(
        "--rank",
        help=(
            "one rank for all layers, a part of each layer's parameters such as 0.25, "
            f"{', '.join(RANK_NAMES)}, or 'layer=rank,layer=rank' (default: {DEFAULT_RANK})"
        ),
    )
    ranks.add_argument("--energy", metavar="PART", help="energy that each layer keeps, e.g. 0.99")
    ranks.add_argument("--max-params", metavar="N", help="parameters of the model, e.g. 200k")
    ranks.add_argument("--max-macs", metavar="N", help="multiply-accumulates, e.g. 1.5M")
    ranks.add_argument("--max-size", metavar="SIZE", help="bytes of each artifact, e.g. 250KB")
    ranks.add_argument(
        "--max-latency", metavar="TIME", help="of one call in each runtime, measured, e.g. 50us"
    )
    ranks.add_argument(
        "--max-drop", metavar="PART", help="accuracy lost on validation data, e.g. 0.5%%"
    )
    _add_cutting(parser)
    _add_tuning(parser)
    _add_quantization(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--format",
        action="extend",
        type=_names,
        metavar="FORMAT",
        help=(
            f"{', '.join(FORMAT_NAMES)} or {ALL} that are installed; may be repeated, or separated "
            "by commas (default: tflite)"
        ),
    )
    output.add_argument(
        "--output",
        metavar="DIR",
        help="folder to write to (default: artifacts/<model>-rank<rank>)",
    )
    output.add_argument("--force", action="store_true", help="replace a former run in the output")
    output.add_argument(
        "--opset",
        type=int,
        default=Recipe.opset,
        help=f"ONNX operator set, {OPSETS.start} to {OPSETS.stop - 1} (default: {Recipe.opset})",
    )
    output.add_argument(
        "--labels", metavar="FILE", help="names of the classes, one a line, for artifacts to tell"
    )
    output.add_argument(
        "--description", metavar="TEXT", help="what the model does, for artifacts to tell"
    )
    output.add_argument(
        "--atol",
        type=float,
        help="absolute tolerance (default: derived from the model's own rounding error)",
    )
    output.add_argument("--rtol", type=float, help="relative tolerance, likewise")
    _add_printing(parser)
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _add_quantization(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("quantization")
    group.add_argument(
        "--quantize",
        action="extend",
        type=_names,
        metavar="VARIANT",
        help=(
            f"{', '.join(QUANTIZATIONS)} or {ALL}; may be repeated, or separated by commas; each "
            f"format exports those that it has (default: {Recipe.quantize[0]})"
        ),
    )
    group.add_argument(
        "--io-type",
        choices=IO_TYPES,
        default=Recipe.io_type,
        help=f"of what int8 takes and gives (default: {Recipe.io_type})",
    )
    group.add_argument(
        "--granularity",
        choices=GRANULARITIES,
        default=Recipe.granularity,
        help=(
            "scales of weights, one a tensor or one a channel; auto: measures both "
            f"(default: {Recipe.granularity})"
        ),
    )
    group.add_argument(
        "--ranges",
        choices=RANGES,
        default=Recipe.ranges,
        help=f"how ranges of activations are estimated (default: {Recipe.ranges})",
    )
    group.add_argument(
        "--no-gauge",
        dest="gauge",
        action="store_false",
        help="quantize the factors as they were cut, not those of the same product that lose less",
    )


def inspect_parser() -> argparse.ArgumentParser:
    """Returns what parses the arguments behind ``inspect``."""
    parser = argparse.ArgumentParser(
        prog=f"exporter {INSPECT}",
        description=(
            "Shows the layers of a model, their spectra, and what each way of choosing ranks would "
            "do. Writes nothing but the cached reference MLP, where no model is given."
        ),
    )
    _add_model(parser)
    _add_cutting(parser)
    _add_printing(parser)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a .keras or .h5 file; without it, the reference MLP is trained on the data",
    )
    parser.add_argument(
        "--data",
        default=DIGITS,
        help=(
            f"{DIGITS} (embedded), {NO_DATA}, an .npz or .npy file, a folder of images by class, "
            f"or {', '.join(KERAS_DATASETS)} (default: {DIGITS})"
        ),
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")


def _add_cutting(parser: argparse.ArgumentParser) -> None:
    cutting = parser.add_argument_group("how kernels are cut")
    cutting.add_argument(
        "--method",
        choices=METHODS,
        help=(
            "svd: by the weights; whitened: by calibration data; kfac: by these and the loss "
            "gradient (default: kfac with training data, svd without)"
        ),
    )
    cutting.add_argument(
        "--no-cascade",
        dest="cascade",
        action="store_false",
        help="do not let later layers make up for the errors of earlier ones",
    )
    cutting.add_argument(
        "--calibration",
        type=int,
        metavar="N",
        default=Recipe.calibration,
        help=f"training samples that are looked at (default: {Recipe.calibration})",
    )
    cutting.add_argument(
        "--convolution",
        choices=CONVOLUTIONS,
        default=Recipe.convolution,
        help=(
            "channel: k x k then 1 x 1; spatial: k x 1 then 1 x k; tucker2: 1 x 1, k x k, 1 x 1 "
            f"(default: {Recipe.convolution})"
        ),
    )
    cutting.add_argument(
        "--no-fold",
        dest="fold",
        action="store_false",
        help="leave batch normalisations as layers of their own",
    )
    cutting.add_argument(
        "--no-merge",
        dest="merge",
        action="store_false",
        help="keep S as a layer of its own between U and V, for study",
    )


TUNING: dict[str, tuple[str, dict[str, Any]]] = {
    "finetune": ("epochs at the most, of each phase", {"type": int, "metavar": "N"}),
    "train": (
        "factored: the factors; adaptive: likewise, at ranks divided anew by what trials leave of "
        "each loss; projected: full weights at their truncation; or one after the other",
        {"choices": TRAININGS},
    ),
    "export_from": ("what projected training hands on", {"choices": EXPORTS_FROM}),
    "batch_size": ("samples in a step, of all devices together", {"type": int, "metavar": "N"}),
    "learning_rate": ("of Adam, at its peak", {"type": float, "metavar": "RATE"}),
    "distill": (
        "weight of the divergence from the baseline, 0 to 1",
        {"type": float, "metavar": "W"},
    ),
    "temperature": ("that predictions are compared at", {"type": float, "metavar": "T"}),
    "decay": ("weight of the norm of each product of factors", {"type": float, "metavar": "W"}),
    "patience": (
        "epochs without gain after which it stops; 0: never",
        {"type": int, "metavar": "N"},
    ),
    "resume": ("go on from the checkpoint of a run that was killed", {"action": "store_true"}),
    "distribute": (
        "mirrored: on all devices here; multiworker: on those that TF_CONFIG names",
        {"choices": DISTRIBUTIONS},
    ),
}
"""Fields of the recipe that fine-tuning reads: the help of each flag, and how it is parsed."""


def _add_tuning(parser: argparse.ArgumentParser) -> None:
    tuning = parser.add_argument_group("fine-tuning")
    for field, (text, options) in TUNING.items():
        default = getattr(Recipe, field)
        shown = "" if default is False else f" (default: {default})"
        flag = f"--{field.replace('_', '-')}"
        tuning.add_argument(flag, default=default, help=text + shown, **options)


def _add_printing(parser: argparse.ArgumentParser) -> None:
    printing = parser.add_argument_group("printing")
    printing.add_argument("--json", action="store_true", help="print the report as JSON")
    printing.add_argument("-q", "--quiet", action="store_true", help="print errors alone")
    printing.add_argument(
        "-v", "--verbose", action="store_true", help="show what TensorFlow and the runtimes log"
    )
