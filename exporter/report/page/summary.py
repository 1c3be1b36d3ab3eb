"""What a report says first: the verdict, what to do next, and the figures that matter."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.formats import FORMATS
from exporter.report.results import means_of

Values = Mapping[str, Any]
"""A part of a manifest."""

PASSED, WARNED, FAILED = "passed", "passed, with warnings", "failed"


@dataclass(frozen=True)
class Card:
    """A figure that stands out, and what it is a figure of."""

    figure: str
    unit: str
    told: str


def badge(manifest: Values) -> str:
    """Returns the verdict in a word or three."""
    if not manifest["passed"]:
        return FAILED
    return WARNED if manifest["warnings"] else PASSED


def verdict(manifest: Values) -> str:
    """Returns the verdict in one sentence."""
    artifacts = manifest["artifacts"]
    accepted = sum(artifact["accepted"] for artifact in artifacts)
    budget = manifest["budget"]
    if manifest["partial"]:
        return f"The run was interrupted: {_counted(accepted)} had passed by then."
    if failed := len(artifacts) - accepted:
        reasons = [
            "not converted" if artifact["error"] else "does not pass"
            for artifact in artifacts
            if not artifact["accepted"]
        ]
        unconverted = reasons.count("not converted")
        parts = [f"{unconverted} could not be converted"] if unconverted else []
        if failed > unconverted:
            parts.append(f"{failed - unconverted} did not pass and must not be shipped")
        return f"Of {_counted(len(artifacts))}, {' and '.join(parts)}."
    if budget and not budget["held"]:
        return "Every artifact predicts what the Keras model predicts, but the budget is not kept."
    what = "Every artifact predicts" if len(artifacts) > 1 else "The artifact predicts"
    cost = next(_costs(manifest), "")
    kind = "compressed Keras model" if manifest["factorized"] else "Keras model"
    return f"{what} what the {kind} predicts, proven in its own runtime{cost}."


def _counted(number: int) -> str:
    return f"{number} artifact{'' if number == 1 else 's'}"


def _costs(manifest: Values) -> Iterator[str]:
    groups = manifest.get("channels", ())
    means = means_of(
        manifest["factorized"], sum(group["before"] - group["after"] for group in groups)
    )
    for output in manifest["compression"]["outputs"] if means else ():
        before, after = output["baseline"], output["compressed"]
        if before and after and None not in (before["value"], after["value"]):
            change = f"{metric(before)} to {metric(after)}"
            samples = f"on {output['samples']:,} test samples"
            yield f"; {means} moved the {before['name']} from {change} {samples}"
        elif output["top1_agreement"] is not None:
            yield f"; {output['top1_agreement']:.2%} of its classes are the baseline's"


def next_steps(manifest: Values) -> list[str]:
    """Returns what to do next, one sentence each."""
    steps = list(manifest["warnings"])
    for artifact in manifest["artifacts"]:
        if artifact["error"]:
            steps.append(f"{artifact['format']} was not converted: {artifact['error']}")
        elif not artifact["accepted"]:
            told = (artifact["conversion"] or {}).get("error")
            steps.append(
                f"Do not ship {artifact['file']['path']}: {told}"
                if told
                else f"Do not ship {artifact['file']['path']}: the tables below say where it "
                "departs. More bits, a larger rank, or more calibration samples lose less."
            )
    trainable = manifest["data"]["samples"].get("train") and not manifest["finetuning"]
    trained = ", or --finetune 10" if trainable else ""
    if not manifest["compression"]["passed"]:
        steps.append(f"Give a larger rank or budget{trained}: the compression cost too much.")
    budget = manifest["budget"]
    if budget and not budget["held"]:
        steps.append(f"Give a larger --{budget['goal'].replace('_', '-')}{trained}.")
    lead = lead_of(manifest)
    if lead:
        others = (
            "" if lead["ratio"] is None else f", {lead['ratio']:.1f}× smaller than the baseline"
        )
        fmt = FORMATS.get(lead["format"])
        load = "; lines to load it are under Files" if fmt and fmt.snippets else ""
        steps.append(f"Ship {lead['file']['path']} ({size(lead['file']['size'])}{others}){load}.")
        steps.append(
            "Prove the run again where the files arrive, without TensorFlow: exporter verify DIR."
        )
    return steps


def lead_of(manifest: Values) -> Values | None:
    """Returns the artifact to ship: the smallest one that passed and beats its alternative."""
    accepted = [a for a in manifest["artifacts"] if a["accepted"] and a["file"]]
    better = [a for a in accepted if not a["worse_than_alternative"]]
    return min(better or accepted, key=lambda a: a["file"]["size"], default=None)


def cards(manifest: Values) -> list[Card]:
    """Returns the figures that stand out."""
    return [*_artifact_cards(manifest), *_model_cards(manifest)]


def _artifact_cards(manifest: Values) -> Iterator[Card]:
    lead = lead_of(manifest)
    if lead is None:
        return
    file, latency, other = lead["file"], lead["latency"], lead["alternative"]
    if lead["ratio"] is not None:
        sizes = f"{size(lead['baseline_size'])} to {size(file['size'])}"
        yield Card(f"{lead['ratio']:.1f}×", "smaller", f"{file['path']}: {sizes}, from float32")
    if latency:
        times = [time(latency[key]["p50"]) for key in ("baseline", "compressed")]
        told = f"a call: {' to '.join(times)}, from float32, one thread"
        yield Card(f"{latency['speedup']:.1f}×", "faster", told)
    if other and latency:
        ratio = other["size"] / max(1, file["size"])
        speed = other["latency"]["p50"] / latency["compressed"]["p50"]
        told = f"against the uncompressed network in {lead['variant']}, and {speed:.1f}× as fast"
        yield Card(f"{ratio:.1f}×", "smaller", told)


def _model_cards(manifest: Values) -> Iterator[Card]:
    lead = lead_of(manifest)
    for output in manifest["compression"]["outputs"][:1]:
        before = output["baseline"]
        after = (lead or {}).get("conversion", {}).get("metrics", {}).get(output["output"])
        after = after or output["compressed"]
        if before and after and None not in (before["value"], after["value"]):
            where = lead["file"]["path"] if lead else "the compressed model"
            told = f"of {where}; {metric(before)} before, {output['samples']:,} test samples"
            yield Card(metric(after), before["name"], told)
        elif output["top1_agreement"] is not None:
            told = f"of {output['samples']:,} samples have the class that the baseline gives"
            yield Card(f"{output['top1_agreement']:.1%}", "agree", told)
    before, after = (manifest["totals"][key] for key in ("before", "after"))
    for key, unit in (("params", "parameters"), ("macs", "MACs")):
        told = f"{before[key]:,} to {after[key]:,}"
        yield Card(f"{before[key] / max(1, after[key]):.1f}×", f"fewer {unit}", told)


def metric(values: Values) -> str:
    """Writes a task metric, such as ``95.95%``."""
    value = values["value"]
    return f"{value:.2%}" if values["name"] == "accuracy" else f"{value:.4g}"


def size(count: float) -> str:
    """Writes a number of bytes, such as ``239 KB``; a kilobyte is 1000 bytes."""
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return (
                f"{count:,.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
            )
        count /= 1000
    return f"{count:,.1f} GB"


def time(seconds: float) -> str:
    """Writes a time, such as ``15.3 µs``."""
    for unit, scale in (("s", 1), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
