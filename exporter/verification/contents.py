"""What is in an artifact, read in a process of its own: a parser may crash on a damaged one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter.formats import FORMATS
from exporter.formats.base import StoredTensor
from exporter.graph.signature import Interface, Quantization, TensorInfo
from exporter.isolation import call_in_child


@dataclass(frozen=True)
class Contents:
    """What the parsers of a format find in an artifact.

    Attributes:
        size: Bytes that it takes where it runs.
        batch: The batch size that it insists on; None if any will do.
        figures: Further measurements, by name.
        interface: Its inputs and outputs.
        stored: The constants in it.
    """

    size: int
    batch: int | None
    figures: Mapping[str, int]
    interface: Interface
    stored: tuple[StoredTensor, ...]


def read_contents(format_name: str, path: Path, size: int) -> Contents:
    """Parses an artifact whose files take ``size`` bytes.

    Raises:
        ChildError: If it is damaged.
    """
    job = {"format": format_name, "path": str(path)}
    imports = FORMATS[format_name].imports
    found = call_in_child(f"{__name__}:_read_here", job, imports, data=size)
    inputs, outputs = (tuple(map(_info, infos)) for infos in found["interface"])
    stored = tuple(StoredTensor(n, tuple(shape), *rest) for n, shape, *rest in found["stored"])
    return Contents(found["size"], found["batch"], found["figures"], (inputs, outputs), stored)


def _info(values: dict[str, Any]) -> TensorInfo:
    quantization = values["quantization"] and Quantization(**values["quantization"])
    return TensorInfo(values["name"], tuple(values["shape"]), values["dtype"], quantization)


def _read_here(job: dict[str, Any]) -> dict[str, Any]:
    """Runs in the child of ``read_contents``."""
    fmt, path = FORMATS[job["format"]], Path(job["path"])
    return {
        "size": fmt.size(path),
        "batch": fmt.fixed_batch(path),
        "figures": dict(fmt.figures(path)),
        "interface": [[asdict(info) for info in infos] for infos in fmt.read_interface(path)],
        "stored": [[t.name, t.shape, t.nbytes, t.digest] for t in fmt.stored_tensors(path)],
    }
