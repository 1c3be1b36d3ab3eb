"""The options of verbs that judge artifacts which are there already; no recipe has them."""

from dataclasses import dataclass

from exporter.options.groups import Group, _option
from exporter.options.quantities import parse_part
from exporter.options.values import flag, number, whole, wholes


@dataclass(frozen=True, kw_only=True)
class Timing(Group):
    """How artifacts are called."""

    title = "timing"

    batch: int | None = _option(
        None, whole(1, unit="samples"), "time batches of so many samples as well as single ones"
    )
    threads: tuple[int, ...] = _option(
        (1,), wholes(1, 1024, unit="threads"), "numbers of threads, separated by commas"
    )
    operators: bool = _option(
        False, flag(False), "show the time by kind of operator, where the runtime has a profiler"
    )


@dataclass(frozen=True, kw_only=True)
class Comparison(Group):
    """What a new run may lose of an old one."""

    title = "limits"

    max_loss: float | None = _option(
        None,
        number(0, read=parse_part, metavar="PART"),
        "most accuracy that an output may lose, e.g. 1%, or by which its error may grow (default: "
        "0.5% or two standard errors of the old accuracy, whichever is more; errors: 5%)",
    )
    max_growth: float = _option(
        0.02, number(0, read=parse_part, metavar="PART"), "most that a file may grow by, e.g. 5%"
    )
    max_slowdown: float | None = _option(
        None,
        number(0, read=parse_part, metavar="PART"),
        "most that the stored latency may grow by, e.g. 10% (default: it is not judged, for it is "
        "that of the machine of each run)",
    )
