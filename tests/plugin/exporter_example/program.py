"""The runtime: a file of steps and arrays, and the lines of NumPy that carry the steps out."""

import json

import numpy as np

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


STEPS = {
    "Dense": dense,
    "Conv2D": convolution,
    "Flatten": lambda x: x.reshape(len(x), -1),
    "Activation": lambda x: x,
}


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
