"""The format: imported by every command, so its runtime is imported within methods."""

import json

from exporter import ConversionError, Format, StoredTensor, TensorInfo


class NumpyProgram(Format):
    """A chain of layers that NumPy computes."""

    name = "numpy"
    suffix = ".numpy"
    backends = ("numpy",)
    runtime = ("numpy",)
    threaded = False

    def export(self, network, path, options):
        import numpy as np

        from exporter_example.program import ACTIVATIONS, STEPS

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
        told = self.load(path, "numpy").told
        ends = (told[end] for end in ("input", "output"))
        return tuple((TensorInfo(name, tuple(shape), dtype),) for name, shape, dtype in ends)

    def load(self, path, backend, threads=None):
        from exporter_example.program import Program

        return Program(path)

    def stored_tensors(self, path):
        return [
            StoredTensor.of(name, array) for name, array in self.load(path, "numpy").arrays.items()
        ]
