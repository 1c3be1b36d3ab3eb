"""Verdicts on artifacts, on a terminal."""

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from exporter.formats import FORMATS
from exporter.formats.base import Artifact
from exporter.formats.variants import DYNAMIC, INT16X8
from exporter.report.results import ArtifactReport
from exporter.report.tables import open_table, optional, print_lines
from exporter.verification.parity import Comparison, Parity
from exporter.verification.quality import Quality
from exporter.verification.rounding import Excess
from exporter.verification.structure import StructureProof
from exporter.verification.verdict import ConversionVerdict

SHOWN_LOSSES = 3
"""Layers that are named for the noise that they add."""


def print_verdicts(reports: Sequence[ArtifactReport], console: Console) -> None:
    """Prints whether artifacts predict what their model predicts."""
    print_conversions(reports, console)
    for report in reports:
        print_lines(console, *conversion_lines(report))
    for report in reports:
        verdict = Text(f"Conversion   {report.label}: ").append_text(
            conversion_text(report.conversion)
        )
        console.print(verdict)


def print_conversions(artifacts: Iterable[ArtifactReport], console: Console) -> None:
    """Prints the tables of what artifacts predict beside their models."""
    verdicts = [(item.label, item.conversion) for item in artifacts if item.conversion]
    parities = [(label, verdict.parity) for label, verdict in verdicts if verdict.parity]
    qualities = [(label, verdict.quality) for label, verdict in verdicts if verdict.quality]
    if parities:
        console.print(_parity_table(parities))
    if qualities:
        console.print(_quality_table(qualities))


def conversion_text(verdict: ConversionVerdict | None) -> Text:
    """Returns the verdict on an artifact, with what failed."""
    if verdict is None or verdict.error is not None:
        return verdict_text(False, "not compared")
    proofs = {
        "tolerance": verdict.parity,
        "noise": verdict.quality,
        "factors": verdict.structure,
    }
    reasons = [name for name, proof in proofs.items() if proof is not None and not proof.passed]
    if any(layer.departs for layer in verdict.layers):
        reasons.append("layers")
    return verdict_text(verdict.passed, ", ".join(reasons))


def verdict_text(passed: bool, reason: str = "") -> Text:
    """Returns a verdict in its colour."""
    failed = f"FAILED: {reason}" if reason else "FAILED"
    return Text("passed", "green") if passed else Text(failed, "bold red")


def conversion_lines(item: ArtifactReport) -> Iterator[str]:
    """Yields what was found in an artifact, a line each."""
    name, conversion = item.label, item.conversion
    if conversion is None:
        return
    if conversion.error:
        yield f"{name}: cannot be compared with the model. {conversion.error}"
    if conversion.structure is not None:
        yield f"Structure    {name}: {_structure_text(conversion.structure)}"
    if item.artifact and item.artifact.figures:
        figures = (f"{k.replace('_', ' ')} {n:,}" for k, n in item.artifact.figures.items())
        yield f"Figures      {name}: {', '.join(figures)}"
    for note in item.artifact.notes if item.artifact else ():
        yield f"Note         {name}: {note}"
    for output in conversion.quality.outputs if conversion.quality else ():
        if output.excess is not None:
            yield (
                f"Rounding     {name}, {output.output}: rounding anew gives an SNR of "
                f"{output.excess.expected_snr_db:.1f} dB; noise beside that "
                f"{_excess_text(output.excess)}"
            )
        if output.excess is not None and not output.excess.passed:
            yield (
                f"{name}: output {output.output} has more noise than rounding explains "
                f"({_excess_text(output.excess)}): the file is damaged, its runtime computes "
                "something else than the model, or it was calibrated on other data."
            )
    if conversion.quality and not conversion.quality.passed and item.artifact:
        yield f"{name}: {_remedy(item.artifact)}"
    if conversion.losses:
        shares = ", ".join(
            f"{layer} {part:.0%}" for layer, part in [*conversion.losses.items()][:SHOWN_LOSSES]
        )
        yield f"Noise        {name}: is added by {shares}"
    if (departure := conversion.departure) is not None:
        before = "" if departure.agrees is None else f" Layer {departure.agrees} still agrees."
        yield (
            f"{name}: departs at layer {departure.layer}, where the SNR is "
            f"{departure.snr_db:.1f} dB [{departure.least_db:.0f}].{before}"
        )
    judged = conversion.parity or conversion.quality
    for fault in judged.faults if judged else ():
        also = ", as the compressed model's own output is, or nearly" if fault.in_reference else ""
        yield (
            f"{name}: output {fault.output} is {fault.kind} on probe {fault.probe} in "
            f"{fault.backend}{also}"
        )


def _parity_table(parities: Iterable[tuple[str, Parity]]) -> Table:
    table = open_table(
        "Conversion: artifact against the compressed Keras model, the worst of all probes",
        ["artifact", "runtime", "output"],
        ["max abs", "allowed", "max rel", "RMSE", "SNR", "top-1", "probe"],
        lesser=["RMSE", "max rel", "probe", "top-1", "SNR"],
    )
    for label, parity in parities:
        groups: dict[tuple[str, str], list[Comparison]] = {}
        for comparison in parity.comparisons:
            groups.setdefault((comparison.backend, comparison.output), []).append(comparison)
        for group in groups.values():
            worst = max(group, key=lambda comparison: comparison.strain)
            log = "log " if worst.view == "log_probability" else ""
            relative = f" + {worst.tolerance.rtol:.0e}|y|" if worst.tolerance.rtol else ""
            table.add_row(
                label,
                worst.backend,
                Text(f"{log}{worst.output}"),
                Text(f"{worst.max_abs:.1e}", "" if worst.passed else "bold red"),
                f"{worst.tolerance.atol:.1e}{relative}",
                f"{worst.max_rel:.1e}",
                f"{worst.rmse:.1e}",
                f"{worst.snr_db:.0f} dB",
                optional(worst.top1_agreement, ".2%"),
                worst.probe,
            )
    return table


def _quality_table(qualities: Iterable[tuple[str, Quality]]) -> Table:
    table = open_table(
        "Conversion: quantized artifact against the compressed Keras model, limits in brackets",
        ["artifact", "runtime", "output"],
        ["SNR", "top-1", "loss", "samples"],
        lesser=["samples", "loss"],
    )
    for label, quality in qualities:
        limits = quality.limits
        for output in quality.outputs:
            agreement, drop = output.top1_agreement, output.drop
            table.add_row(
                label,
                output.backend,
                Text(output.output, "" if output.passed else "bold red"),
                f"{output.snr_db:.1f} dB [{limits.snr_db:.0f}]"
                + (
                    f", {output.lost_channels:.0%} of channels lost" if output.lost_channels else ""
                ),
                "" if agreement is None else f"{agreement:.2%} [{limits.agreement:.1%}]",
                "" if drop is None else f"{drop:+.2%} [{limits.drop:.1%}]",
                f"{output.samples:,}",
            )
    return table


def _remedy(artifact: Artifact) -> str:
    """Says what loses less than a quantized artifact."""
    fmt = FORMATS[artifact.format]
    if not fmt.variant(artifact.variant).calibrated:
        return "--granularity channel, more bits or a larger rank lose less."
    finer = {v.name for v in fmt.variants} & {INT16X8, DYNAMIC} - {artifact.variant}
    other = f", or --quantize {' or '.join(sorted(finer))}" if finer else " or a larger rank"
    return f"--granularity channel, more --calibration samples{other} lose less."


def _excess_text(excess: Excess) -> str:
    if excess.total <= excess.limit and not excess.passed:
        return f"channel {excess.channel:+.1f} dB [{excess.channel_limit:.1f}]"
    return f"{excess.total:+.1f} dB [{excess.limit:.1f}]"


def _structure_text(proof: StructureProof) -> str:
    missing = ", ".join(layer.layer for layer in proof.layers if not layer.found)
    dense = ", ".join(layer.layer for layer in proof.layers if not layer.dense_gone)
    count = sum(len(layer.factors) for layer in proof.layers)
    weights = f"weights {proof.stored_bytes:,} bytes, {proof.predicted_bytes:,} planned"
    parts = [] if proof.layers else ["no factors to look for"]
    if missing:
        parts.append(f"FACTORS MISSING of {missing}")
    if dense:
        parts.append(f"DENSE MATRIX FOUND of {dense}")
    if proof.layers and not missing and not dense:
        parts.append(
            f"all {count} factors found at their shapes, none of the matrices they replace"
        )
    parts.append(weights if proof.weights_as_predicted else f"other than planned: {weights}")
    if not proof.file_as_predicted:
        parts.append(f"a file larger than its weights, {proof.file_bytes:,} bytes")
    return ", ".join(parts)
