"""Compares what is left of a network by channels, by ranks, by both, and by uniform widths.

Uniform widths are what one would do otherwise: the same part of every group of channels stays,
those of the largest absolute sum of the kernels that make them, and nothing is refitted. All of
them have at most the same part of the multiply-accumulates. With ``--epochs``, each is fine-tuned.

    scripts/benchmark channels MODEL DATA [--parts 0.7 0.5 0.25] [--epochs 8] [--seeds 3]
"""

import argparse
import sys
import time

import numpy as np

import exporter
from exporter.commands.budgets import LabelledClasses
from exporter.graph.channels import ChannelGraph
from exporter.graph.fitting import fit_both
from exporter.graph.layers import kind_of
from exporter.graph.loading import load_model
from exporter.graph.network import Network
from exporter.graph.removal import remove_channels
from exporter.lowrank.engine import Compressed
from exporter.lowrank.ranks.policy import RankPlan
from exporter.recipe import Recipe

HALVINGS = 12


def main():
    """Prints a Markdown table; fails where channels by data are worse than uniform widths."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--parts", nargs="+", type=float, default=[0.7, 0.5, 0.25])
    parser.add_argument("--epochs", type=int, default=0, help="of fine-tuning (default: 0)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each (default: 1)")
    options = parser.parse_args()
    source = Recipe(model=options.model, data=options.data).source
    data = exporter.load_dataset(options.data)
    network, dataset = fit_both(Network.of(load_model(options.model)), data, source)
    labelled = held_out(dataset)
    print(f"Baseline: {labelled.accuracy(network):.2%}, {network.macs:,} MACs.\n")
    print("| part of the MACs | by | parameters | MACs | accuracy | fine-tuned | seconds |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    behind = 0
    for part in options.parts:
        found = {}
        for how, make in WAYS.items():
            start = time.perf_counter()
            compressed = make(network, dataset, part)
            seconds = time.perf_counter() - start
            found[how] = labelled.accuracy(compressed.network)
            tuned = ""
            if options.epochs:
                reached = [
                    labelled.accuracy(trained(network, compressed, dataset, options.epochs, seed))
                    for seed in range(options.seeds)
                ]
                tuned = f"{np.mean(reached):.2%}"
            after = compressed.network
            cells = [part, how, f"{after.params:,}", f"{after.macs:,}", f"{found[how]:.2%}", tuned]
            print(f"| {' | '.join(map(str, cells))} | {seconds:.0f} |", flush=True)
        behind += found["channels"] < found["uniform widths"]
    return 1 if behind else 0


def held_out(dataset):
    """Returns the labelled test samples."""
    test = dataset.test
    return LabelledClasses(
        {name: np.asarray(array[:]) for name, array in test.inputs.items()},
        {name: np.asarray(array[:]) for name, array in test.labels.items()},
        dataset.tasks,
    )


def trained(network, compressed, dataset, epochs, seed):
    """Returns a fine-tuned copy."""
    tuned = exporter.finetune(
        compressed.copy(), network.model, data=dataset, epochs=epochs, seed=seed, batch_size=128
    )
    return tuned.compressed.network


def by_channels(network, dataset, part):
    return exporter.compress(network.model, "none", channels=part, target="macs", data=dataset)


def by_ranks(network, dataset, part):
    return exporter.compress(network.model, max_macs=part, data=dataset)


def by_both(network, dataset, part):
    return exporter.compress(network.model, max_macs=part, channels="auto", data=dataset)


def by_uniform_widths(network, dataset, part):
    del dataset
    graph, low, high = ChannelGraph(network), 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        slim = remove_channels(graph, network, smallest(graph, network, middle))
        low, high = (middle, high) if slim.macs <= part * network.macs else (low, middle)
    slim = remove_channels(graph, network, smallest(graph, network, low))
    return Compressed(slim, RankPlan(()), {})


def smallest(graph, network, width):
    """Returns the channels beyond a part of each group, of the smallest absolute sums."""
    removed = []
    for group in graph.groups:
        sums = np.zeros(len(group.ids))
        for path in group.producers:
            layer = network.layers[path]
            axis = -2 if kind_of(layer).channels == "transposed" else -1
            kernel = np.moveaxis(np.abs(layer.kernel.numpy()), axis, -1)
            totals = kernel.reshape(-1, kernel.shape[-1]).sum(axis=0)
            _, made = graph.lanes(path)
            places = {int(channel): place for place, channel in enumerate(made.ids)}
            sums += [totals[places[int(channel)]] for channel in group.ids]
        count = len(group.ids) - max(1, round(width * len(group.ids)))
        removed += group.ids[np.argsort(sums, kind="stable")[:count]].tolist()
    return removed


WAYS = {
    "uniform widths": by_uniform_widths,
    "channels": by_channels,
    "ranks": by_ranks,
    "channels and ranks": by_both,
}


if __name__ == "__main__":
    sys.exit(main())
