"""Training on several workers, which are real processes, and on several devices."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from exporter.errors import RecipeError
from exporter.training.distribution import (
    clipped,
    from_first,
    is_chief,
    shared_out,
    strategy_for,
    worker_index,
)

WORKER = Path(__file__).with_name("worker.py")
SIGKILLED = -9
TRAINS = ["factored", "adaptive", "projected"]


def environment(ports=(), index=0):
    root = str(Path(__file__).parents[2])
    values = {**os.environ, "PYTHONPATH": root, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if ports:
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        task = {"type": "worker", "index": index}
        values["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    return values


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start(env, **options):
    return subprocess.Popen(
        [sys.executable, "-P", str(WORKER), json.dumps(options)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors


def cluster(tmp_path, count=2, dies_at=None, **options):
    """Runs workers to their end; the second one may die. Returns exit codes and errors."""
    ports = free_ports(count)
    workers = [
        start(
            environment(ports, index),
            distribute="multiworker",
            output=str(tmp_path / f"{{}}-{index}.npz"),
            dies_at=dies_at if index == 1 else None,
            **options,
        )
        for index in range(count)
    ]
    ends = [worker.communicate(timeout=200) for worker in workers]
    return [worker.returncode for worker in workers], [errors for _, errors in ends]


def weights_of(file):
    with np.load(file) as loaded:
        return [loaded[name] for name in loaded.files if name.startswith("arr")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Files of the weights that one process ends with, by how it trains."""
    folder = tmp_path_factory.mktemp("alone")
    options = {"trains": TRAINS, "checkpoints": None, "output": str(folder / "{}.npz")}
    finish(start(environment(), distribute="none", **options))
    return {train: folder / f"{train}.npz" for train in TRAINS}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The files that two workers end with, by how they train."""
    folder = tmp_path_factory.mktemp("pair")
    codes, errors = cluster(folder, trains=TRAINS, checkpoints=None)
    assert codes == [0, 0], errors
    return {train: [folder / f"{train}-{index}.npz" for index in (0, 1)] for train in TRAINS}


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    """The file that a process with two devices ends with, by how it trains."""
    folder = tmp_path_factory.mktemp("mirrored")
    options = {"trains": TRAINS, "checkpoints": None, "output": str(folder / "{}.npz")}
    finish(start(environment(), distribute="mirrored", devices=2, **options))
    return {train: folder / f"{train}.npz" for train in TRAINS}


@pytest.mark.slow
@pytest.mark.parametrize("train", TRAINS)
def test_two_workers_end_with_the_same_weights_which_are_those_of_one(train, alone, pair):
    for file in pair[train]:
        with np.load(file) as loaded:
            assert loaded["replicas"] == 2
    first, second = map(weights_of, pair[train])
    for one, other, wanted in zip(first, second, weights_of(alone[train]), strict=True):
        np.testing.assert_array_equal(one, other)
        # Sums in another order, over some 24 steps of Adam.
        np.testing.assert_allclose(one, wanted, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("train", TRAINS)
def test_two_devices_end_with_the_weights_of_one(train, alone, mirrored):
    with np.load(mirrored[train]) as loaded:
        assert loaded["replicas"] == 2
    for one, wanted in zip(weights_of(mirrored[train]), weights_of(alone[train]), strict=True):
        np.testing.assert_allclose(one, wanted, atol=1e-4)


@pytest.mark.slow
def test_worker_that_dies_and_comes_back_resumes_from_the_checkpoint(pair, tmp_path):
    whole, _ = pair["factored"]
    options = {"trains": ["factored"], "checkpoints": str(tmp_path / "checkpoints")}
    (first, second), errors = cluster(tmp_path, dies_at=11, **options)
    assert second == SIGKILLED
    assert first != 0
    assert "A worker of the cluster was lost" in errors[0]
    assert (tmp_path / "checkpoints" / "factored.npz").exists()
    codes, errors = cluster(tmp_path, **options)
    assert codes == [0, 0], errors
    for index in (0, 1):
        resumed = weights_of(tmp_path / f"factored-{index}.npz")
        for one, other in zip(weights_of(whole), resumed, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_gradients_are_clipped_together(scale):
    rng = np.random.default_rng(0)
    gradients = [scale * rng.normal(size=shape) for shape in ((3, 4), (5,))]
    rows = tf.IndexedSlices(tf.constant([[scale], [scale]], tf.float64), [0, 0], [2, 1])
    given = [*map(tf.constant, gradients), None, rows]
    *dense, nothing, sparse = clipped(given, 0.5)
    # Rows of the same index are one row of their sum.
    norm = np.sqrt(sum(np.sum(each**2) for each in gradients) + (2 * scale) ** 2)
    factor = min(1.0, 0.5 / norm)
    for one, other in zip(dense, gradients, strict=True):
        np.testing.assert_allclose(one, factor * other)
    assert nothing is None
    np.testing.assert_allclose(tf.convert_to_tensor(sparse), [[2 * factor * scale], [0]])


def test_one_process_is_its_own_chief_and_takes_all():
    strategy = strategy_for("none")
    assert is_chief(strategy)
    batch = {"x": np.arange(5)}
    assert shared_out(strategy, batch, 5) is batch
    np.testing.assert_array_equal(from_first(strategy, [np.arange(3)])[0], np.arange(3))


def test_caller_may_have_entered_a_strategy():
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        assert strategy_for("none") is strategy


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "each of them needs TF_CONFIG in its environment, such as"),
        ("{", "TF_CONFIG must read like"),
        ('{"cluster": {"worker": []}}', "TF_CONFIG must read like"),
        (
            '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 2}}',
            "must name one of its 2 workers as the task. Received: 'worker' 2.",
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
            "Received: 'ps' 0.",
        ),
    ],
)
def test_environment_that_describes_no_cluster_is_refused(config, message, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(RecipeError, match=message):
        worker_index()
    with pytest.raises(RecipeError, match=message):
        strategy_for("multiworker")
