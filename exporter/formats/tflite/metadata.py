"""Writes TensorFlow Lite Metadata, which task libraries and code generators read.

``ModelMetadata`` is a flatbuffer of its own in a buffer of the model with the name
``TFLITE_METADATA``; the files that it refers to are a ZIP archive at the end of the model. The
field numbers are those of ``metadata_schema.fbs`` of tflite-support and MediaPipe. No package that
is compatible with TensorFlow has code generated from it.
"""

import io
import zipfile
from functools import partial
from typing import Any

from exporter.card import ModelCard, Normalization
from exporter.formats.flatbuffers import write, write_offsets, write_table
from exporter.formats.tflite.flatbuffer import read_interface
from exporter.formats.tflite.packing import add_entry, pack, unpack
from exporter.graph.signature import Interface

_METADATA = "TFLITE_METADATA"
_IDENTIFIER = b"M001"
_PARSER_VERSION = "1.0.0"
"""The version of the schema; later ones added no field that is written here."""

_NORMALIZATION_OPTIONS = 1
_TENSOR_AXIS_LABELS = 2


def add_metadata(content: bytes, name: str, card: ModelCard) -> bytes:
    """Returns a TFLite flatbuffer of one signature with the name and card of its model."""
    model = unpack(content)
    root = partial(_model_metadata, name=name, card=card, interface=read_interface(content))
    add_entry(model, _METADATA, write(root, _IDENTIFIER))
    file = io.BytesIO()
    file.write(pack(model))
    if card.labels:
        # Uncompressed, for mobile libraries map it into memory; ZipInfo has a fixed date.
        with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
            for output, labels in card.labels.items():
                archive.writestr(zipfile.ZipInfo(_file_of(output)), "\n".join(labels))
    return file.getvalue()


def _file_of(output: str) -> str:
    return f"{output}_labels.txt"


def _model_metadata(builder: Any, name: str, card: ModelCard, interface: Interface) -> int:
    inputs, outputs = interface
    takes = [_input(builder, info.name, card.normalization.get(info.name)) for info in inputs]
    gives = [_output(builder, info.name, labelled=info.name in card.labels) for info in outputs]
    tensors = {2: write_offsets(builder, takes), 3: write_offsets(builder, gives)}
    subgraph = write_table(builder, tensors)
    fields = {
        0: builder.CreateString(name),
        3: write_offsets(builder, [subgraph]),
        7: builder.CreateString(_PARSER_VERSION),
    }
    if card.description is not None:
        fields[1] = builder.CreateString(card.description)
    return write_table(builder, fields)


def _input(builder: Any, name: str, normalization: Normalization | None) -> int:
    """Writes a TensorMetadata with, where it is known, a ProcessUnit."""
    import numpy as np

    fields = {0: builder.CreateString(name)}
    if normalization is not None:
        mean, std = (
            builder.CreateNumpyVector(np.array(values, np.float32))
            for values in (normalization.means, normalization.stds)
        )
        options = write_table(builder, {0: mean, 1: std})
        unit = write_table(builder, {1: options}, {0: _NORMALIZATION_OPTIONS})
        fields[4] = write_offsets(builder, [unit])
    return write_table(builder, fields)


def _output(builder: Any, name: str, *, labelled: bool) -> int:
    """Writes a TensorMetadata with, if it has labels, an AssociatedFile."""
    fields = {0: builder.CreateString(name)}
    if labelled:
        file = {0: builder.CreateString(_file_of(name))}
        fields[6] = write_offsets(builder, [write_table(builder, file, {2: _TENSOR_AXIS_LABELS})])
    return write_table(builder, fields)
