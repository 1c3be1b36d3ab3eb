"""Compares ways to choose ranks, and ways to cut kernels, at equal numbers of parameters.

Everything that this project chooses by default can lose here: ranks are chosen by five policies,
kernels are cut by four methods, and all of them get the same budgets, the same calibration samples
and the same fine-tuning. Test data only measure. "uniform" is the same part of break-even in every
layer, "same rank" the same rank, which leaves small layers dense.

    scripts/benchmark allocation --fashion PATH [--networks vgg --budgets 10 20 ...]

Writes a table, as Markdown, and a plot into ``artifacts/bench/``, where trained baselines are kept
as well.
"""

import argparse
import hashlib
import logging
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from exporter.data import Dataset, Split, load_dataset
from exporter.graph.fitting import fitted
from exporter.graph.network import Network
from exporter.lowrank.calibration import Calibration, calibration_from
from exporter.lowrank.engine import Engine
from exporter.lowrank.planner import Planner
from exporter.lowrank.ranks.budgeted import BudgetedPolicy, BudgetPolicy, EnergyBudgetPolicy
from exporter.lowrank.ranks.costs import PARAMS
from exporter.lowrank.ranks.knapsack import UnreachableError
from exporter.lowrank.ranks.policy import FixedRank, RankPlan
from exporter.lowrank.sensitivity import divergence
from exporter.options.groups import Cut
from exporter.progress import Silent
from exporter.recipe import Recipe
from exporter.training.reference import reference_for, train_reference
from scripts.bench.lib.policies import GreedyBudgetPolicy, UniformBudgetPolicy

FOLDER = Path(__file__).resolve().parents[2] / "artifacts" / "bench"

NOTEBOOK = "notebook-mlp"
"""The reference MLP, trained on Fashion-MNIST as the notebook trains: measured at rank 20 alone."""

NETWORKS = (NOTEBOOK, "fashion-mlp", "digits-mlp", "resnet", "vgg")
EPOCHS = {"resnet": 3, "vgg": 2}

METHODS = {
    "svd": Cut(method="svd"),
    "whitened": Cut(method="whitened"),
    "kfac alone": Cut(method="kfac", cascade=False),
    "kfac": Cut(method="kfac"),
}
DEFAULT = "kfac"

SAME_RANK = "same rank"
POLICIES: dict[str, type[BudgetedPolicy] | None] = {
    "uniform": UniformBudgetPolicy,
    SAME_RANK: None,
    "energy": EnergyBudgetPolicy,
    "greedy": GreedyBudgetPolicy,
    "knapsack": BudgetPolicy,
}

RANK = 20
"""The rank at which the reference MLP is compared as well."""

NOTEBOOK_EPOCHS = 10
NOTEBOOK_BATCH = 5000

TRAINING_BATCH = 128
PREDICTION_BATCH = 500

TUNING_RATE = 1e-4
"""Of Adam; 1e-3 costs the reference MLP 4 points in its first epoch."""


@dataclass(frozen=True)
class Task:
    """A trained network and its data.

    Attributes:
        name: Of the network.
        model: Trained.
        data: Fitted to it; the test part has as many samples as are to be measured.
        calibration: From the training part.
        reference: The model's outputs for the calibration samples.
        hits: Whether each test sample is classified correctly.
    """

    name: str
    model: Any
    data: Dataset
    calibration: Calibration
    reference: dict[str, NDArray[Any]]
    hits: NDArray[np.bool_]


def unmeasured() -> NDArray[np.bool_]:
    """Returns what stands for no measurement."""
    return np.zeros(0, bool)


@dataclass(frozen=True)
class Cell:
    """One compressed network, or one that cannot be.

    Attributes:
        network: Its name.
        method: How kernels were cut.
        policy: How ranks were chosen.
        budget: The baseline's parameters over those that are allowed; None where the rank is given.
        params: What it has; None if the budget cannot be reached.
        hits: Whether each test sample is classified correctly, without fine-tuning.
        tuned: Likewise after it; empty if there was none.
        loss: Divergence from the baseline on the calibration data, without fine-tuning.
        seconds: To factorize and build it.
        cpu: Likewise, of all cores together.
    """

    network: str
    method: str
    policy: str
    budget: int | None
    params: int | None = None
    hits: NDArray[np.bool_] = field(default_factory=unmeasured)
    tuned: NDArray[np.bool_] = field(default_factory=unmeasured)
    loss: float = np.nan
    seconds: float = np.nan
    cpu: float = np.nan


@dataclass(frozen=True)
class Timing:
    """What one way to cut the kernels of one network took, in seconds.

    Attributes:
        statistics: Gathering the moments.
        statistics_cpu: Likewise, of all cores together.
        sensitivities: Error curves, and the effect of each kernel's truncation.
    """

    statistics: float
    statistics_cpu: float
    sensitivities: float


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark allocation")
    parser.add_argument(
        "--fashion", default="fashion_mnist", help="Fashion-MNIST as .npz, if Keras cannot fetch it"
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=int,
        default=[2, 4, 10, 20],
        help="10 stands for a tenth of the parameters",
    )
    parser.add_argument("--epochs", type=int, default=1, help="of fine-tuning; 0 skips it")
    parser.add_argument("--tune-samples", type=int, default=10_000, help="of fine-tuning")
    parser.add_argument("--samples", type=int, default=Recipe.calibration, help="of calibration")
    parser.add_argument("--test-samples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="allocation", help="of the files that are written")
    return parser.parse_args(arguments)


def main() -> None:
    """Measures all cells, and prints and writes what came of them."""
    options = parse()
    # Each model is traced anew, of course.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    FOLDER.mkdir(parents=True, exist_ok=True)
    baselines, cells, timings = {}, [], {}
    for name in options.networks:
        task = prepare(name, options)
        baselines[name] = task.hits
        params = task.model.count_params()
        print(f"{name}: {params:,} parameters, accuracy {task.hits.mean():.2%}", flush=True)
        for method in options.methods:
            timing, measured = measure(task, method, options)
            timings[name, method] = timing
            cells += measured
    lines = [
        *table(cells, options),
        "",
        *verdicts(cells, baselines, options),
        "",
        *expectations(cells, baselines, timings),
    ]
    (FOLDER / f"{options.name}.md").write_text("\n".join(lines) + "\n")
    draw(cells, baselines, FOLDER / f"{options.name}.png")
    print("\n".join(["", *lines, "", f"Written to {FOLDER}."]))


# Networks


def prepare(name: str, options: argparse.Namespace) -> Task:
    """Trains a network, or takes it from the folder, and fits its data."""
    data = load_dataset("digits" if name == "digits-mlp" else options.fashion)
    if name == NOTEBOOK:
        model, data = trained_as_in_notebook(data, options.seed)
    elif name.endswith("mlp"):
        untrained = reference_for(data, options.seed)
        data = fitted(data, Network(untrained))
        model, _ = train_reference(
            untrained, data, seed=options.seed, cache=FOLDER, progress=Silent()
        )
    else:
        model, data = trained_convolutional(name, data, options.seed)
    if data.test is None:
        sys.exit(f"Data {data.name!r} have no test part.")
    data = replace(data, test=data.test.take(slice(0, options.test_samples)))
    calibration = calibration_from(Network(model), data, options.samples)
    if calibration is None:
        sys.exit(f"Data {data.name!r} have no training part.")
    return Task(name, model, data, calibration, outputs(model, calibration), hits(model, data.test))


def trained_as_in_notebook(data: Dataset, seed: int) -> tuple[Any, Dataset]:
    """Returns the reference MLP after Adam at its default rate, in large batches, and its data."""
    import keras

    model = reference_for(data, seed)
    data = fitted(data, Network(model))
    key = hashlib.sha256(f"{data.digest} {seed} {NOTEBOOK_EPOCHS} {NOTEBOOK_BATCH}".encode())
    file = FOLDER / f"{NOTEBOOK}-{key.hexdigest()[:16]}.keras"
    if file.exists():
        return keras.models.load_model(file, compile=False), data
    print(f"Training {NOTEBOOK} ...", flush=True)
    optimizer = keras.optimizers.Adam()
    fit(model, *arrays(data.train), optimizer, epochs=NOTEBOOK_EPOCHS, batch=NOTEBOOK_BATCH)
    model.save(file)
    return keras.models.load_model(file, compile=False), data


def trained_convolutional(name: str, data: Dataset, seed: int) -> tuple[Any, Dataset]:
    """Returns a ResNet or VGG-like network, trained with Adam and cosine decay, and its data."""
    import keras

    keras.utils.set_random_seed(seed)
    untrained = {"resnet": small_resnet, "vgg": small_vgg}[name]()
    data = fitted(data, Network(untrained))
    ingredients = f"{untrained.to_json()} {data.digest} {seed} {EPOCHS[name]}"
    key = hashlib.sha256(ingredients.encode()).hexdigest()[:16]
    file = FOLDER / f"{name}-{key}.keras"
    if file.exists():
        return keras.models.load_model(file, compile=False), data
    print(f"Training {name} ...", flush=True)
    x, y = arrays(data.train)
    steps = EPOCHS[name] * -(-len(x) // TRAINING_BATCH)
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    fit(untrained, x, y, keras.optimizers.Adam(schedule), epochs=EPOCHS[name])
    untrained.save(file)
    return untrained, data


def small_resnet() -> Any:
    """Builds a residual network: three stages of two blocks, 16, 32 and 64 channels."""
    import keras

    layers = keras.layers

    def normalized(x: Any, channels: int, size: int, strides: int) -> Any:
        x = layers.Conv2D(channels, size, strides=strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    inputs = keras.Input((28, 28, 1), name="image")
    x = layers.ReLU()(normalized(inputs, 16, 3, 2))
    for channels, first in ((16, 1), (32, 2), (64, 2)):
        for strides in (first, 1):
            y = layers.ReLU()(normalized(x, channels, 3, strides))
            y = normalized(y, channels, 3, 1)
            same = strides == 1 and x.shape[-1] == channels
            shortcut = x if same else normalized(x, channels, 1, strides)
            x = layers.ReLU()(layers.Add()([shortcut, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="probabilities")(x))


def small_vgg() -> Any:
    """Builds four convolutions of up to 128 channels, and a head of Dense(512) and Dense(256)."""
    import keras

    layers = keras.layers
    stack = [keras.Input((28, 28, 1), name="image")]
    for channels in (32, 64, 128):
        stack.append(layers.Conv2D(channels, 3, padding="same", activation="relu"))
        stack.append(layers.MaxPooling2D())
    stack += [
        layers.Conv2D(128, 3, padding="same", activation="relu"),
        layers.Flatten(),
        layers.Dense(512, activation="relu"),
        layers.Dense(256, activation="relu"),
        layers.Dense(10, activation="softmax", name="probabilities"),
    ]
    return keras.Sequential(stack)


def arrays(split: Split | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the only input and the only labels."""
    if split is None:
        sys.exit("The data lack a part.")
    (x,), (y,) = split.inputs.values(), split.labels.values()
    return x, y


def fit(
    model: Any, x: Any, y: Any, optimizer: Any, *, epochs: int, batch: int = TRAINING_BATCH
) -> None:
    """Trains a model in place."""
    # To compile it by XLA would take longer than to train it.
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(x, y, epochs=epochs, batch_size=batch, verbose=0)


def hits(model: Any, split: Split | None) -> NDArray[np.bool_]:
    """Tells of each sample whether it is classified correctly."""
    x, y = arrays(split)
    predicted = model.predict(x, batch_size=PREDICTION_BATCH, verbose=0).argmax(axis=-1)
    return np.asarray(predicted == y)


def outputs(model: Any, calibration: Calibration) -> dict[str, NDArray[Any]]:
    """Returns the outputs for the calibration samples."""
    runner = Network(model).runner()
    chunks = [runner(batch) for batch in calibration.batches()]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


# Measuring


def measure(task: Task, method: str, options: argparse.Namespace) -> tuple[Timing, Iterable[Cell]]:
    """Measures all policies and budgets of one network and one method, with one engine."""
    engine = Engine(Network(task.model), task.calibration, METHODS[method])
    budgets = () if task.name == NOTEBOOK else options.budgets
    statistics = clocked(lambda: engine.moments)
    planner = Planner(engine)
    # A policy comes with all that was measured of the kernels.
    sensitivities = clocked(lambda: planner.policy(PARAMS, planner.whole()) if budgets else None)
    timing = Timing(*statistics, sensitivities[0])
    print(
        f"{task.name}, {method}: statistics {timing.statistics:.1f} s, curves and sensitivities "
        f"{timing.sensitivities:.1f} s",
        flush=True,
    )
    known: dict[tuple[tuple[str, int], ...], Cell] = {}

    def cell(policy: str, budget: int | None, plan: Callable[[], RankPlan]) -> Cell:
        empty = Cell(task.name, method, policy, budget)
        try:
            chosen = plan()
        except UnreachableError:
            return empty
        ranks = tuple(chosen.ranks.items())
        if ranks not in known:
            built: list[Any] = []
            seconds, cpu = clocked(lambda: built.append(engine.factorize(chosen).model))
            timed = replace(empty, seconds=seconds, cpu=cpu)
            known[ranks] = evaluated(task, timed, built[0], options)
        return replace(known[ranks], policy=policy, budget=budget)

    cells = []
    if task.name.endswith("mlp"):
        cells.append(cell(f"rank {RANK}", None, lambda: engine.plan(FixedRank(RANK))))
        print(row(cells[-1]), flush=True)
    for budget in budgets:
        limit = task.model.count_params() // budget
        for policy in options.policies:
            kind = POLICIES[policy]
            cells.append(cell(policy, budget, partial(plan_within, planner, limit, kind)))
            print(row(cells[-1]), flush=True)
    return timing, cells


def plan_within(planner: Planner, limit: int, kind: type[BudgetedPolicy] | None) -> RankPlan:
    """Plans for a number of parameters; None takes the same rank in every layer."""
    if kind is not None:
        return planner.engine.plan(planner.policy(PARAMS, limit, kind))

    def same(rank: int) -> RankPlan:
        return planner.engine.plan(FixedRank(rank))

    def too_large(rank: int) -> bool:
        return sum(layer.params_after for layer in same(rank).layers) > limit

    full = max(c.kernel.full_rank for c in planner.engine.candidates if c.kernel is not None)
    rank = bisect_left(range(1, full + 1), True, key=too_large)
    if not rank:
        raise UnreachableError(f"Rank 1 takes more than {limit:,} parameters.", limit)
    return same(rank)


def evaluated(task: Task, cell: Cell, model: Any, options: argparse.Namespace) -> Cell:
    """Measures a compressed model, then fine-tunes it and measures it again."""
    import keras

    compressed = replace(
        cell,
        params=model.count_params(),
        hits=hits(model, task.data.test),
        loss=divergence(task.reference, outputs(model, task.calibration), task.calibration.logits),
    )
    if not options.epochs:
        return compressed
    keras.utils.set_random_seed(options.seed)
    x, y = (array[: options.tune_samples] for array in arrays(task.data.train))
    fit(model, x, y, keras.optimizers.Adam(TUNING_RATE), epochs=options.epochs)
    return replace(compressed, tuned=hits(model, task.data.test))


def clocked(work: Callable[[], object]) -> tuple[float, float]:
    """Returns the seconds that work takes, and those of all cores together."""
    start, start_cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - start_cpu


# Reporting


def table(cells: Sequence[Cell], options: argparse.Namespace) -> list[str]:
    """Returns a Markdown table; the best accuracies at each budget of a network are bold."""
    best = {}
    for column in ("hits", "tuned"):
        for cell in cells:
            key = cell.network, cell.budget, column
            best[key] = max(best.get(key, 0.0), mean(getattr(cell, column)))
    return [
        f"{options.samples:,} calibration samples; fine-tuning: {options.epochs} epochs of "
        f"{options.tune_samples:,} samples; {options.test_samples:,} test samples at most.",
        "",
        "| network | method | ranks | budget | parameters | accuracy | fine-tuned | divergence "
        "| seconds |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            row(
                cell,
                best[cell.network, cell.budget, "hits"],
                best[cell.network, cell.budget, "tuned"],
            )
            for cell in cells
        ),
    ]


def row(cell: Cell, best: float = np.inf, best_tuned: float = np.inf) -> str:
    """Returns a row of the table."""
    budget = f"1/{cell.budget}" if cell.budget else ""
    if cell.params is None:
        values = ["unreachable", "", "", "", ""]
    else:
        values = [
            f"{cell.params:,}",
            percent(cell.hits, best),
            percent(cell.tuned, best_tuned) if len(cell.tuned) else "",
            f"{cell.loss:.3f}",
            f"{cell.seconds:.1f}",
        ]
    return " | ".join(["|", cell.network, cell.method, cell.policy, budget, *values, "|"])[2:-2]


def percent(correct: NDArray[np.bool_], best: float) -> str:
    """Returns an accuracy, bold if it is the best."""
    accuracy = mean(correct)
    return f"**{accuracy:.2%}**" if accuracy >= best else f"{accuracy:.2%}"


def mean(correct: NDArray[np.bool_]) -> float:
    """Returns the accuracy, 0 where nothing was measured."""
    return float(correct.mean()) if len(correct) else 0.0


def verdicts(
    cells: Sequence[Cell], baselines: dict[str, NDArray[np.bool_]], options: argparse.Namespace
) -> list[str]:
    """Returns a line for each network: what the default gains at each budget, in points."""
    lines = []
    for name, baseline in baselines.items():
        pairs: dict[str, list[str]] = {}
        for budget in options.budgets:
            found = {(c.method, c.policy): c for c in at(cells, name, budget)}
            knapsack, even = found.get((DEFAULT, "knapsack")), found.get((DEFAULT, "uniform"))
            for label, one, other in (
                ("knapsack - uniform", knapsack, even),
                ("knapsack - same rank", knapsack, found.get((DEFAULT, SAME_RANK))),
                ("default - plain SVD", default(found), found.get(("svd", "knapsack"))),
            ):
                if one is not None and other is not None:
                    gain, error = difference(one.hits, other.hits)
                    pairs.setdefault(label, []).append(f"1/{budget}: {gain:+.2f} ± {error:.2f}")
        gains = "; ".join(f"{label}: {', '.join(all_)}" for label, all_ in pairs.items())
        lines.append(f"- {name} ({mean(baseline):.2%}), points without fine-tuning; {gains}")
    return lines


def at(cells: Sequence[Cell], network: str, budget: int | None) -> list[Cell]:
    """Returns the cells of a network at a budget that could be reached."""
    return [
        c for c in cells if c.network == network and c.budget == budget and c.params is not None
    ]


def default(found: Mapping[tuple[str, str], Cell]) -> Cell | None:
    """Returns what ``Planner.best_within`` would take: that of the least divergence."""
    reached = [found[DEFAULT, p] for p in ("knapsack", "energy") if (DEFAULT, p) in found]
    return min(reached, key=lambda cell: cell.loss, default=None)


def difference(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[float, float]:
    """Returns by how many points one is better on the same samples, and its standard error."""
    points = 100 * (one.astype(float) - other)
    return float(points.mean()), float(points.std() / np.sqrt(len(points)))


def expectations(
    cells: Sequence[Cell],
    baselines: dict[str, NDArray[np.bool_]],
    timings: dict[tuple[str, str], Timing],
) -> list[str]:
    """Returns a line for each expectation that the cells can tell of, held or missed."""
    lines = []

    def expect(text: str, held: bool) -> None:
        lines.append(f"- {'held' if held else 'MISSED'}: {text}")

    gains = []
    for network, budget in dict.fromkeys((c.network, c.budget) for c in cells):
        found = {(c.method, c.policy): c for c in at(cells, network, budget)}
        knapsack, even = found.get((DEFAULT, "knapsack")), found.get((DEFAULT, "uniform"))
        if knapsack and even:
            gains.append((*difference(knapsack.hits, even.hits), network, budget))
    if gains:
        gain, error, network, budget = min(gains)
        expect(
            "the knapsack is nowhere worse than uniform ranks by more than two standard errors; "
            f"least gain {gain:+.2f} ± {error:.2f} points, {network} at 1/{budget}",
            all(gain >= -2 * error for gain, error, _, _ in gains),
        )
    tenth = [(gain, network) for gain, _, network, budget in gains if budget == 10]
    if tenth:
        gain, network = max(tenth)
        expect(
            "the knapsack gains 3 points over uniform ranks at a tenth of the parameters; most "
            f"{gain:+.2f}, {network}",
            gain >= 3,
        )
    fixed = {c.method: c for c in at(cells, NOTEBOOK, None)}
    if DEFAULT in fixed:
        baseline, ours = baselines[NOTEBOOK], fixed[DEFAULT]
        short = difference(baseline, ours.hits)[0]
        expect(f"rank {RANK} loses at most 1 point; {short:.2f}", short <= 1)
        timing = timings[NOTEBOOK, DEFAULT]
        wall, cpu = timing.statistics + ours.seconds, timing.statistics_cpu + ours.cpu
        expect(
            "statistics and factors take at most 20 s of an idle machine; of this one "
            f"{wall:.1f} s, and {cpu:.1f} s of all cores together",
            min(wall, cpu) <= 20,
        )
        if "svd" in fixed:
            gain = difference(ours.hits, fixed["svd"].hits)[0]
            expect(f"rank {RANK} gains 4.5 points over plain SVD; {gain:.2f}", gain >= 4.5)
    return lines


def draw(
    cells: Sequence[Cell],
    baselines: dict[str, NDArray[np.bool_]],
    file: Path,
) -> None:
    """Draws accuracy against parameters: a row for each network, colours for methods."""
    styles = dict(zip(POLICIES, (":", (0, (1, 4)), "-.", "--", "-"), strict=True))
    colours = dict(zip(METHODS, ("tab:gray", "tab:orange", "tab:green", "tab:blue"), strict=True))
    columns = {"hits": "without fine-tuning", "tuned": "fine-tuned"}
    figure = Figure(figsize=(13, 4 * len(baselines)), layout="constrained")
    panels = figure.subplots(len(baselines), 2, squeeze=False)
    for line, (network, baseline) in zip(panels, baselines.items(), strict=True):
        for panel, (column, title) in zip(line, columns.items(), strict=True):
            panel.axhline(100 * mean(baseline), color="black", linewidth=0.8)
            panel.set(title=f"{network}, {title}", xscale="log", ylabel="test accuracy, %")
            panel.set_xlabel("parameters")
            for method, colour in colours.items():
                for policy, style in styles.items():
                    points = [
                        (cell.params, 100 * mean(getattr(cell, column)))
                        for cell in cells
                        if (cell.network, cell.method, cell.policy) == (network, method, policy)
                        and len(getattr(cell, column))
                    ]
                    panel.plot(
                        *zip(*points, strict=True) if points else ((), ()),
                        color=colour,
                        linestyle=style,
                        marker=".",
                        label=f"{method}, {policy}",
                    )
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
