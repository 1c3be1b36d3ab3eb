"""Reports on a terminal."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from exporter.data.metrics import Metric
from exporter.formats.base import Artifact
from exporter.graph.channels import ChannelPlan
from exporter.options.rank import NO_RANK
from exporter.output import COMPRESSED_FILE, PAGE_FILE
from exporter.report.results import (
    ArtifactReport,
    Budget,
    CompressionReport,
    LayerReport,
    Report,
    means_of,
)
from exporter.report.tables import open_table, optional, print_lines
from exporter.report.verdicts import (
    conversion_lines,
    conversion_text,
    print_conversions,
    verdict_text,
)
from exporter.targets import TARGETS
from exporter.training.loop import History
from exporter.verification.compression import OutputCompression
from exporter.verification.verdict import Standing

_ENDINGS = {
    "finished": "",
    "no better": "stopped when validation got no better",
    "interrupted": "INTERRUPTED",
    "diverged": "DIVERGED",
}


def print_report(report: Report, console: Console) -> None:
    """Prints the findings of a run."""
    _print_cut(report, console, whole=report.recipe.goal.rank == NO_RANK)
    console.print(_artifact_table(report))
    if any(item.alternative for item in report.artifacts):
        console.print(_alternative_table(report.artifacts))
    if any(item.target_cost for item in report.artifacts):
        console.print(_cost_table(report.artifacts))
    print_conversions(report.artifacts, console)
    print_lines(console, *_training_lines(report))
    if report.budget is not None:
        console.print(_budget_text(report.budget))
    print_lines(console, *_findings(report), _written(report))
    for warning in report.warnings:
        console.print(Text(f"Warning: {warning}", "bold yellow"), soft_wrap=True)
    if report.recipe.export.report and not report.drawing_error:
        print_page(report.output / PAGE_FILE, console)


def print_page(page: Path, console: Console) -> None:
    """Prints where the report of a run is."""
    print_lines(console, f"Next: open {page}")


def print_compression(report: CompressionReport, console: Console) -> None:
    """Prints the findings of a compression, and the command that follows."""
    _print_cut(report, console)
    file = report.output / COMPRESSED_FILE
    following = f"Next: exporter export {file} --format tflite"
    if not file.exists():
        following = f"Next, in Python: exporter.restore(model, {str(report.output)!r})"
    print_lines(console, *_training_lines(report), _written(report), following)


def print_artifacts(artifacts: Sequence[Artifact], console: Console) -> None:
    """Prints the files that an export wrote, and the command that follows."""
    table = open_table("Artifacts", ["artifact", "format", "variant"], ["bytes"])
    for artifact in artifacts:
        path = Text(str(artifact.path))
        table.add_row(path, artifact.format, artifact.variant, f"{artifact.size:,}")
    console.print(table)
    print_lines(console, f"Next: exporter verify {artifacts[0].path} MODEL")


def _print_cut(report: CompressionReport, console: Console, *, whole: bool = False) -> None:
    training, before, after = report.training, report.before, report.after
    if whole:
        print_lines(console, "No layer is factorized, as rank none asks")
    elif not report.factorized and not report.removed:
        note = "NOTHING WAS COMPRESSED: no layer is factorized; the table of layers says why"
        console.print(Text(note, "bold red"), soft_wrap=True)
    if training is not None:
        how = "trained in an earlier run, in" if training.cached else "trained here in"
        console.print(
            Text(
                f"Baseline {report.model_name}: {how} {training.seconds:.0f} s, validation "
                f"accuracy {training.validation_accuracy:.2%} (epoch {training.best_epoch} of "
                f"{training.epochs})"
            )
        )
    if report.channels:
        console.print(channel_table(report.channels))
    console.print(layer_table(report.layers))
    console.print(
        Text(
            f"Model {report.model_name}: {before.params:,} -> {after.params:,} parameters "
            f"({before.params / max(1, after.params):.1f}×), {before.macs:,} -> {after.macs:,} "
            f"MACs ({before.macs / max(1, after.macs):.1f}×)"
        )
    )


def channel_table(channels: Iterable[ChannelPlan]) -> Table:
    """Lists groups of channels, and how many of them stay."""
    table = open_table("Channels", ["made by"], ["channels", "loss, of that of all"])
    for group in channels:
        count = f"{group.before:,}"
        if group.after != group.before:
            count += f" -> {group.after:,}"
        table.add_row(Text(", ".join(group.layers)), count, f"{group.error:.2%}")
    return table


def layer_table(layers: Iterable[LayerReport]) -> Table:
    """Lists layers, with their ranks and the reason for each."""
    right = ["m × n", "rank", "params", "rel. error"]
    lesser = ["kind", "m × n", "rel. error"]
    table = open_table("Layers", ["layer", "kind"], right, ["why"], lesser=lesser)
    for layer in layers:
        plan, params = layer.plan, f"{layer.plan.params_before:,}"
        if plan.params_after != plan.params_before:
            params += f" -> {plan.params_after:,}"
        table.add_row(
            Text(plan.name),
            plan.kind,
            "" if plan.shape is None else f"{plan.shape[0]} × {plan.shape[1]}",
            optional(plan.rank, "") or "kept",
            params,
            optional(layer.relative_error, ".2%"),
            Text(plan.reason),
        )
    return table


def _artifact_table(report: Report) -> Table:
    table = open_table(
        "Artifacts, beside the baseline in float32 (one thread, batch 1, median)",
        ["artifact"],
        ["bytes", "ratio", "conversion", "compression", "baseline", "compressed", "speedup"],
        lesser=["baseline", "compressed", "ratio", "speedup"],
    )
    for item in report.artifacts:
        if item.artifact is None:
            failed = Text("not converted", "red")
            table.add_row(item.label, "", "", failed, _compression_verdict(report, item))
            continue
        latency = []
        if item.latency is not None:
            medians = (item.latency.baseline.p50, item.latency.compressed.p50)
            latency = [f"{p50 * 1e6:,.0f} µs" for p50 in medians]
            latency.append(f"{item.latency.speedup:.1f}×")
        table.add_row(
            item.artifact.path.relative_to(report.output).as_posix(),
            f"{item.artifact.size:,}",
            "" if item.ratio is None else f"{item.ratio:.1f}×",
            conversion_text(item.conversion),
            _compression_verdict(report, item),
            *latency,
        )
    return table


def _alternative_table(artifacts: Iterable[ArtifactReport]) -> Table:
    table = open_table(
        "Artifact / uncompressed network in the same variant; agreement with the baseline in Keras",
        ["artifact", "output"],
        ["bytes", "latency", "metric", "agreement"],
        lesser=["agreement", "latency"],
    )
    for item in artifacts:
        other = item.alternative
        if other is None or item.artifact is None or item.latency is None:
            continue
        label = Text(item.label, "bold red" if item.is_dominated else "")
        times = (item.latency.compressed.p50 * 1e6, other.latency.p50 * 1e6)
        facts = [
            f"{item.artifact.size:,} / {other.size:,}",
            f"{times[0]:,.0f} / {times[1]:,.0f} µs",
        ]
        for name, both in item.standings.items():
            metrics = " / ".join(_metric(each.metric) for each in both if each.metric)
            table.add_row(label, Text(name), *facts, metrics, " / ".join(map(_agreement, both)))
            label, facts = Text(""), ["", ""]
    return table


def _cost_table(artifacts: Iterable[ArtifactReport]) -> Table:
    costs = [(item.label, item.target_cost) for item in artifacts if item.target_cost]
    (name,) = {cost.target for _, cost in costs}
    target = TARGETS[name]
    right = ["artifact", "uncompressed, same variant", "ratio"]
    table = open_table(f"Cost of a call on {name}", ["artifact"], right)
    for label, cost in costs:
        other = cost.alternative
        ratio = "" if other is None else f"{cost.artifact.value / max(other.value, 1e-12):.0%}"
        texts = [target.text(each) if each else "" for each in (cost.artifact, other)]
        table.add_row(label, *texts, ratio)
    return table


def _agreement(standing: Standing) -> str:
    agreement = standing.top1_agreement
    return f"{standing.snr_db:.1f} dB" if agreement is None else f"{agreement:.2%}"


def _training_lines(report: CompressionReport) -> Iterator[str]:
    if report.finetuning is None:
        return
    adaptation = report.finetuning.adaptation
    if adaptation is not None:
        unit = "parameters" if adaptation.unit == "params" else "MACs"
        moves = ", ".join(
            f"{name} {rank} -> {adaptation.adapted[name] or 'whole'}"
            for name, rank in adaptation.planned.items()
        )
        kept = "" if adaptation.taken else "; NOT better, the planned ranks were kept"
        yield (
            f"Ranks        {moves} for the same {adaptation.limit:,} {unit}, validation loss "
            f"{adaptation.planned_loss:.4g} -> {adaptation.adapted_loss:.4g} in "
            f"{len(adaptation.trials) + 3} trials{kept}"
        )
    yield from map(_phase_line, report.finetuning.phases)


def _phase_line(history: History) -> str:
    first, best = history.epochs[0], history.epochs[history.best]
    done = f"{history.phase}, {len(history.epochs) - 1} epochs in {history.seconds:.0f} s"
    parts = [done, _ENDINGS[history.ending]]
    if first.accuracy is not None and best.accuracy is not None:
        parts.append(f"validation accuracy {first.accuracy:.2%} -> {best.accuracy:.2%}")
    elif first.validation_loss is not None and best.validation_loss is not None:
        parts.append(f"validation loss {first.validation_loss:.4g} -> {best.validation_loss:.4g}")
    return f"Fine-tuning  {', '.join(filter(None, parts))}, weights of epoch {history.best}"


def _budget_text(budget: Budget) -> Text:
    def quantity(value: float) -> str:
        if budget.goal == "max_latency":
            return f"{value * 1e6:,.1f} µs"
        if budget.goal == "max_drop":
            return f"{value:.2%}"
        return f"{value:,.0f}{' bytes' if budget.goal == 'max_size' else ''}"

    label = budget.goal.replace("max_", "").capitalize()
    where = " on the validation data" if budget.goal == "max_drop" else ""
    text = f"{label} {quantity(budget.reached)} of at most {quantity(budget.limit)}{where}: "
    return Text(f"Budget       {text}").append_text(verdict_text(budget.held))


def _written(report: CompressionReport) -> str:
    return f"\nWritten to {report.output} in {report.seconds:.0f} s"


def _compression_verdict(report: Report, item: ArtifactReport) -> Text:
    """Judges low rank, and what a faithful artifact lost beside."""
    verdict, conversion = report.compression, item.conversion
    if any(output.collapsed for output in verdict.outputs):
        return verdict_text(False, "collapsed")
    lost = verdict.passed and conversion is not None and conversion.passed and not item.accepted
    return verdict_text(verdict.passed and not lost, "loss")


def _findings(report: Report) -> Iterator[str]:
    means = means_of(report.factorized, report.removed)
    cut = f"by {means}" if means else "as it is"
    for output in report.compression.outputs:
        yield _compression_line(output, report.compression.max_loss)
    for item in report.artifacts:
        name = item.label
        if item.error:
            yield f"{name}: not converted. {item.error}"
        if item.comparison_error:
            yield f"{name}: figures of its comparison are missing. {item.comparison_error}"
        if item.gauge is not None:
            layers = ", ".join(f"{layer.name} {layer.gauge}" for layer in item.gauge.layers)
            yield (
                f"Gauge        {name}: {layers}; SNR in simulated integers, of logits where there "
                f"are classes, {item.gauge.snr_before:.1f} -> {item.gauge.snr_after:.1f} dB"
            )
        for rounded in (trial.compensation for trial in item.trials[:1]):
            if rounded is not None and rounded.layers:
                yield (
                    f"Weights      {name}: their errors make up for one another in "
                    f"{rounded.layers} layers; SNR in simulated integers "
                    f"{rounded.snr_before:.1f} -> {rounded.snr_after:.1f} dB"
                )
                if rounded.narrow:
                    yield f"Bits         {name}: 4 in {', '.join(rounded.narrow)}; else 8"
        yield from conversion_lines(item)
        if item.conversion is None or item.conversion.quality is None:
            continue
        for output in report.compression.outputs:
            before, after = output.baseline, item.conversion.metrics.get(output.output)
            if before is not None and output.compressed is not None and after is not None:
                yield (
                    f"Stages       {name}, {output.output}: {before.name} {_metric(before)} -> "
                    f"{_metric(output.compressed)} {cut} -> {_metric(after)} by quantization"
                )


def _compression_line(output: OutputCompression, max_loss: float | None) -> str:
    parts = [f"SNR {output.snr_db:.1f} dB"]
    if output.top1_agreement is not None:
        parts.insert(0, f"agreement with the baseline {output.top1_agreement:.2%}")
    if output.baseline is not None and output.compressed is not None:
        before, after = _metric(output.baseline), _metric(output.compressed)
        parts.insert(0, f"{output.baseline.name} {before} -> {after}")
    source = "test" if output.baseline is not None else "unlabelled"
    collapsed = " COLLAPSED: no better than a constant" if output.collapsed else ""
    if max_loss is not None and not output.loss <= max_loss:
        collapsed = f"{collapsed} LOST {output.loss:.2%}, at most {max_loss:.2%} allowed"
    return (
        f"Compression  {output.output}: {', '.join(parts)}, on {output.samples:,} {source} "
        f"samples{collapsed}"
    )


def _metric(metric: Metric) -> str:
    return f"{metric.value:.2%}" if metric.name == "accuracy" else f"{metric.value:.4g}"
