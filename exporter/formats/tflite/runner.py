"""How LiteRT runs a flatbuffer; alone opens its interpreter, whose options are experimental."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from exporter.graph.signature import Quantization, Tensors

XNNPACK = "xnnpack"
REFERENCE = "reference"

_SIGNATURE = "serving_default"


def observable(content: bytes) -> Any:
    """Opens a flatbuffer in an interpreter that keeps every activation to be read."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    return Interpreter(
        model_content=content,
        # XNNPACK keeps what lies between its operators to itself.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )


class LiteRTRunner:
    """A flatbuffer opened in LiteRT."""

    def __init__(self, model: Path | bytes, backend: str, threads: int | None = None) -> None:
        """Opens the flatbuffer.

        Args:
            model: The file, which LiteRT maps into memory, or its content.
            backend: ``XNNPACK``, or ``REFERENCE`` for the plain reference kernels. Where these lack
                an operator of the model, as they do Elu, LiteRT's own optimized ones stand in for
                all of them, still without XNNPACK.
            threads: How many threads may be used; None leaves it to LiteRT.
        """
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        source = {"model_path": str(model)} if isinstance(model, Path) else {"model_content": model}

        def opened(resolver: Any) -> Any:
            return Interpreter(
                **source, experimental_op_resolver_type=resolver, num_threads=threads
            )

        if backend == XNNPACK:
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
        """Predicts a batch."""
        from exporter.quantization.affine import to_reals

        outputs: dict[str, Any] = self._signature(**self._arrays(inputs))
        for name, quantization in self._outputs.items():
            outputs[name] = to_reals(outputs[name], quantization)
        return outputs

    def prepare(self, inputs: Tensors) -> Callable[[], object]:
        """Binds a batch; see the protocol."""
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
