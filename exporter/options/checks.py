"""The options of single verbs, which no recipe has."""

from dataclasses import dataclass

from exporter.options.groups import Group, option
from exporter.options.quantities import parse_bytes, parse_part, parse_seconds
from exporter.options.values import choice, flag, names, number, text, whole, wholes

RANK, CHANNELS, BITS = CHOICES = ("rank", "channels", "bits")


@dataclass(frozen=True, kw_only=True)
class Sweeping(Group):
    """The trials of a sweep, and the choice among their artifacts."""

    title = "trials, and the choice among them"

    ranks: tuple[str, ...] | None = option(
        None,
        names("RANK,RANK,..."),
        "ranks of the trials, each as --rank takes it (default: those of 4, 8, 16, 20, 32 and 64 "
        "that layers have)",
    )
    search: int | None = option(
        None,
        whole(1, unit="trials"),
        "instead of ranks, so many trials within budgets of parameters that Optuna proposes, an "
        "artifact each; needs the extra 'search'",
    )
    jobs: int = option(
        1,
        whole(1, unit="trials"),
        "how many trials run at a time; more than one disturb each other's latencies",
    )
    ray: str | None = option(
        None,
        text("an address as text", metavar="ADDRESS"),
        "runs the trials on a Ray cluster, whose machines share the folders, e.g. HOST:6379, or "
        "auto; needs the extra 'ray'",
    )
    best: str | None = option(
        None,
        choice("size", "latency", "macs", "instructions", "accuracy"),
        "instead of ranks, trials within budgets that close in on the artifact that is best in "
        "this: accuracy within max_size or max_latency, the others within max_drop; instructions "
        "are those of an ARM64 processor, see scripts/arm64",
    )
    choose: tuple[str, ...] | None = option(
        None,
        names("KIND"),
        "what best may choose: rank, channels, and bits among the variants of quantize, or all "
        "variants if it names none (default: all three)",
    )
    max_size: int | None = option(
        None, whole(1, read=parse_bytes), "most bytes of the artifact that is chosen, e.g. 250KB"
    )
    max_latency: float | None = option(
        None,
        number(0, inside=True, read=parse_seconds, metavar="TIME"),
        "most time of one call of it, e.g. 50us",
    )
    max_drop: float | None = option(
        None,
        number(0, 1, inside=True, read=parse_part, metavar="PART"),
        "most accuracy that it may lose, e.g. 0.5%; the smallest such artifact is chosen",
    )
    parquet: bool = option(
        False,
        flag(False),
        "write the table as sweep.parquet as well as sweep.csv; needs the extra 'parquet'",
    )


@dataclass(frozen=True, kw_only=True)
class Timing(Group):
    """How artifacts are called."""

    title = "timing"

    batch: int | None = option(
        None, whole(1, unit="samples"), "time batches of so many samples as well as single ones"
    )
    threads: tuple[int, ...] = option(
        (1,), wholes(1, 1024, unit="threads"), "numbers of threads, separated by commas"
    )
    operators: bool = option(
        False, flag(False), "show the time by kind of operator, where the runtime has a profiler"
    )


@dataclass(frozen=True, kw_only=True)
class Comparison(Group):
    """What a new run may lose of an old one."""

    title = "limits"

    max_loss: float | None = option(
        None,
        number(0, read=parse_part, metavar="PART"),
        "most accuracy that an output may lose, e.g. 1%, or by which its error may grow (default: "
        "0.5% or two standard errors of the old accuracy, whichever is more; errors: 5%)",
    )
    max_growth: float = option(
        0.02, number(0, read=parse_part, metavar="PART"), "most that a file may grow by, e.g. 5%"
    )
    max_slowdown: float | None = option(
        None,
        number(0, read=parse_part, metavar="PART"),
        "most that the stored latency may grow by, e.g. 10% (default: it is not judged, for it is "
        "that of the machine of each run)",
    )
