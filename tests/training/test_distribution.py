"""Training on several workers, which are real processes, and on several devices."""

import functools
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


def cluster(tmp_path, name, count=2, dies_at=None, **options):
    """Runs workers to their end; the second one may die. Returns exit codes and errors."""
    ports = free_ports(count)
    workers = [
        start(
            environment(ports, index),
            distribute="multiworker",
            output=str(tmp_path / f"{name}-{index}.npz"),
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


@pytest.fixture(scope="module", params=["factored", "adaptive", "projected"])
def alone(request, tmp_path_factory):
    """The weights that one process ends with, and how they were trained."""
    file = tmp_path_factory.mktemp("alone") / "weights.npz"
    process = start(
        environment(), distribute="none", train=request.param, checkpoints=None, output=str(file)
    )
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return request.param, weights_of(file)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The files that two workers end with, by how they train."""

    @functools.cache
    def files(train):
        folder = tmp_path_factory.mktemp(train)
        codes, errors = cluster(folder, "pair", train=train, checkpoints=None)
        assert codes == [0, 0], errors
        return [folder / f"pair-{index}.npz" for index in (0, 1)]

    return files


@pytest.mark.slow
def test_two_workers_end_with_the_same_weights_which_are_those_of_one(alone, pair):
    train, expected = alone
    files = pair(train)
    for file in files:
        with np.load(file) as loaded:
            assert loaded["replicas"] == 2
    first, second = map(weights_of, files)
    for one, other, wanted in zip(first, second, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        # Sums in another order, over some 24 steps of Adam.
        np.testing.assert_allclose(one, wanted, atol=1e-4)


@pytest.mark.slow
def test_two_devices_end_with_the_weights_of_one(alone, tmp_path):
    train, expected = alone
    file = tmp_path / "mirrored.npz"
    options = {"train": train, "checkpoints": None, "output": str(file)}
    process = start(environment(), distribute="mirrored", devices=2, **options)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    with np.load(file) as loaded:
        assert loaded["replicas"] == 2
    for one, wanted in zip(weights_of(file), expected, strict=True):
        np.testing.assert_allclose(one, wanted, atol=1e-4)


@pytest.mark.slow
def test_worker_that_dies_and_comes_back_resumes_from_the_checkpoint(pair, tmp_path):
    whole, _ = pair("factored")
    options = {"train": "factored", "checkpoints": str(tmp_path / "checkpoints")}
    (first, second), errors = cluster(tmp_path, "cut", dies_at=11, **options)
    assert second == SIGKILLED
    assert first != 0
    assert "A worker of the cluster was lost" in errors[0]
    assert (tmp_path / "checkpoints" / "factored.npz").exists()
    codes, errors = cluster(tmp_path, "cut", **options)
    assert codes == [0, 0], errors
    for index in (0, 1):
        resumed = weights_of(tmp_path / f"cut-{index}.npz")
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
