"""The format: steps and arrays in one file, and the lines of NumPy that carry the steps out."""

import json

import numpy as np

from exporter import ConversionError, Format, StoredTensor, TensorInfo

ACTIVATIONS = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "softmax": lambda x: (e := np.exp(x - x.max(-1, keepdims=True))) / e.sum(-1, keepdims=True),
}


def dense(x, kernel, bias=0):
    return x @ kernel + bias


def convolution(x, kernel, bias=0):
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))
    return np.tensordot(windows, kernel, ([3, 4, 5], [2, 0, 1])) + bias


STEPS = {"Dense": dense, "Conv2D": convolution, "Flatten": lambda x: x.reshape(len(x), -1)}


class Program:
    """A file that was opened."""

    def __init__(self, path):
        with np.load(path) as stored:
            self.arrays = dict(stored)
        self.told = json.loads(bytes(self.arrays.pop("program")))

    def __call__(self, inputs):
        x = inputs[self.told["input"][0]]
        for number, (kind, activation) in enumerate(self.told["steps"]):
            names = (f"{number}/kernel", f"{number}/bias")
            weights = (self.arrays[name] for name in names if name in self.arrays)
            x = ACTIVATIONS[activation](STEPS[kind](x, *weights))
        return {self.told["output"][0]: x}

    def prepare(self, inputs):
        return lambda: self(inputs)


class NumpyProgram(Format):
    """A chain of layers that NumPy computes."""

    name = "numpy"
    suffix = ".numpy"
    backends = ("numpy",)
    runtime = ("numpy",)
    threaded = False

    def export(self, network, path, options):
        layers = [x for x in network.model.layers if type(x).__name__ != "InputLayer"]
        ends = (network.signature.inputs, network.signature.outputs)
        if [x for _, _, x in network.links] != layers or any(len(infos) > 1 for infos in ends):
            raise ConversionError("The format 'numpy' takes chains of layers alone.")
        steps, arrays = [], {}
        for number, layer in enumerate(layers):
            kind = type(layer).__name__.removeprefix("Scaled")
            activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
            convolved = kind == "Conv2D" and (layer.padding, layer.strides) != ("valid", (1, 1))
            if kind not in STEPS or activation not in ACTIVATIONS or convolved:
                raise ConversionError(f"The format 'numpy' does not know layer {layer.name!r}.")
            for weight in layer.weights:
                scale = getattr(layer, "scale", 1) if weight.name == "kernel" else 1
                arrays[f"{number}/{weight.name}"] = weight.numpy() * np.float32(scale)
            steps.append((kind, activation))
        told = {"steps": steps}
        for end, (info,) in zip(("input", "output"), ends, strict=True):
            told[end] = (info.name, info.shape, info.dtype)
        with path.open("wb") as file:
            np.savez(file, program=np.frombuffer(json.dumps(told).encode(), np.uint8), **arrays)

    def read_interface(self, path):
        told = Program(path).told
        ends = (told[end] for end in ("input", "output"))
        return tuple((TensorInfo(name, tuple(shape), dtype),) for name, shape, dtype in ends)

    def load(self, path, backend, threads=None):
        return Program(path)

    def stored_tensors(self, path):
        return [StoredTensor.of(name, array) for name, array in Program(path).arrays.items()]
