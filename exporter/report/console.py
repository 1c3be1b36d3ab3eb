"""Reports on a terminal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import measure_renderables
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from exporter.data.metrics import Metric
from exporter.formats import FORMATS
from exporter.formats.base import Artifact
from exporter.formats.variants import DYNAMIC, INT16X8
from exporter.options.rank import NO_RANK
from exporter.output import COMPRESSED_FILE, PAGE_FILE
from exporter.report.results import ArtifactReport, Budget, CompressionReport, LayerReport, Report
from exporter.targets import TARGETS
from exporter.training.loop import History
from exporter.verification.compression import OutputCompression
from exporter.verification.parity import Comparison, Parity
from exporter.verification.quality import Quality
from exporter.verification.rounding import Excess
from exporter.verification.structure import StructureProof
from exporter.verification.verdict import ConversionVerdict, Standing

WIDTH = 120

SHOWN_LOSSES = 3
"""Columns where the output is no terminal."""

_ENDINGS = {
    "finished": "",
    "no better": "stopped when validation got no better",
    "interrupted": "INTERRUPTED",
    "diverged": "DIVERGED",
}


_WRAPPED = 16
"""Columns that a wrapped column gets at least."""


class _OpenTable(Table):
    """A table that drops its lesser columns where it is too wide for the terminal.

    If that is not enough, it is a list with all of them: no cell is cut.

    Attributes:
        lesser: Headers of these columns, the least important first.
    """

    lesser: tuple[str, ...] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._needed(console, options) <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        for count in range(1, len(self.lesser) + 1):
            narrow = self._without(self.lesser[:count])
            if narrow._needed(console, options) <= options.max_width:
                yield narrow
                return
        yield Text(str(self.title or ""), "bold")
        columns = [(Text(str(column.header)), list(column.cells)) for column in self.columns]
        for name, *cells in zip(*(cells for _, cells in columns), strict=True):
            yield Padding(_text(name), (0, 0, 0, 2))
            facts = [
                Text(" ").join([header, text])
                for (header, _), text in zip(columns[1:], map(_text, cells), strict=True)
                if text
            ]
            yield Padding(Text(", ").join(facts), (0, 0, 0, 4))
        yield Text()

    def _without(self, headers: Sequence[str]) -> "_OpenTable":
        """Returns a table with some columns left out, which it names."""
        kept = [column for column in self.columns if column.header not in headers]
        table = _opened(f"{self.title}; in wider terminals: {', '.join(headers)}")
        for each in kept:
            table.add_column(
                each.header,
                justify=each.justify,
                no_wrap=each.no_wrap,
                overflow=each.overflow,
                min_width=each.min_width,
            )
        for cells in zip(*(column.cells for column in kept), strict=True):
            table.add_row(*cells)
        return table

    def _needed(self, console: Console, options: ConsoleOptions) -> int:
        unlimited, needed = options.update(max_width=10_000), 1
        for column in self.columns:
            cells = [column.header, *column.cells]
            width = measure_renderables(console, unlimited, cells).maximum
            needed += 3 + (width if column.no_wrap else min(width, column.min_width or _WRAPPED))
        return needed


def _opened(title: str) -> _OpenTable:
    return _OpenTable(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")


def open_table(
    title: str,
    left: Iterable[str],
    right: Iterable[str],
    last: Iterable[str] = (),
    *,
    lesser: Sequence[str] = (),
) -> Table:
    """Opens a table: columns aligned to the left, to the right, and wrapped ones.

    Where it is too wide, those that are ``lesser`` are left out, from the first on.
    """
    table = _opened(title)
    table.lesser = tuple(lesser)
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    for name in last:
        table.add_column(name, overflow="fold")
    return table


def _text(cell: RenderableType) -> Text:
    return cell if isinstance(cell, Text) else Text.from_markup(str(cell))


def print_report(report: Report, console: Console) -> None:
    """Prints the findings of a run."""
    _print_cut(report, console, whole=report.recipe.goal.rank == NO_RANK)
    console.print(_artifact_table(report))
    if any(item.alternative for item in report.artifacts):
        console.print(_alternative_table(report.artifacts))
    if any(item.target_cost for item in report.artifacts):
        console.print(_cost_table(report.artifacts))
    _print_conversions(report.artifacts, console)
    _print_lines(console, *_training_lines(report))
    if report.budget is not None:
        console.print(_budget_text(report.budget))
    _print_lines(console, *_findings(report), _written(report))
    for warning in report.warnings:
        console.print(Text(f"Warning: {warning}", "bold yellow"), soft_wrap=True)
    if report.recipe.export.report and not report.drawing_error:
        print_page(report.output / PAGE_FILE, console)


def print_page(page: Path, console: Console) -> None:
    """Prints where the report of a run is."""
    _print_lines(console, f"Next: open {page}")


def print_compression(report: CompressionReport, console: Console) -> None:
    """Prints the findings of a compression, and the command that follows."""
    _print_cut(report, console)
    file = report.output / COMPRESSED_FILE
    following = f"Next: exporter export {file} --format tflite"
    if not file.exists():
        following = f"Next, in Python: exporter.restore(model, {str(report.output)!r})"
    _print_lines(console, *_training_lines(report), _written(report), following)


def print_artifacts(artifacts: Sequence[Artifact], console: Console) -> None:
    """Prints the files that an export wrote, and the command that follows."""
    table = open_table("Artifacts", ["artifact", "format", "variant"], ["bytes"])
    for artifact in artifacts:
        path = Text(str(artifact.path))
        table.add_row(path, artifact.format, artifact.variant, f"{artifact.size:,}")
    console.print(table)
    _print_lines(console, f"Next: exporter verify {artifacts[0].path} MODEL")


def print_verdicts(reports: Sequence[ArtifactReport], console: Console) -> None:
    """Prints whether artifacts predict what their model predicts."""
    _print_conversions(reports, console)
    for report in reports:
        _print_lines(console, *_conversion_lines(report))
    for report in reports:
        verdict = Text(f"Conversion   {report.label}: ").append_text(
            _conversion_verdict(report.conversion)
        )
        console.print(verdict)


def _print_lines(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _print_cut(report: CompressionReport, console: Console, *, whole: bool = False) -> None:
    training, before, after = report.training, report.before, report.after
    if whole:
        _print_lines(console, "Every layer stays whole, as rank none asks")
    elif not report.factorized:
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
    console.print(layer_table(report.layers))
    console.print(
        Text(
            f"Model {report.model_name}: {before.params:,} -> {after.params:,} parameters "
            f"({before.params / max(1, after.params):.1f}×), {before.macs:,} -> {after.macs:,} "
            f"MACs ({before.macs / max(1, after.macs):.1f}×)"
        )
    )


def _print_conversions(artifacts: Iterable[ArtifactReport], console: Console) -> None:
    verdicts = [(item.label, item.conversion) for item in artifacts if item.conversion]
    parities = [(label, verdict.parity) for label, verdict in verdicts if verdict.parity]
    qualities = [(label, verdict.quality) for label, verdict in verdicts if verdict.quality]
    if parities:
        console.print(_parity_table(parities))
    if qualities:
        console.print(_quality_table(qualities))


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
                _cell(worst.top1_agreement, ".2%"),
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


def _largest(losses: Mapping[str, float]) -> list[tuple[str, float]]:
    return list(losses.items())[:SHOWN_LOSSES]


def _excess_text(excess: Excess) -> str:
    if excess.total <= excess.limit and not excess.passed:
        return f"channel {excess.channel:+.1f} dB [{excess.channel_limit:.1f}]"
    return f"{excess.total:+.1f} dB [{excess.limit:.1f}]"


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
            _cell(plan.rank, "") or "kept",
            params,
            _cell(layer.relative_error, ".2%"),
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
            _conversion_verdict(item.conversion),
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
    return Text(f"Budget       {text}").append_text(_verdict(budget.held))


def _written(report: CompressionReport) -> str:
    return f"\nWritten to {report.output} in {report.seconds:.0f} s"


def _verdict(passed: bool, reason: str = "") -> Text:
    failed = f"FAILED: {reason}" if reason else "FAILED"
    return Text("passed", "green") if passed else Text(failed, "bold red")


def _conversion_verdict(verdict: ConversionVerdict | None) -> Text:
    if verdict is None or verdict.error is not None:
        return _verdict(False, "not compared")
    proofs = {
        "tolerance": verdict.parity,
        "noise": verdict.quality,
        "factors": verdict.structure,
    }
    reasons = [name for name, proof in proofs.items() if proof is not None and not proof.passed]
    return _verdict(verdict.passed, ", ".join(reasons))


def _compression_verdict(report: Report, item: ArtifactReport) -> Text:
    """Judges low rank, and what a faithful artifact lost beside."""
    verdict, conversion = report.compression, item.conversion
    if any(output.collapsed for output in verdict.outputs):
        return _verdict(False, "collapsed")
    lost = verdict.passed and conversion is not None and conversion.passed and not item.accepted
    return _verdict(verdict.passed and not lost, "loss")


def _cell(value: float | None, style: str) -> str:
    return "" if value is None else format(value, style)


def _findings(report: Report) -> Iterator[str]:
    cut = "by low rank" if report.factorized else "as it is"
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
        yield from _conversion_lines(item)
        if item.conversion is None or item.conversion.quality is None:
            continue
        for output in report.compression.outputs:
            before, after = output.baseline, item.conversion.metrics.get(output.output)
            if before is not None and output.compressed is not None and after is not None:
                yield (
                    f"Stages       {name}, {output.output}: {before.name} {_metric(before)} -> "
                    f"{_metric(output.compressed)} {cut} -> {_metric(after)} by quantization"
                )


def _conversion_lines(item: ArtifactReport) -> Iterator[str]:
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
        shares = ", ".join(f"{layer} {part:.0%}" for layer, part in _largest(conversion.losses))
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
