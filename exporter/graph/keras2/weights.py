"""Reads weights from where Keras 2 stored them, and checks that none of a model is left out."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from exporter.errors import ModelError
from exporter.graph.keras2.layers import OPERATIONS, Config, safe_name
from exporter.graph.keras2.model import stored_layers, stored_name
from exporter.graph.layers import finalize
from exporter.graph.types import Layer, Model, Variable

_RANDOM_STATE = re.compile(r"(StateVar|seed_generator_state)(:0)?$")


def read_h5(model: Model, stored: Config, group: Any) -> None:
    """Reads the weights of a model from the group ``model_weights`` of an ``.h5`` file.

    Raises:
        ModelError: If they do not fit; the message names the layer.
    """
    for layer, config in _parts(model, stored) or ():
        name = stored_name(config)
        variables = [weight for half in _halves(layer, config) for weight in half]
        arrays = []
        if name in group:
            names = _attribute(group[name], "weight_names")
            arrays = [group[name][n][()] for n in names if not _RANDOM_STATE.search(n)]
        _assign(name, variables, arrays)
        _finish(layer, config)


def read_archive(model: Model, stored: Config, file: Any) -> None:
    """Reads the weights of a model from ``model.weights.h5`` of a ``.keras`` file.

    Raises:
        ModelError: If they do not fit; the message names the layer.
    """
    read: set[int] = set()
    _read_group(model, stored, file, read)
    missing = [weight.path for weight in model.weights if id(weight) not in read]
    if missing:
        raise ModelError(f"the file lacks the weights {', '.join(missing)}.")


def _parts(layer: Layer, stored: Config | None) -> list[tuple[Layer, Config]] | None:
    """Returns the layers of a graph, or within a wrapper, in stored order; None of a plain one."""
    config = (stored or {}).get("config", {})
    if isinstance(config, list) or "layers" in config:
        return [
            (layer.get_layer(safe_name(stored_name(part))), part)
            for part in stored_layers(config)
            if part["class_name"] not in {"InputLayer", *OPERATIONS}
        ]
    if "layer" not in config:
        return None
    names = [n for n in ("forward_layer", "backward_layer") if hasattr(layer, n)] or ["layer"]
    return [(getattr(layer, name), config["layer"]) for name in names]


def _halves(layer: Layer, stored: Config) -> tuple[list[Variable], list[Variable]]:
    """Returns trainable and other weights; all of a graph's trainable ones are stored first."""
    parts = _parts(layer, stored)
    if parts is None:
        return layer.trainable_weights, layer.non_trainable_weights
    own = (layer._trainable_variables, layer._non_trainable_variables)
    halves = [own, *(_halves(*part) for part in parts)]
    if not layer.trainable:
        return [], [weight for half in halves for weights in half for weight in weights]
    trainable, others = ([w for half in halves for w in half[i]] for i in (0, 1))
    return trainable, others


def _finish(layer: Layer, stored: Config) -> None:
    parts = _parts(layer, stored)
    if parts is None:
        finalize(layer)
    for part in parts or ():
        _finish(*part)


def _read_group(layer: Layer, stored: Config | None, group: Any, read: set[int]) -> None:
    """Reads the weights of a layer, then of what its attributes hold."""
    if "vars" in group and len(group["vars"]):
        own = layer._trainable_variables + layer._non_trainable_variables
        variables = group["vars"]
        arrays = [variables[key][()] for key in sorted(variables, key=int)]
        _assign(layer.name, own, arrays)
        read.update(map(id, own))
    parts = _parts(layer, stored)
    graph = parts is not None and "layer" not in (stored or {})["config"]
    for key in group:
        if key == "vars" or not _has_arrays(group[key]):
            continue
        if graph and parts is not None:
            if key in {"layers", "_layer_checkpoint_dependencies"}:
                _read_list(parts, group[key], read)
            continue
        held = vars(layer).get(key)
        if isinstance(held, (list, tuple, Mapping)):
            listed = list(held.values()) if isinstance(held, Mapping) else list(held)
            _read_list([(part, None) for part in listed], group[key], read)
        elif hasattr(held, "trainable_weights"):
            inner = next((config for part, config in parts or () if part is held), None)
            _read_group(held, inner, group[key], read)
    finalize(layer)


def _read_list(parts: Sequence[tuple[Layer, Config | None]], group: Any, read: set[int]) -> None:
    """Reads layers from groups that are named by class and numbered in the layers' order."""
    by_class: dict[str, list[tuple[Layer, Config | None]]] = {}
    for layer, stored in parts:
        if layer.weights:
            kind = stored["class_name"] if stored else type(layer).__name__
            by_class.setdefault(_snake_case(kind), []).append((layer, stored))
    for word, layers in by_class.items():
        found = [(re.fullmatch(rf"{word}(?:_(\d+))?", key), key) for key in group]
        numbered = sorted(
            (int(m[1] or 0), key) for m, key in found if m and _has_arrays(group[key])
        )
        if len(numbered) != len(layers):
            names = [layer.name for layer, _ in layers]
            raise ModelError(f"the file has weights of {len(numbered)} layers for {names}.")
        for (layer, stored), (_, key) in zip(layers, numbered, strict=True):
            _read_group(layer, stored, group[key], read)


def _has_arrays(group: Any) -> bool:
    return any(_has_arrays(group[k]) if hasattr(group[k], "keys") else True for k in group)


def _snake_case(name: str) -> str:
    """Writes the name of a class as Keras writes it in files."""
    name = re.sub(r"\W+", "", name.rpartition(">")[2])
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _assign(name: str, variables: Sequence[Variable], arrays: Sequence[Any]) -> None:
    expected, found = ([tuple(a.shape) for a in part] for part in (variables, arrays))
    if expected != found:
        raise ModelError(
            f"layer {name!r} needs weights of the shapes {expected}; the file has {found}."
        )
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def _attribute(group: Any, name: str) -> list[str]:
    """Reads a list of names, which is stored in numbered pieces if it is long."""
    pieces = [name] if name in group.attrs else []
    while f"{name}{len(pieces)}" in group.attrs:
        pieces.append(f"{name}{len(pieces)}")
    values = [value for piece in pieces for value in group.attrs[piece]]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]
