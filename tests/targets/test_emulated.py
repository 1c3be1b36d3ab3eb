"""Instructions on ARM64, counted in QEMU; skipped where ``scripts/arm64`` was not run."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from exporter.errors import RecipeError
from exporter.formats import FORMATS
from exporter.formats.base import ExportOptions
from exporter.graph.network import Network
from exporter.isolation import ChildError
from exporter.targets import TARGETS
from exporter.targets.base import Subject
from exporter.targets.emulated import FOLDER_VARIABLE

TFLITE = FORMATS["tflite"]


def exported(folder, name, *layers, shape):
    network = Network(keras.Sequential([keras.Input(shape), *layers], name=name))
    path = folder / f"{name}.tflite"
    TFLITE.export(network, path, ExportOptions())
    return Subject(path, network)


def pair(folder, rank):
    convolutions = (keras.layers.Conv2D(rank, 1), keras.layers.Conv2D(64, 1))
    return exported(folder, f"rank{rank}", *convolutions, shape=(16, 16, 64))


def test_tiles_of_the_kernels_are_seen(arm64, tmp_path):
    """A pair of rank 7 takes more instructions than one of rank 8, which fills the tiles."""
    subjects = [pair(tmp_path, rank) for rank in (7, 8, 16)]
    odd, even, double = TARGETS["arm64"].measure(TFLITE, subjects, {}, detailed=False)
    assert odd.value > 1.05 * even.value
    assert 1.5 * even.value < double.value < 2.5 * even.value
    assert TARGETS["arm64"].measure(TFLITE, subjects[1:2], {}, detailed=False) == [even]
    old, _ = TARGETS["arm64-old"].measure(TFLITE, subjects[:2], {}, detailed=False)
    # Every multiplication of four numbers is an instruction, with loads beside it.
    assert old.value > 16 * 16 * 64 * 7 * 2 / 4


def test_weights_that_do_not_fit_into_the_cache_are_missed(arm64, tmp_path):
    large = exported(tmp_path, "large", keras.layers.Dense(1024), shape=(1024,))
    small = exported(tmp_path, "small", keras.layers.Dense(32), shape=(1024,))
    costs = TARGETS["arm64"].measure(TFLITE, [large, small], {})
    missed = [cost.figures["missed_bytes"] for cost in costs]
    assert missed[0] > 0.95 * 4 * 1024**2
    assert missed[1] < 0.1 * missed[0]
    assert "KB missed" in TARGETS["arm64"].text(costs[0])


def test_a_file_that_is_no_model_fails(arm64, tmp_path):
    subject = exported(tmp_path, "broken", keras.layers.Dense(2), shape=(2,))
    subject.path.write_bytes(b"no model")
    with pytest.raises(ChildError, match="emulation ended"):
        TARGETS["arm64"].measure(TFLITE, [subject], {})


def test_an_emulation_ends_with_the_process_that_started_it(arm64, tmp_path):
    subject = exported(tmp_path, "large", keras.layers.Dense(2048), shape=(2048,))
    code = (
        "import sys; from pathlib import Path; from exporter.targets import TARGETS;"
        "TARGETS['arm64']._emulate([Path(sys.argv[1])] * 50, 'cache.so')"
    )
    with subprocess.Popen([sys.executable, "-P", "-c", code, str(subject.path)]) as parent:
        assert within(60, lambda: emulations(subject.path))
        parent.kill()
    assert within(5, lambda: not emulations(subject.path))


def emulations(path):
    """Returns the commands of emulators that run a file."""
    commands = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # It has ended meanwhile.
            commands.append(process.read_bytes())
    return [c for c in commands if c.startswith(b"qemu-") and os.fsencode(path) in c]


def within(seconds, happens):
    end = time.monotonic() + seconds
    while not happens() and time.monotonic() < end:
        time.sleep(0.05)
    return happens()


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RecipeError, match=r"qemu-aarch64.*scripts/arm64.*qemu-user") as caught:
        TARGETS["arm64"].check()
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_inputs_are_within_what_the_model_takes(arm64, dtype, tmp_path):
    """Random indices would be outside the table, and crash the runtime."""
    inputs = keras.Input((8,), dtype=dtype)
    outputs = keras.layers.Embedding(4, 16)(inputs) if dtype == "int32" else inputs
    network = Network(keras.Model(inputs, keras.layers.Dense(4)(outputs)))
    path = tmp_path / "model.tflite"
    TFLITE.export(network, path, ExportOptions())
    (cost,) = TARGETS["arm64"].measure(TFLITE, [Subject(path, network)], {}, detailed=False)
    assert np.isfinite(cost.value)
    assert cost.value > 0
