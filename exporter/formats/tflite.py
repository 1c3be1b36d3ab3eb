"""TensorFlow Lite (LiteRT), for Android, iOS and small boards."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from exporter.formats.base import (
    ExportOptions,
    Format,
    Interface,
    Quantization,
    Runner,
    StoredTensor,
    Tensors,
)
from exporter.formats.flatbuffer import convert, interface, list_tensors
from exporter.formats.flatbuffer_quantization import VARIANTS
from exporter.formats.tflite_metadata import add_metadata

_XNNPACK = "xnnpack"
_REFERENCE = "reference"
_SIGNATURE = "serving_default"


class TFLite(Format):
    """One flatbuffer with builtin operators alone, a named signature and a dynamic batch."""

    name = "tflite"
    suffix = ".tflite"
    variants = VARIANTS
    backends = (_XNNPACK, _REFERENCE)

    def export(self, model: Any, path: Path, options: ExportOptions) -> None:
        """Writes the flatbuffer; see the base class."""
        path.write_bytes(add_metadata(convert(model, options), model.name, options.card))

    def interface(self, path: Path, model: Any) -> Interface:
        """Reads from the flatbuffer which inputs and outputs are integers."""
        return interface(path.read_bytes(), model)

    def load(self, path: Path, backend: str, threads: int | None = None) -> Runner:
        """Opens the flatbuffer with XNNPACK, or with the plain reference kernels.

        Where the reference kernels lack an operator of the model, as they do Elu, LiteRT's own
        optimized ones stand in for all of them, still without XNNPACK.
        """
        return _LiteRTRunner(path, backend, threads)

    def stored_tensors(self, path: Path) -> list[StoredTensor]:
        """Lists the tensors that have a buffer with content."""
        return list_tensors(path.read_bytes())


class _LiteRTRunner:
    def __init__(self, path: Path, backend: str, threads: int | None) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        def opened(resolver: Any) -> Any:
            return Interpreter(
                model_path=str(path), experimental_op_resolver_type=resolver, num_threads=threads
            )

        if backend == _XNNPACK:
            self._open = partial(opened, OpResolverType.AUTO)
        else:
            self._open = partial(opened, OpResolverType.BUILTIN_REF)
            try:
                self._open()
            except ValueError as error:
                if "Didn't find op" not in str(error):
                    raise
                self._open = partial(opened, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
        self._interpreter = self._open()
        self._signature = self._interpreter.get_signature_runner(_SIGNATURE)
        details = self._signature.get_input_details()
        self._dtypes = {name: detail["dtype"] for name, detail in details.items()}
        self._inputs = _quantizations(details)
        self._outputs = _quantizations(self._signature.get_output_details())

    def _arrays(self, inputs: Tensors) -> dict[str, Any]:
        from exporter.quantization.affine import to_integers

        return {
            name: to_integers(inputs[name], self._inputs[name], dtype)
            if name in self._inputs
            else inputs[name].astype(dtype)
            for name, dtype in self._dtypes.items()
        }

    def __call__(self, inputs: Tensors) -> dict[str, Any]:
        from exporter.quantization.affine import to_reals

        outputs: dict[str, Any] = self._signature(**self._arrays(inputs))
        for name, quantization in self._outputs.items():
            outputs[name] = to_reals(outputs[name], quantization)
        return outputs

    def prepare(self, inputs: Tensors) -> Callable[[], object]:
        # An interpreter of its own: one with a signature runner refuses the bare call.
        interpreter = self._open()
        details = self._signature.get_input_details()
        arrays = self._arrays(inputs)
        for name, array in arrays.items():
            interpreter.resize_tensor_input(details[name]["index"], array.shape)
        interpreter.allocate_tensors()
        for name, array in arrays.items():
            interpreter.set_tensor(details[name]["index"], array)
        run: Callable[[], object] = interpreter.invoke
        return run


def _quantizations(details: dict[str, Any]) -> dict[str, Quantization]:
    """Returns what the integers of inputs or outputs stand for; others have a scale of zero."""
    pairs = {name: detail["quantization"] for name, detail in details.items()}
    return {name: Quantization(float(s), int(zero)) for name, (s, zero) in pairs.items() if s}
