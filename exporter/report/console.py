"""Reports on a terminal."""

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from exporter.benchmark import LatencyPair
from exporter.data.metrics import Metric
from exporter.formats.base import Artifact
from exporter.output import COMPRESSED_FILE
from exporter.quantization.gauge import GaugeReport
from exporter.report.results import ArtifactReport, Budget, CompressionReport, LayerReport, Report
from exporter.training.adaptive import Adaptation
from exporter.training.loop import History
from exporter.verification.compression import CompressionVerdict, OutputCompression
from exporter.verification.parity import Comparison, Parity
from exporter.verification.structure import StructureProof
from exporter.verification.verifier import ConversionVerdict

WIDTH = 120
"""Columns where the output is no terminal."""


def open_table(title: str, left: Iterable[str], right: Iterable[str], last: Iterable[str]) -> Table:
    """Opens a table: columns aligned to the left, to the right, and wrapped ones."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    for name in last:
        table.add_column(name, overflow="fold")
    return table


def print_report(report: Report, console: Console) -> None:
    """Prints what a run found."""
    _print_cut(report, console)
    console.print(_artifact_table(report))
    _print_conversions(report.artifacts, console)
    _print_training(report, console)
    if report.budget is not None:
        console.print(_budget_text(report.budget))
    for line in _findings(report):
        console.print(Text(line), soft_wrap=True)
    _print_written(report, console)


def print_compression(report: CompressionReport, console: Console) -> None:
    """Prints what compressing a model came to, and what to do next."""
    _print_cut(report, console)
    _print_training(report, console)
    _print_written(report, console)
    file = report.output / COMPRESSED_FILE
    console.print(Text(f"Next: exporter export {file} --format tflite"), soft_wrap=True)


def print_artifacts(artifacts: Sequence[Artifact], console: Console) -> None:
    """Prints what an export wrote."""
    table = open_table("Artifacts", ["artifact", "format", "variant"], ["bytes"], [])
    for artifact in artifacts:
        table.add_row(
            Text(str(artifact.path)), artifact.format, artifact.variant, f"{artifact.size:,}"
        )
    console.print(table)
    console.print(Text(f"Next: exporter verify {artifacts[0].path} MODEL"), soft_wrap=True)


def print_verdict(report: ArtifactReport, console: Console) -> None:
    """Prints whether an artifact predicts what its model predicts."""
    _print_conversions([report], console)
    for line in _conversion_lines(report):
        console.print(Text(line), soft_wrap=True)
    console.print(Text(f"Conversion   {report.label}: ").append_text(_verdict(report.accepted)))


def _print_cut(report: CompressionReport, console: Console) -> None:
    _print_baseline(report, console)
    console.print(_layer_table(report.layers))
    before, after = report.before, report.after
    console.print(
        Text(
            f"Model {report.model_name}: {before.params:,} -> {after.params:,} parameters "
            f"({before.params / max(1, after.params):.1f}×), {before.macs:,} -> {after.macs:,} "
            f"MACs ({before.macs / max(1, after.macs):.1f}×)"
        )
    )


def _print_conversions(artifacts: Sequence[ArtifactReport], console: Console) -> None:
    if any(a.conversion and a.conversion.parity for a in artifacts):
        console.print(_parity_table(artifacts))
    if any(a.conversion and a.conversion.quality for a in artifacts):
        console.print(_quality_table(artifacts))


def _print_training(report: CompressionReport, console: Console) -> None:
    if report.finetuning is None:
        return
    if report.finetuning.adaptation is not None:
        console.print(Text(_adaptation_line(report.finetuning.adaptation)), soft_wrap=True)
    for phase in report.finetuning.phases:
        console.print(Text(_phase_line(phase)), soft_wrap=True)


def _print_written(report: CompressionReport, console: Console) -> None:
    console.print(Text(f"\nWritten to {report.output} in {report.seconds:.0f} s"), soft_wrap=True)


def _print_baseline(report: CompressionReport, console: Console) -> None:
    training = report.training
    if training is not None:
        how = "trained in an earlier run, in" if training.cached else "trained here in"
        console.print(
            Text(
                f"Baseline {report.model_name}: {how} {training.seconds:.0f} s, validation "
                f"accuracy {training.validation_accuracy:.2%} (epoch {training.best_epoch} of "
                f"{training.epochs})"
            )
        )


def _layer_table(layers: Iterable[LayerReport]) -> Table:
    table = open_table(
        "Layers",
        ["layer", "kind"],
        ["m × n", "rank", "params", "rel. error"],
        ["why"],
    )
    for layer in layers:
        plan = layer.plan
        params = f"{plan.params_before:,}"
        if plan.params_after != plan.params_before:
            params += f" -> {plan.params_after:,}"
        table.add_row(
            Text(plan.name),
            plan.kind,
            "" if plan.shape is None else f"{plan.shape[0]} × {plan.shape[1]}",
            "kept" if plan.rank is None else str(plan.rank),
            params,
            "" if layer.relative_error is None else f"{layer.relative_error:.2%}",
            Text(plan.reason),
        )
    return table


def _artifact_table(report: Report) -> Table:
    table = open_table(
        "Artifacts (latency: one thread, batch 1, median)",
        ["artifact"],
        ["bytes", "ratio", "conversion", "compression", "baseline", "compressed", "speedup"],
        [],
    )
    compression = _verdict(report.compression.passed)
    for item in report.artifacts:
        if item.artifact is None:
            table.add_row(item.label, "", "", Text("not converted", "red"), compression)
            continue
        table.add_row(
            item.artifact.path.relative_to(report.output).as_posix(),
            f"{item.artifact.size:,}",
            "" if item.ratio is None else f"{item.ratio:.1f}×",
            _verdict(item.conversion is not None and item.conversion.passed),
            compression,
            *_latency_cells(item.latency),
        )
    return table


def _adaptation_line(adaptation: Adaptation) -> str:
    unit = "parameters" if adaptation.unit == "params" else "MACs"
    moves = ", ".join(
        f"{name} {rank} -> {adaptation.adapted[name] or 'whole'}"
        for name, rank in adaptation.planned.items()
    )
    losses = f"{adaptation.planned_loss:.4g} -> {adaptation.adapted_loss:.4g}"
    text = f"{moves} for the same {adaptation.limit:,} {unit}, validation loss {losses}"
    kept = "" if adaptation.taken else "; NOT better, the planned ranks were kept"
    return f"Ranks        {text} in {len(adaptation.trials) + 3} trials{kept}"


def _phase_line(history: History) -> str:
    first, best = history.epochs[0], history.epochs[history.best]
    parts = [f"{history.phase}, {len(history.epochs) - 1} epochs in {history.seconds:.0f} s"]
    if history.ending != "finished":
        parts.append(_ENDINGS[history.ending])
    if first.accuracy is not None and best.accuracy is not None:
        parts.append(f"validation accuracy {first.accuracy:.2%} -> {best.accuracy:.2%}")
    elif first.validation_loss is not None and best.validation_loss is not None:
        parts.append(f"validation loss {first.validation_loss:.4g} -> {best.validation_loss:.4g}")
    return f"Fine-tuning  {', '.join(parts)}, weights of epoch {history.best}"


_ENDINGS = {
    "no better": "stopped when validation got no better",
    "interrupted": "INTERRUPTED",
    "diverged": "DIVERGED",
}


def _budget_text(budget: Budget) -> Text:
    limit, reached = (_quantity(budget.goal, value) for value in (budget.limit, budget.reached))
    label = budget.goal.replace("max_", "").capitalize()
    where = " on the validation data" if budget.goal == "max_drop" else ""
    text = f"Budget       {label} {reached} of at most {limit}{where}: "
    return Text(text).append_text(_verdict(budget.held))


def _quantity(goal: str, value: float) -> str:
    if goal == "max_latency":
        return f"{value * 1e6:,.1f} µs"
    if goal == "max_drop":
        return f"{value:.2%}"
    return f"{value:,.0f}{' bytes' if goal == 'max_size' else ''}"


def _verdict(passed: bool) -> Text:
    return Text("passed", "green") if passed else Text("FAILED", "bold red")


def _latency_cells(latency: LatencyPair | None) -> tuple[str, str, str]:
    if latency is None:
        return "", "", ""
    baseline, compressed = latency.baseline.p50, latency.compressed.p50
    return f"{baseline * 1e6:,.0f} µs", f"{compressed * 1e6:,.0f} µs", f"{latency.speedup:.1f}×"


def _parity_table(artifacts: Iterable[ArtifactReport]) -> Table:
    table = open_table(
        "Conversion: artifact against the compressed Keras model, the worst of all probes",
        ["artifact", "runtime", "output"],
        ["max abs", "allowed", "max rel", "RMSE", "SNR", "top-1", "probe"],
        [],
    )
    for item in artifacts:
        parity = item.conversion.parity if item.conversion else None
        if item.artifact is None or parity is None:
            continue
        for worst in _worst_by_output(parity):
            log = worst.view == "log_probability"
            agreement = worst.top1_agreement
            table.add_row(
                item.artifact.path.name,
                worst.backend,
                Text(f"log {worst.output}" if log else worst.output),
                Text(f"{worst.max_abs:.1e}", "" if worst.passed else "bold red"),
                f"{worst.tolerance.atol:.1e}"
                + (f" + {worst.tolerance.rtol:.0e}|y|" if worst.tolerance.rtol else ""),
                f"{worst.max_rel:.1e}",
                f"{worst.rmse:.1e}",
                f"{worst.snr_db:.0f} dB",
                "" if agreement is None else f"{agreement:.2%}",
                worst.probe,
            )
    return table


def _quality_table(artifacts: Iterable[ArtifactReport]) -> Table:
    table = open_table(
        "Conversion: quantized artifact against the compressed Keras model, limits in brackets",
        ["artifact", "runtime", "output"],
        ["SNR", "top-1", "loss", "samples"],
        [],
    )
    for item in artifacts:
        quality = item.conversion.quality if item.conversion else None
        if item.artifact is None or quality is None:
            continue
        limits = quality.limits
        for output in quality.outputs:
            agreement, drop = output.top1_agreement, output.drop
            table.add_row(
                item.artifact.path.name,
                output.backend,
                Text(output.output, "" if output.passed else "bold red"),
                f"{output.snr_db:.1f} dB [{limits.snr_db:.0f}]",
                "" if agreement is None else f"{agreement:.2%} [{limits.agreement:.1%}]",
                "" if drop is None else f"{drop:+.2%} [{limits.drop:.1%}]",
                f"{output.samples:,}",
            )
    return table


def _worst_by_output(parity: Parity) -> list[Comparison]:
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in parity.comparisons:
        groups.setdefault((comparison.backend, comparison.output), []).append(comparison)
    return [max(group, key=lambda comparison: comparison.strain) for group in groups.values()]


def _findings(report: Report) -> Iterator[str]:
    for output in report.compression.outputs:
        yield _compression_line(output)
    for item in report.artifacts:
        name = item.label
        if item.error:
            yield f"{name}: not converted. {item.error}"
        if item.comparison_error:
            yield f"{name}: not compared with the baseline. {item.comparison_error}"
        if item.gauge is not None:
            yield f"Gauge        {name}: {_gauge_text(item.gauge)}"
        yield from _conversion_lines(item)
        if item.conversion is not None and item.conversion.quality is not None:
            yield from _stage_lines(name, item.conversion, report.compression)


def _conversion_lines(item: ArtifactReport) -> Iterator[str]:
    name, conversion = item.label, item.conversion
    if conversion is None:
        return
    if conversion.error:
        yield f"{name}: cannot be run or parsed. {conversion.error}"
    if conversion.structure is not None:
        yield f"Structure    {name}: {_structure_text(conversion.structure)}"
    if item.artifact and item.artifact.figures:
        figures = (f"{k.replace('_', ' ')} {n:,}" for k, n in item.artifact.figures.items())
        yield f"Figures      {name}: {', '.join(figures)}"
    judged = conversion.parity or conversion.quality
    for fault in judged.faults if judged else ():
        also = "; so is the compressed model's own output" if fault.in_reference else ""
        yield (
            f"{name}: output {fault.output} is {fault.kind} on probe {fault.probe} in "
            f"{fault.backend}{also}"
        )


def _gauge_text(gauge: GaugeReport) -> str:
    layers = ", ".join(f"{layer.name} {layer.gauge}" for layer in gauge.layers)
    return (
        f"{layers}; SNR of the outputs in simulated integers {gauge.snr_before:.1f} -> "
        f"{gauge.snr_after:.1f} dB"
    )


def _stage_lines(
    name: str, conversion: ConversionVerdict, compression: CompressionVerdict
) -> Iterator[str]:
    """Tells which stage cost what: low rank, and quantization."""
    quality = conversion.quality
    for output in compression.outputs:
        after = conversion.metrics.get(output.output)
        if quality is None or output.baseline is None or output.compressed is None or after is None:
            continue
        yield (
            f"Stages       {name}, {output.output}: {output.baseline.name} "
            f"{_metric(output.baseline)} -> {_metric(output.compressed)} by low rank -> "
            f"{_metric(after)} by quantization"
        )


def _compression_line(output: OutputCompression) -> str:
    parts = []
    if output.baseline is not None and output.compressed is not None:
        before, after = _metric(output.baseline), _metric(output.compressed)
        parts.append(f"{output.baseline.name} {before} -> {after}")
    if output.top1_agreement is not None:
        parts.append(f"agreement with the baseline {output.top1_agreement:.2%}")
    parts.append(f"SNR {output.snr_db:.1f} dB")
    source = "test" if output.baseline is not None else "unlabelled"
    collapsed = " COLLAPSED: no better than a constant" if output.collapsed else ""
    return (
        f"Compression  {output.output}: {', '.join(parts)}, on {output.samples:,} {source} "
        f"samples{collapsed}"
    )


def _metric(metric: Metric) -> str:
    return f"{metric.value:.2%}" if metric.name == "accuracy" else f"{metric.value:.4g}"


def _structure_text(proof: StructureProof) -> str:
    missing = [layer.layer for layer in proof.layers if not layer.found]
    dense = [layer.layer for layer in proof.layers if not layer.dense_gone]
    count = sum(len(layer.factors) for layer in proof.layers)
    parts = []
    if not proof.layers:
        parts.append("no layer was factorized")
    if missing:
        parts.append(f"FACTORS MISSING of {', '.join(missing)}")
    if dense:
        parts.append(f"DENSE MATRIX FOUND of {', '.join(dense)}")
    if proof.layers and not missing and not dense:
        parts.append(
            f"all {count} factors found at their shapes, none of the matrices they replace"
        )
    weights = f"weights {proof.stored_bytes:,} bytes, {proof.predicted_bytes:,} planned"
    parts.append(weights if proof.weights_as_predicted else f"NOT AS PLANNED: {weights}")
    if not proof.file_as_predicted:
        parts.append(f"FILE TOO LARGE: {proof.file_bytes:,} bytes")
    return ", ".join(parts)
