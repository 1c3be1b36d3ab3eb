"""Compares training at the truncation and training of the factors with the notebook's loop.

The notebook's loop is written here as plainly as it was there: a full SVD of each layer for each
step, one model for the full weights and another one for their truncation. Everything runs on the
same machine in the same call, each job in a process of its own, so that memory is its own.

    scripts/benchmark training --data fashion_mnist.npz [--parts steps time accuracy adaptive]

``steps``: seconds a step at the notebook's batch of 5,000, the truncation held against the
optimum at every step, accuracy after 10 epochs, and memory. ``time``: how long it takes to reach
the accuracy of the notebook's loop, everything counted. ``accuracy``: ranks against a baseline that
is trained as the notebook's, and against a strong one. ``adaptive``: as many parameters, divided in
three ways, against the strong one. Results of each job are kept in
``artifacts/bench/``; remove them to measure anew.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import RecipeError
from exporter.graph.network import Network
from exporter.lowrank.calibration import calibration_from
from exporter.lowrank.engine import Engine
from exporter.lowrank.planner import Planner
from exporter.lowrank.ranks.costs import PARAMS
from exporter.lowrank.ranks.policy import FixedRank
from exporter.options.groups import Cut, Tuning
from exporter.progress import Silent
from exporter.recipe import Recipe
from exporter.training.distribution import strategy_for
from exporter.training.finetune import FineTuner

FOLDER = Path(__file__).resolve().parents[2] / "artifacts" / "bench"

BATCH = 5000
EPOCHS = 10
RANK = 20
"""The notebook's settings."""

FINETUNE = 40
"""Epochs that factors are trained for."""

PROJECTED_SEEDS = 3

QUICK_SAMPLES = 1024
"""What the cut looks at where time counts."""

STRONG_EPOCHS = 15
STRONG_BATCH = 512
STRONG_DROPOUT = 0.3

LIMITS = {("strong", 20): -0.1, ("notebook", 20): 1.0, ("strong", 8): -0.7}
"""Points of accuracy against the baseline that are to be reached, by its kind and the rank."""

DIVISIONS = {
    "fixed": "one rank for all kernels",
    "knapsack": "`--max-params`",
    "adaptive": "`--train adaptive`",
}
"""Ways to divide as many parameters, by name."""

PUBLISHED = (
    "| published: the notebook, MNIST, rank 20 | 97.93 % | 97.45 % | -0.48 |",
    "| published: DLRT, MNIST, 5 layers of 784, 94.3 % removed | 98.53 % | 97.40 % | -1.13 |",
    "| published: DLRT, likewise, 84.1 % removed | 98.53 % | 98.49 % | -0.04 |",
)


def main() -> int:
    """Runs the parts that were asked for, and prints what came of them."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark training")
    parser.add_argument("--data", default="fashion_mnist", help="as for exporter")
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all"
    )
    parser.add_argument("--seeds", type=int, default=5, help="of `accuracy` and `adaptive`")
    parser.add_argument("--ranks", type=int, nargs="+", default=[20, 8], help="likewise")
    parser.add_argument(
        "--divisions",
        nargs="+",
        choices=list(DIVISIONS),
        default=list(DIVISIONS),
        help="of `adaptive`; default: all",
    )
    parser.add_argument(
        "--recipe",
        nargs="+",
        type=setting,
        default=[],
        metavar="FIELD=VALUE",
        help=f"of the training of factors, likewise; default: finetune={FINETUNE}",
    )
    parser.add_argument(
        "--dropout",
        type=float,
        default=0.0,
        help="rate of the dropout that the baseline has, as a model of Keras may, likewise",
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.recipe = {"finetune": FINETUNE, **dict(options.recipe)}
    try:
        Recipe(**options.recipe)
    except RecipeError as error:
        parser.error(str(error))
    FOLDER.mkdir(parents=True, exist_ok=True)
    if options.job:
        job = json.loads(options.job)
        result = JOBS[job.pop("job")](**job)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({**result, "peak": peak}))
        return 0
    held = [PARTS[part](options) for part in options.parts]
    return 0 if all(held) else 1


def setting(text: str) -> tuple[str, Any]:
    """Reads ``batch_size=64``."""
    name, _, value = text.partition("=")
    return name, json.loads(value)


def carry_out(job: str, **values: Any) -> dict[str, Any]:
    """Runs a job in a process of its own, or returns what it returned before."""
    text = json.dumps({"job": job, **values}, sort_keys=True)
    file = FOLDER / f"training-{job}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    if not file.exists():
        command = [sys.executable, "-P", __file__, "--job", text]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(f"The job {text} failed.")
        file.write_text(done.stdout.splitlines()[-1])
    result: dict[str, Any] = json.loads(file.read_text())
    return result


# What is measured, each in a process of its own.


def load(data: str, seed: int) -> tuple[Any, Any, Any]:
    """Returns the fitted data, the training part with validation as in the notebook, the test."""
    import keras

    from exporter.data import load_dataset
    from exporter.graph.fitting import fitted
    from exporter.training.reference import reference_mlp

    keras.utils.set_random_seed(seed)
    dataset = load_dataset(data)
    fitted_data = fitted(dataset, Network(reference_mlp((28, 28), 10)))
    parts = [arrays(part) for part in (fitted_data.train, fitted_data.validation)]
    whole = tuple(np.concatenate(pair) for pair in zip(*parts, strict=True))
    return fitted_data, whole, arrays(fitted_data.test)


def arrays(split: Any) -> tuple[Any, Any]:
    (x,), (y,) = split.inputs.values(), split.labels.values()
    return x, y


def accuracy(model: Any, test: tuple[Any, Any]) -> float:
    x, y = test
    return float((model.predict(x, batch_size=500, verbose=0).argmax(axis=-1) == y).mean())


def baseline(data: str, kind: str, seed: int) -> Any:
    """Returns the reference MLP, trained once; ``notebook`` or ``strong``.

    The strong one has dropout while it is trained, a decaying rate, and the weights of the epoch
    that is best on the validation data.
    """
    import keras

    from exporter.training.reference import reference_mlp

    key = hashlib.sha256(
        f"{data} {kind} {seed} {STRONG_EPOCHS} {STRONG_BATCH} {STRONG_DROPOUT}".encode()
    )
    file = FOLDER / f"mlp-{kind}-{key.hexdigest()[:12]}.keras"
    if file.exists():
        return keras.models.load_model(file, compile=False)
    fitted_data, whole, _ = load(data, seed)
    keras.utils.set_random_seed(seed)
    model = reference_mlp((28, 28), 10)
    if kind == "notebook":
        compile_model(model, keras.optimizers.Adam())
        model.fit(*whole, epochs=EPOCHS, batch_size=BATCH, verbose=0)
    else:
        train, validation = arrays(fitted_data.train), arrays(fitted_data.validation)
        dropped = with_dropout(model, STRONG_DROPOUT, seed)
        steps = STRONG_EPOCHS * -(-len(train[0]) // STRONG_BATCH)
        rate = keras.optimizers.schedules.CosineDecay(1e-3, steps, alpha=0.01)
        compile_model(dropped, keras.optimizers.Adam(rate))
        best = [0.0, model.get_weights()]

        def keep(epoch: int, logs: dict[str, float]) -> None:
            del epoch
            if logs["val_accuracy"] > best[0]:
                best[:] = logs["val_accuracy"], model.get_weights()

        dropped.fit(
            *train,
            validation_data=validation,
            epochs=STRONG_EPOCHS,
            batch_size=STRONG_BATCH,
            verbose=0,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=keep)],
        )
        model.set_weights(best[1])
    model.save(file)
    return model


def with_dropout(model: Any, rate: float, seed: int) -> Any:
    """Returns a model of the same layers and weights that drops hidden activations in training."""
    import keras

    dropped = keras.Sequential([keras.Input((28, 28), name=model.inputs[0].name)])
    for layer in model.layers:
        dropped.add(layer)
        if layer.name.startswith("dense"):
            dropped.add(keras.layers.Dropout(rate, seed=seed))
    return dropped


def compile_model(model: Any, optimizer: Any) -> None:
    # To compile it by XLA would take longer than to train it.
    loss = "sparse_categorical_crossentropy"
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)


def notebook_loop(data: str, seed: int, epochs: int) -> dict[str, Any]:
    """The notebook's custom training loop, as it is there."""
    import keras
    import tensorflow as tf

    from exporter.training.reference import reference_mlp

    full = baseline(data, "notebook", seed)
    (images, labels), test = load(data, seed)[1:]
    truncated = reference_mlp((28, 28), 10)
    loss_fn = keras.losses.SparseCategoricalCrossentropy()
    optimizer = keras.optimizers.Adam()
    seconds, reached = [], []
    for _ in range(epochs):
        for start in range(0, len(images), BATCH):
            begun = time.perf_counter()
            weights = [layer.get_weights() for layer in full.layers[1:]]
            for index in range(1, 6):
                s, u, v = tf.linalg.svd(weights[index - 1][0])
                u, s, v = u[:, :RANK], tf.linalg.diag(s)[:RANK, :RANK], tf.transpose(v[:, :RANK])
                truncated.layers[index].set_weights([u @ s @ v, weights[index - 1][1]])
            truncated.layers[6].set_weights(weights[5])
            with tf.GradientTape() as tape:
                predictions = truncated(images[start : start + BATCH])
                loss = loss_fn(labels[start : start + BATCH], predictions)
            gradients = tape.gradient(loss, truncated.trainable_variables)
            optimizer.apply_gradients(zip(gradients, full.trainable_variables, strict=True))
            seconds.append(time.perf_counter() - begun)
        reached.append(accuracy(truncated, test))
    return {"seconds": seconds, "accuracy": reached}


def projected_loop(data: str, seed: int, epochs: int, checked: bool) -> dict[str, Any]:
    """The same algorithm, by this package; optionally holds each truncation against the optimum."""
    full = baseline(data, "notebook", seed)
    fitted_data, whole, test = load(data, seed)
    # The notebook holds nothing out.
    everything = replace(fitted_data, train=split_of(fitted_data.train, whole), validation=None)
    del fitted_data
    seconds: list[float] = []
    ratios: list[float] = []
    reached: list[float] = []
    steps = -(-len(whole[0]) // BATCH)
    begun = [0.0]

    def on_step(phase: Any, number: int) -> None:
        seconds.append(time.perf_counter() - begun[0])
        if checked:
            ratios.extend(truncation_ratios(phase))
        if number % steps == 0 and not checked:
            reached.append(accuracy(phase.student.model, test))
        begun[0] = time.perf_counter()

    options = {"batch_size": BATCH, "learning_rate": 1e-3, "distill": 0.0, "finetune": epochs}
    engine = Engine(Network(full), None, Cut(method="svd"), seed=seed)
    compressed = engine.factorize(engine.plan(FixedRank(RANK)))
    tuner = tuner_of(engine, everything, Tuning(train="projected", **options), on_step)
    begun[0] = time.perf_counter()
    tuned = tuner.run(compressed)
    return {
        "seconds": seconds,
        "ratios": ratios,
        "accuracy": [*reached[:-1], accuracy(tuned.truncated, test)],
    }


def truncation_ratios(phase: Any) -> list[float]:
    """Error over optimum of the truncations that the next step will predict by."""
    from exporter.lowrank.linalg.subspace import iterate

    bases = [variable for variable in phase.state if "basis" in variable.path]
    ratios = []
    for kernel, basis in zip(phase.state, bases, strict=False):
        matrix = kernel.numpy()
        truncated = iterate(kernel.value, basis.value, RANK)
        error = np.linalg.norm(matrix - (truncated.thin @ truncated.wide).numpy())
        double = matrix.astype(np.float64)
        least = np.linalg.eigvalsh(double.T @ double)[:-RANK].sum()
        ratios.append(float(error / np.sqrt(least)))
    return ratios


def factors_until(data: str, seed: int, target: float) -> dict[str, Any]:
    """Seconds until trained factors reach an accuracy, from nothing but the baseline."""
    full = baseline(data, "notebook", seed)
    fitted_data, _, test = load(data, seed)
    measuring, reached = 0.0, 0.0
    begun = time.perf_counter()

    def measure(model: Any) -> None:
        nonlocal measuring, reached
        paused = time.perf_counter()
        if not reached and accuracy(model, test) >= target:
            reached = paused - begun - measuring
        measuring += time.perf_counter() - paused

    def on_step(phase: Any, number: int) -> None:
        if number % 10 == 0:
            measure(phase.student.model)

    network = Network(full)
    engine = Engine(network, calibration_from(network, fitted_data, QUICK_SAMPLES), seed=seed)
    compressed = engine.factorize(engine.plan(FixedRank(RANK)))
    cut = time.perf_counter() - begun
    measure(compressed.model)
    after_cut = accuracy(compressed.model, test)
    if not reached:
        # A teacher would have to predict all samples first.
        tuner_of(engine, fitted_data, Tuning(finetune=4, distill=0.0), on_step).run(compressed)
    return {"seconds": reached, "cut": cut, "after_cut": after_cut}


def factors(
    data: str,
    kind: str,
    *,
    division: str,
    seed: int,
    rank: int,
    dropout: float,
    recipe: dict[str, Any],
) -> dict[str, Any]:
    """Accuracy of a baseline, and of its factors after the cut and after training.

    They take as many parameters as one rank for all kernels, divided in one way.
    """
    full = baseline(data, kind, seed)
    if dropout:
        full = with_dropout(full, dropout, seed)
    fitted_data, _, test = load(data, seed)
    network = Network(full)
    engine = Engine(network, calibration_from(network, fitted_data, 4096), seed=seed)
    plan = engine.plan(FixedRank(rank))
    if division == "knapsack":
        limit = sum(layer.params_after for layer in plan.layers)
        compressed = Planner(engine).best_within(PARAMS, limit)
    else:
        compressed = engine.factorize(plan)
    cut = accuracy(compressed.model, test)
    train = "adaptive" if division == "adaptive" else "factored"
    tuning = Recipe(**{"train": train, **recipe}).tuning
    tuned = tuner_of(engine, fitted_data, tuning).run(compressed).compressed
    return {
        "baseline": accuracy(full, test),
        "cut": cut,
        "tuned": accuracy(tuned.model, test),
        "params": tuned.model.count_params(),
        "ranks": [layer.rank for layer in tuned.plan.layers],
    }


def split_of(like: Any, pair: tuple[Any, Any]) -> Any:
    (image,), (label,) = like.inputs, like.labels
    return type(like)({image: pair[0]}, {label: pair[1]})


def tuner_of(engine: Any, data: Any, tuning: Any, on_step: Any = None) -> Any:
    strategy = strategy_for("none")
    return FineTuner(engine, data, tuning, strategy=strategy, progress=Silent(), on_step=on_step)


def train_baseline(data: str, kind: str, seed: int) -> dict[str, Any]:
    """Trains a baseline ahead of the jobs that take it, whose memory is to be their own."""
    baseline(data, kind, seed)
    return {}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "train_baseline": train_baseline,
    "notebook_loop": notebook_loop,
    "projected_loop": projected_loop,
    "factors_until": factors_until,
    "factors": factors,
}


# What is printed.


def steps(options: argparse.Namespace) -> bool:
    """Seconds a step, quality of the truncation, accuracy after 10 epochs, memory."""
    seeds = range(PROJECTED_SEEDS)
    for seed in seeds:
        carry_out("train_baseline", data=options.data, kind="notebook", seed=seed)
    ours = [
        carry_out("projected_loop", data=options.data, seed=s, epochs=EPOCHS, checked=False)
        for s in seeds
    ]
    theirs = [carry_out("notebook_loop", data=options.data, seed=s, epochs=EPOCHS) for s in seeds]
    checked = carry_out("projected_loop", data=options.data, seed=0, epochs=EPOCHS, checked=True)
    print("| | notebook's loop | projected | ratio |\n|---|---:|---:|---:|")
    slow, fast = (np.median([j["seconds"] for j in jobs]) for jobs in (theirs, ours))
    print(f"| seconds a step, median | {slow:.2f} | {fast:.3f} | {slow / fast:.1f} |")
    first, second = (sum(j["seconds"] for j in jobs) for jobs in map(summed, (theirs, ours)))
    print(f"| seconds in all, mean | {first:.0f} | {second:.1f} | {first / second:.1f} |")
    accuracies = [np.array([j["accuracy"][-1] for j in jobs]) for jobs in (theirs, ours)]
    lost = 100 * float(accuracies[0].mean() - accuracies[1].mean())
    print(f"| accuracy, mean | {accuracies[0].mean():.2%} | {accuracies[1].mean():.2%} | |")
    memory = [max(j["peak"] for j in jobs) for jobs in (theirs, ours)]
    print(f"| peak GB | {memory[0] / 1e9:.2f} | {memory[1] / 1e9:.2f} | |")
    worst = max(checked["ratios"])
    print(
        f"\nError of the truncation over the optimum, {len(checked['ratios'])}: at most {worst:.6f}"
    )
    return all(
        [
            verdict("at least 7 times faster a step", slow / fast >= 7),
            verdict("every truncation within 1.001 of the optimum", worst <= 1.001),
            verdict("accuracy lower by 0.3 points at most", lost <= 0.3),
            verdict("no more memory", memory[1] <= memory[0]),
        ]
    )


def summed(jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"seconds": sum(job["seconds"]) / len(jobs)} for job in jobs]


def reaching(options: argparse.Namespace) -> bool:
    """Time to the accuracy that the notebook's loop ends with."""
    seeds = range(PROJECTED_SEEDS)
    theirs = [carry_out("notebook_loop", data=options.data, seed=s, epochs=EPOCHS) for s in seeds]
    print("| seed | accuracy | notebook's loop, s | ours, s | of it the cut | after it | ratio |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    ratios = []
    for seed, slow in zip(seeds, theirs, strict=True):
        target, spent = slow["accuracy"][-1], sum(slow["seconds"])
        fast = carry_out("factors_until", data=options.data, seed=seed, target=target)
        ratios.append(spent / fast["seconds"] if fast["seconds"] else 0.0)
        print(
            f"| {seed} | {target:.2%} | {spent:.0f} | {fast['seconds']:.1f} | {fast['cut']:.1f} "
            f"| {fast['after_cut']:.2%} | {ratios[-1]:.0f} |"
        )
    return verdict("at least 30 times sooner (mean)", float(np.mean(ratios)) >= 30)


def trained(
    options: argparse.Namespace, kind: str, division: str, rank: int
) -> list[dict[str, Any]]:
    """Trains factors, once for each seed."""
    return [
        carry_out(
            "factors",
            data=options.data,
            kind=kind,
            division=division,
            seed=seed,
            rank=rank,
            dropout=options.dropout,
            recipe=options.recipe,
        )
        for seed in range(options.seeds)
    ]


def ranks(options: argparse.Namespace) -> bool:
    """Accuracies of compressed models against their baselines."""
    print("| | baseline | compressed | difference, points |\n|---|---:|---:|---:|")
    reached = {}
    for (kind, rank), limit in LIMITS.items():
        if rank not in options.ranks:
            continue
        jobs = trained(options, kind, "fixed", rank)
        before, cut, tuned = (
            100 * np.array([job[name] for job in jobs]) for name in ("baseline", "cut", "tuned")
        )
        for label, after in (("cut alone", cut), ("fine-tuned", tuned)):
            print(
                f"| {kind} baseline, rank {rank}, {label} | {spread(before)} | {spread(after)} "
                f"| {spread(after - before, sign='+')} |",
                flush=True,
            )
        gain = float((tuned - before).mean())
        reached[f"{kind} baseline, rank {rank}: at least {limit:+.1f} points"] = gain >= limit
    print("\n".join(PUBLISHED))
    held = [verdict(text, each) for text, each in reached.items()]
    return all(held)


def divisions(options: argparse.Namespace) -> bool:
    """As many parameters, divided in three ways."""
    print("| budget of | division | ranks by seed | parameters | fine-tuned | difference, points |")
    print("|---|---|---|---:|---:|---:|")
    gains: dict[tuple[int, str], Any] = {}
    for rank in sorted(options.ranks):
        for division in options.divisions:
            jobs = trained(options, "strong", division, rank)
            before, after = (
                100 * np.array([job[n] for job in jobs]) for n in ("baseline", "tuned")
            )
            gains[rank, division] = after - before
            found = dict.fromkeys(
                ", ".join("whole" if r is None else str(r) for r in job["ranks"]) for job in jobs
            )
            params = dict.fromkeys(f"{job['params']:,}" for job in jobs)
            print(
                f"| rank {rank} | {DIVISIONS[division]} | {'; '.join(found)} | {', '.join(params)} "
                f"| {spread(after)} | {spread(after - before, sign='+')} |",
                flush=True,
            )
    held = []
    for rank in sorted(options.ranks):
        means = {name: gains[rank, name].mean() for name in options.divisions}
        adaptive = means.pop("adaptive", None)
        if adaptive is None:
            continue
        if means:
            text = f"budget of rank {rank}: adaptive no worse than the others"
            # What seeds differ by.
            held.append(verdict(text, adaptive >= max(means.values()) - 0.1))
        limit = LIMITS.get(("strong", rank))
        if limit is not None:
            text = f"budget of rank {rank}: adaptive at least {limit:+.1f} points"
            held.append(verdict(text, adaptive >= limit))
    return all(held)


def spread(values: Any, sign: str = "") -> str:
    return f"{values.mean():{sign}.2f} ± {values.std(ddof=len(values) > 1):.2f}"


def verdict(text: str, held: bool) -> bool:
    print(f"- {'held' if held else 'MISSED'}: {text}", flush=True)
    return held


PARTS: dict[str, Callable[[argparse.Namespace], bool]] = {
    "steps": steps,
    "time": reaching,
    "accuracy": ranks,
    "adaptive": divisions,
}

if __name__ == "__main__":
    sys.exit(main())
