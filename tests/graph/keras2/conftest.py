"""Files as Keras 2 wrote them, by hand: TensorFlow 2.15 does not install beside Keras 3."""

import io
import json
import zipfile
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from exporter.graph.loading import load_model


def layer(kind, name, calls=(), **config):
    """Returns what a file has of a layer; ``calls`` are its inbound nodes."""
    config = {"name": name, "trainable": True, "dtype": "float32", **config}
    return {"class_name": kind, "config": config, "name": name, "inbound_nodes": list(calls)}


def inputs(*shape, name="x", **config):
    options = {"batch_input_shape": [None, *shape], "dtype": "float32", "sparse": False}
    stored = layer("InputLayer", name, **options, ragged=False, **config)
    del stored["config"]["trainable"]
    return stored


def dense(name, units, calls=(), activation="linear", **config):
    zeros = {"class_name": "Zeros", "config": {"dtype": "float32"}}
    options = {"units": units, "activation": activation, "use_bias": True}
    return layer("Dense", name, calls, **options, bias_initializer=zeros, **config)


def operation(symbol, name, call):
    kind = "SlicingOpLambda" if symbol.endswith("getitem") else "TFOpLambda"
    return layer(kind, name, [call], function=symbol)


def functional(*layers, outputs, inputs=None, name="model"):
    """Returns a Functional model; without ``inputs``, those of its input layers."""
    found = [[x["name"], 0, 0] for x in layers if x["class_name"] == "InputLayer"]
    config = {"name": name, "layers": list(layers)}
    config |= {"input_layers": inputs or found, "output_layers": outputs}
    return {"class_name": "Functional", "config": config}


def sequential(*layers, name="sequential", **config):
    listed = [{k: x[k] for k in ("class_name", "config")} for x in layers]
    return {"class_name": "Sequential", "config": {"name": name, "layers": listed, **config}}


def fed(*names, **arguments):
    """Returns the call of a layer on the results of others."""
    return [[name, 0, 0, arguments] for name in names]


def predict(path, *arrays):
    """Predicts with what a file holds; one array if the model has one output."""
    network = load_model(path)
    names = [info.name for info in network.inputs]
    values = network.runner()(dict(zip(names, arrays, strict=True)))
    found = [np.asarray(value) for value in values.values()]
    return found[0] if len(found) == 1 else found


@pytest.fixture
def arrays():
    """Random arrays of given shapes."""
    rng = np.random.default_rng(0)
    return lambda *shapes: [rng.normal(size=shape).astype("float32") for shape in shapes]


@pytest.fixture
def write_h5(tmp_path):
    """Writes a model; weights are lists of arrays by layer, under names of Keras 2."""

    def write(config, weights=None, version="2.9.0", loss=None, name="model.h5"):
        path = tmp_path / name
        with h5py.File(path, "w") as file:
            file.attrs["keras_version"] = version
            file.attrs["backend"] = "tensorflow"
            file.attrs["model_config"] = json.dumps(config)
            if loss is not None:
                file.attrs["training_config"] = json.dumps({"loss": loss, "metrics": None})
            group = file.create_group("model_weights")
            group.attrs["layer_names"] = [n.encode() for n in weights or {}]
            for layer_name, values in (weights or {}).items():
                named = values
                if isinstance(values, list):
                    named = {f"{layer_name}/{n}:0": value for n, value in enumerate(values)}
                inner = group.create_group(layer_name)
                inner.attrs["weight_names"] = [n.encode() for n in named]
                for weight_name, value in named.items():
                    inner[weight_name] = value
        return str(path)

    return write


@pytest.fixture
def write_keras(tmp_path):
    """Writes a model; weights are lists of arrays by path of their group."""

    def write(config, weights=None, version="2.15.0", loss=None):
        stored = {"module": "keras.src.engine.functional", "registered_name": "Functional"}
        stored |= {**config, "build_config": {"input_shape": None}}
        if loss is not None:
            stored["compile_config"] = {"optimizer": "adam", "loss": loss}
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            for path, values in (weights or {}).items():
                group = file.create_group(f"{path}/vars")
                for number, value in enumerate(values):
                    group[str(number)] = value
        path = tmp_path / "model.keras"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", json.dumps({"keras_version": version}))
            archive.writestr("config.json", json.dumps(stored))
            archive.writestr("model.weights.h5", content.getvalue())
        return str(path)

    return write


@pytest.fixture
def stored(write_h5, write_keras):
    """Makes what a file has of models and layers, writes it, and predicts with it."""
    return SimpleNamespace(
        write_h5=write_h5,
        write_keras=write_keras,
        predict=predict,
        layer=layer,
        inputs=inputs,
        dense=dense,
        operation=operation,
        functional=functional,
        sequential=sequential,
        fed=fed,
    )
