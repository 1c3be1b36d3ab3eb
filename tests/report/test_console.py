import dataclasses
import io
import re

import pytest
from rich.console import Console

from exporter.report.console import print_report
from exporter.report.tables import WIDTH


def printed(report, width=WIDTH):
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=width))
    return stream.getvalue()


def row(text, start):
    """Returns the line of a table that starts with a word."""
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [start]][:1]
    return line


def test_report_shows_layers_artifacts_and_verdicts(accepted):
    text = printed(accepted)
    layer = row(text, "scores")
    for fact in ("Dense", "8 × 6", "54 -> 34", "below break-even 3.4"):
        assert fact in layer
    assert "54 -> 34 parameters (1.6×), 48 -> 28 MACs (1.7×)" in text
    for artifact in accepted.artifacts:
        line = row(text, artifact.artifact.path.name)
        assert f"{artifact.artifact.size:,}" in line
        assert line.count("passed") == 2
        assert line.count("µs") == 2
        assert f"{artifact.latency.speedup:.1f}×" in line
    assert "FAILED" not in text
    assert "all 2 factors found at their shapes" in text
    assert str(accepted.output) in row(text, "Written")


def test_comparisons_show_figures_beside_the_tolerance(accepted):
    text = printed(accepted)
    for artifact in accepted.artifacts:
        for comparison in artifact.conversion.parity.comparisons:
            assert comparison.backend in text
    worst = max(
        (c for c in accepted.artifacts[0].conversion.parity.comparisons if c.output == "scores"),
        key=lambda comparison: comparison.strain,
    )
    assert f"{worst.tolerance.atol:.1e}" in text


def test_quantized_artifacts_are_shown_beside_their_limits(quantized):
    text = printed(quantized)
    line = next(
        line for line in text.splitlines() if "model-int8.tflite" in line and "dB [" in line
    )
    judged = quantized.artifacts[2].conversion.quality
    (first, _) = judged.outputs
    assert f"{first.snr_db:.1f} dB [{judged.limits.snr_db:.0f}]" in line
    assert f"{first.top1_agreement:.2%}" in line
    assert "by low rank -> " in text


def test_figures_are_a_line_an_artifact_that_has_any(accepted, installed):
    installed("c")
    (line,) = [line for line in printed(accepted).splitlines() if line.startswith("Figures")]
    (item,) = [item for item in accepted.artifacts if item.artifact.figures]
    assert f" c: arena bytes {item.artifact.figures['arena_bytes']:,}" in line


def test_rejected_artifact_stands_out_with_its_reason(rejected):
    text = printed(rejected)
    line = row(text, "rejected/model.onnx")
    assert line.count("FAILED: tolerance") == 1  # Conversion; the compression is not to blame.
    assert line.count("passed") == 1
    assert "0.0e+00" in text


def test_failed_conversion_is_told_by_the_converter(unconverted):
    text = printed(unconverted)
    assert "not converted" in row(text, "tflite")
    assert "tflite: not converted. " in text
    assert "builtin operators" in text


def test_a_run_that_compresses_nothing_begins_with_it(unconverted, accepted):
    assert printed(unconverted).startswith("NOTHING WAS COMPRESSED")
    assert "NOTHING" not in printed(accepted)


def test_layers_that_are_kept_say_why(unconverted):
    line = row(printed(unconverted), "out")
    assert "kept" in line
    assert "break-even" in line


def test_fine_tuning_is_a_line_a_phase(finetuned):
    text = printed(finetuned)
    lines = [line for line in text.splitlines() if line.startswith("Fine-tuning")]
    for line, phase in zip(lines, finetuned.finetuning.phases, strict=True):
        assert f" {phase.phase}, 2 epochs in " in line
        assert f"weights of epoch {phase.best}" in line


@pytest.mark.slow
def test_ranks_that_were_chosen_anew_are_told(adapted):
    text = printed(adapted)
    adaptation = adapted.finetuning.adaptation
    (line,) = [line for line in text.splitlines() if line.startswith("Ranks ")]
    for name, rank in adaptation.planned.items():
        assert f"{name} {rank} -> {adaptation.adapted[name] or 'whole'}" in line
    assert f"for the same {adaptation.limit:,} parameters" in line
    assert ("NOT better" in line) != adaptation.taken


def test_narrow_terminal_loses_no_verdict(rejected):
    text = printed(rejected, width=80)
    assert "FAILED" in text


def test_no_color_is_honoured(rejected, monkeypatch):
    def colours():
        stream = io.StringIO()
        print_report(rejected, Console(file=stream, force_terminal=True, color_system="standard"))
        return re.findall(r"\x1b\[(?:\d+;)*3\d", stream.getvalue())

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert colours()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours()


def test_lesser_columns_are_left_out_where_a_table_is_too_wide(accepted):
    lines = printed(accepted, width=80).splitlines()
    assert max(len(line) for line in lines if "─" in line or line.startswith("  ")) <= 80
    head = next(line for line in lines if line.split()[:1] == ["artifact"])
    kept = ["artifact", "bytes", "ratio", "conversion", "compression", "speedup"]
    assert head.split() == kept
    assert "in wider terminals: baseline, compressed" in " ".join(lines)
    assert "in wider terminals" not in printed(accepted)


def test_a_loss_beyond_the_limit_is_told_beside_the_verdict(accepted):
    judged = dataclasses.replace(accepted.compression, max_loss=-1.0)
    first = dataclasses.replace(accepted.artifacts[0], accepted=False)
    text = printed(dataclasses.replace(accepted, compression=judged, artifacts=(first,)))
    assert "FAILED: loss" in row(text, first.artifact.path.name)


@pytest.mark.parametrize("width", [30, 60, 80, 100])
def test_tables_that_do_not_fit_become_lists_that_lose_nothing(accepted, width):
    lines = printed(accepted, width=width).splitlines()
    text = " ".join(" ".join(lines).split())
    for artifact in accepted.artifacts:
        name = artifact.artifact.path.name
        assert any(line.split()[:1] == [name] for line in lines)
        assert f"{artifact.artifact.size:,}" in text
    for layer in accepted.layers:
        assert any(line.split()[:1] == [layer.plan.name] for line in lines)
        assert layer.plan.reason in text


def test_artifacts_are_shown_beside_the_uncompressed_network(quantized):
    lines = printed(quantized).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Artifact / uncompressed"))
    for item in quantized.artifacts:
        line = next(line for line in lines[start:] if line.split()[:1] == [item.label])
        assert f"{item.artifact.size:,} / {item.alternative.size:,}" in line
        own, other = item.conversion.standings["scores"], item.alternative.standings["scores"]
        assert f"{own.top1_agreement:.2%} / {other.top1_agreement:.2%}" in line
