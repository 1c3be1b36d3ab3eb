"""Runs flatbuffers in LiteRT's interpreter, whose options are experimental."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from exporter.formats.base import to_real, to_stored
from exporter.formats.batches import whole_batches
from exporter.graph.signature import Quantization, TensorInfo, Tensors

XNNPACK = "xnnpack"
REFERENCE = "reference"


def observable(content: bytes) -> Any:
    """Opens a flatbuffer in an interpreter that keeps every activation to be read."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    return Interpreter(
        model_content=content,
        # XNNPACK does not show the tensors between its operators.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )


class LiteRTRunner:
    """A flatbuffer opened in LiteRT."""

    def __init__(self, model: Path | bytes, backend: str, threads: int | None = None) -> None:
        """Opens the flatbuffer.

        Args:
            model: The file, which LiteRT maps into memory, or its content.
            backend: ``XNNPACK``, or ``REFERENCE`` for the plain reference kernels. If these lack an
                operator of the model, such as Elu, or compute one wrongly, LiteRT's optimized
                kernels are used for all operators, still without XNNPACK.
            threads: Number of threads; None leaves it to LiteRT.
        """
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        source = {"model_path": str(model)} if isinstance(model, Path) else {"model_content": model}

        def opened(resolver: Any) -> Any:
            return Interpreter(
                **source, experimental_op_resolver_type=resolver, num_threads=threads
            )

        resolvers = {XNNPACK: OpResolverType.AUTO, REFERENCE: OpResolverType.BUILTIN_REF}
        self._open = partial(opened, resolvers[backend])
        try:
            interpreter = self._open()
            suits = backend == XNNPACK or not sums_integers(interpreter)
        except ValueError as error:
            if backend == XNNPACK or "Didn't find op" not in str(error):
                raise
            suits = False
        if not suits:
            self._open = partial(opened, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
            interpreter = self._open()
        self._run = interpreter.get_signature_runner("serving_default")
        self._inputs = _infos(self._run.get_input_details())
        self._outputs = _infos(self._run.get_output_details())

    def __call__(self, inputs: Tensors) -> dict[str, Any]:
        """Predicts a batch."""
        return to_real(self._run(**to_stored(inputs, self._inputs)), self._outputs)

    def prepare(self, inputs: Tensors) -> Callable[[], object]:
        """Binds a batch; see the protocol."""
        # An interpreter of its own: one with a signature runner refuses the bare call.
        return bound(self._open(), self._run.get_input_details(), inputs)


def prepare(path: Path, inputs: Tensors, threads: int) -> Callable[[], object]:
    """Opens any flatbuffer, with or without a signature, and binds inputs in their order there."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    details = dict(zip(inputs, interpreter.get_input_details(), strict=True))
    return bound(interpreter, details, inputs)


def bound(interpreter: Any, details: Mapping[str, Any], inputs: Tensors) -> Callable[[], object]:
    """Binds a batch to an interpreter, by the details of its inputs, and returns the bare call."""
    arrays = to_stored(inputs, _infos(details))
    for name, array in arrays.items():
        interpreter.resize_tensor_input(details[name]["index"], array.shape)
    interpreter.allocate_tensors()
    for name, array in arrays.items():
        interpreter.set_tensor(details[name]["index"], array)
    run: Callable[[], object] = interpreter.invoke
    return run


def fixed_batch(inputs: Mapping[str, Any]) -> int | None:
    """Returns the batch size that the details of inputs insist on; None if any will do."""
    sizes = (int(detail["shape_signature"][0]) for detail in inputs.values())
    return next((size for size in sizes if size > 0), None)


def activations(content: bytes, inputs: Tensors) -> dict[str, Any]:
    """Predicts samples, and returns the real values of all tensors that operators compute."""
    import numpy as np

    interpreter = observable(content)
    run = interpreter.get_signature_runner("serving_default")
    given = run.get_input_details()
    computed = {index for each in interpreter._get_ops_details() for index in each["outputs"]}
    found: dict[str, list[Any]] = {}
    for part in whole_batches(inputs, fixed_batch(given)):
        run(**to_stored(part, _infos(given)))
        for detail in interpreter.get_tensor_details():
            if detail["index"] in computed:
                values = {"": interpreter.get_tensor(detail["index"])}
                name = f"{detail['name']} {detail['index']}"
                found.setdefault(name, []).append(to_real(values, _infos({"": detail}))[""])
    return {name: np.concatenate(parts) for name, parts in found.items() if parts[0].ndim}


def sums_integers(interpreter: Any) -> bool:
    """Tells whether a model sums signed integers, which reference kernels read as unsigned ones.

    This is issue 4079 of google-ai-edge/LiteRT; other kernels have no such fault.
    """
    types = {each["index"]: each["dtype"].__name__ for each in interpreter.get_tensor_details()}
    return any(
        each["op_name"] == "SUM" and types[each["outputs"][0]] in {"int8", "int16"}
        for each in interpreter._get_ops_details()
    )


def _infos(details: Mapping[str, Any]) -> list[TensorInfo]:
    infos = []
    for name, detail in details.items():
        scale, zero_point = detail["quantization"]  # A scale of zero stands for none.
        quantization = Quantization(float(scale), int(zero_point)) if scale else None
        infos.append(TensorInfo(name, (), detail["dtype"].__name__, quantization))
    return infos
