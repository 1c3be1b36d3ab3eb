"""Measures what single layers cost on a target, whole and at several ranks.

Each layer is exported on its own, with inputs of the sizes that it has in the model, in the variant
that will ship. Kernels of runtimes work in tiles, so that a pair of rank 7 may cost more than one
of rank 8: costs are measured at small ranks and at multiples of ``TILE``, and interpolated at the
multiples in between.
"""

import hashlib
import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from exporter.disk import scratch_folder
from exporter.errors import ConversionError, ModelError
from exporter.formats.base import ExportOptions, Format
from exporter.graph.alone import INPUT, alone, fingerprint
from exporter.graph.network import Network
from exporter.inputs import read_json
from exporter.isolation import ChildError
from exporter.lowrank.candidates import Candidate, factorizable
from exporter.lowrank.engine import Engine, build_replacements, placeholder
from exporter.lowrank.kernels import Kernel
from exporter.lowrank.ranks.costs import Costs, most_useful
from exporter.progress import Progress
from exporter.targets.base import Cost, Subject, Target

TILE = 8

SMALL_RANKS = (1, 2, 4)

CALIBRATION_SAMPLES = 4
"""Samples of noise: ranges of activations change no cost."""

AT_A_TIME, BYTES_AT_A_TIME = 32, 2**28
"""Artifacts that a target measures in one process, and bytes that they may take."""

MOST_COST = 1e300
"""Costs in a file that are larger are damage."""

Ranks = Mapping[str, Sequence[int]]


def measured_ranks(kernel: Kernel) -> list[int]:
    """Lists the ranks at which a kernel is measured: dense where small, then in growing steps."""
    limit = most_useful(kernel)
    ranks, step = [*SMALL_RANKS, TILE], TILE
    while ranks[-1] + step < limit:
        ranks.append(ranks[-1] + step)
        if ranks[-1] >= 4 * step:
            step *= 2
    ranks.append(TILE * (math.ceil(limit / TILE) - 1))  # The last multiple below the limit.
    return sorted({rank for rank in ranks if 1 <= rank < limit})


@dataclass(frozen=True)
class MeasuredCosts(Costs):
    """The costs of kernels on a target; those of layers that cannot be measured follow their MACs.

    Attributes:
        total: Cost of the whole network.
        tables: Cost by rank, None being the whole kernel, by candidate name.
        per_mac: Cost of a multiply-accumulate, on average.
    """

    unit: str
    total: int
    tables: Mapping[str, Mapping[int | None, int]]
    per_mac: float

    def of(self, candidate: Candidate, rank: int | None) -> int:
        """Returns the cost that was measured, or lies between two that were."""
        table = self.tables.get(candidate.name)
        if table is None:
            return round(self.per_mac * (candidate.macs(rank) or 0))
        if rank in table or rank is None:
            return table[rank]
        ranks = sorted(r for r in table if r is not None)
        above = min(max(1, bisect_left(ranks, rank)), len(ranks) - 1)
        below = ranks[above - 1], ranks[above]
        return round(np.interp(rank, below, [table[r] for r in below]))

    def fixed(self, candidates: Sequence[Candidate]) -> int:
        """Returns the rest of the whole network.

        It may be negative: each layer alone has its own call, and conversions of its tensors.
        """
        return self.total - sum(self.of(c, None) for c in factorizable(candidates))

    def ranks(self, candidate: Candidate) -> tuple[int, ...]:
        """Lists the ranks that were measured, and the multiples of ``TILE`` between them."""
        table, kernel = self.tables.get(candidate.name), candidate.kernel
        if table is None or kernel is None:
            return super().ranks(candidate)
        measured = [rank for rank in table if rank is not None]
        between = range(TILE, max(measured, default=0), TILE)
        return tuple(sorted({*measured, *between}))


@dataclass
class LayerMeasurement:
    """Measures layers of one model, each shape once.

    Attributes:
        options: Of the export of each layer, but for the calibration.
        cache: File that keeps costs from run to run; None keeps none.
    """

    target: Target
    fmt: Format
    options: ExportOptions
    engine: Engine
    cache: Path | None
    progress: Progress
    _known: dict[str, float] = field(default_factory=dict, init=False)

    def costs(self, total: Cost, ranks: Ranks | None = None) -> MeasuredCosts:
        """Measures the kernels at ranks by candidate name; None is all that may be worth choosing.

        Args:
            total: What the whole network costs.
            ranks: The ranks; kernels that are not named are not measured.
        """
        chosen = factorizable(self.engine.candidates)
        if ranks is None:
            ranks = {c.name: measured_ranks(c.kernel) for c in chosen if c.kernel}
        if self.cache is not None:
            self._known = read_costs(self.cache)
        found, wanted = {}, [c for c in chosen if c.name in ranks]
        label = f"Measuring layers on {self.target.name}"
        with self.progress.track(label, len(wanted)) as advance:
            for number, candidate in enumerate(wanted, 1):
                found[candidate.name] = self._alone(candidate, ranks[candidate.name])
                advance(number, candidate.name)
        if self.cache is not None:
            write_costs(self._known, self.cache)
        steps, macs = self.target.steps, max(1, self.engine.network.macs)
        by_path: dict[str, int] = {}
        for candidate in chosen:
            by_path[candidate.path] = by_path.get(candidate.path, 0) + (candidate.macs() or 0)
        tables = {}
        for candidate in wanted:
            table = found[candidate.name]
            if not table or not all(map(math.isfinite, table.values())):
                continue
            # A layer with several kernels is whole but for one of them: they share its cost.
            part = (candidate.macs() or 0) / max(1, by_path[candidate.path])
            whole = table[None]
            tables[candidate.name] = {
                rank: max(0, round(steps * candidate.times * (part * whole + value - whole)))
                for rank, value in table.items()
            }
        value = round(steps * total.value)
        return MeasuredCosts(
            f"{self.target.unit} on {self.target.name}", value, tables, value / macs
        )

    def _alone(self, candidate: Candidate, ranks: Iterable[int]) -> dict[int | None, float]:
        """Returns the cost of a layer by itself, whole and at each rank.

        NaN stands for what does not convert or run; the result is empty if the layer cannot stand
        alone.
        """
        layer, kernel = candidate.layer, candidate.kernel
        try:
            whole = alone(layer, self.engine.network.calls.get(layer))
        except ModelError:
            whole = None
        if whole is None or kernel is None:
            return {}
        described = fingerprint(whole)
        keys = {rank: self._key(described, kernel.name, rank) for rank in (None, *ranks)}
        fresh = [rank for rank, key in keys.items() if key not in self._known]
        at_a_time = max(1, min(AT_A_TIME, BYTES_AT_A_TIME // (4 * whole.params)))
        for start in range(0, len(fresh), at_a_time):
            measured = self._measured(whole, candidate, fresh[start : start + at_a_time])
            self._known |= {keys[rank]: value for rank, value in measured.items()}
        return {rank: self._known[key] for rank, key in keys.items()}

    def _key(self, layer: str, kernel: str, rank: int | None) -> str:
        options, cut = self.options, self.engine.cut
        made = [version(name) for name in ("tensorflow", "ai-edge-litert", "keras")]
        variant = [self.fmt.name, options.variant, options.granularity, options.opset]
        way = [cut.convolution, cut.merge, kernel, rank]
        described = json.dumps([self.target.name, *variant, *made, *way, layer])
        return hashlib.sha256(described.encode()).hexdigest()[:32]

    def _measured(
        self, whole: Network, candidate: Candidate, ranks: Sequence[int | None]
    ) -> dict[int | None, float]:
        """Exports a layer at some ranks, None being the whole one, and measures them in turns."""
        (info,) = whole.inputs
        rng, shape = np.random.default_rng(0), whole.signature.sample_shape(info)
        options = replace(self.options, batch=1)
        if self.fmt.variant(options.variant).calibrated:
            noise = rng.normal(size=(CALIBRATION_SAMPLES, *shape[1:])).astype(info.dtype)
            samples = [{INPUT: sample[None]} for sample in noise]
            options = replace(options, calibration=samples)
        found = dict.fromkeys(ranks, math.nan)
        with scratch_folder() as folder:
            subjects: dict[int | None, Subject] = {}
            for rank in ranks:
                path = folder / f"{rank}{self.fmt.suffix}"
                network = whole if rank is None else self._factorized(whole, candidate, rank)
                with suppress(ConversionError):  # Costs follow the MACs then.
                    self.fmt.export(network, path, replace(options, conversions={}))
                    subjects[rank] = Subject(path, whole)
            inputs = {INPUT: np.zeros(shape, info.dtype)}
            with suppress(ChildError):
                costs = self.target.measure(
                    self.fmt, list(subjects.values()), inputs, detailed=False
                )
                found |= {rank: c.value for rank, c in zip(subjects, costs, strict=True)}
        return found

    def _factorized(self, whole: Network, candidate: Candidate, rank: int) -> Network:
        if candidate.kernel is None:
            return whole
        rng = np.random.default_rng(0)
        parts = {candidate.name: placeholder(candidate.kernel, rank, rng, merge=candidate.merge)}
        (replacement,) = build_replacements([candidate], parts).values()
        return whole.rewrite({candidate.layer.name: replacement})


def read_costs(file: Path) -> dict[str, float]:
    """Reads costs by key; a file that is damaged has none."""
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return {}
    values = found if isinstance(found, dict) else {}
    numbers = {key: v for key, v in values.items() if type(v) in {int, float}}
    costs = {key: value for key, value in numbers.items() if abs(value) < MOST_COST}
    return {key: float(value) for key, value in costs.items()}


def write_costs(costs: Mapping[str, float], file: Path) -> None:
    """Writes costs by key, with those that another process wrote meanwhile.

    Where that cannot be, they are measured again the next time.
    """
    known = {key: value for key, value in costs.items() if math.isfinite(value)}
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(file.parent) as scratch:
            written = scratch / file.name
            written.write_text(json.dumps({**read_costs(file), **known}))
            written.replace(file)
