"""The table of formats: one file and one row for each."""

from exporter.formats.base import Format
from exporter.formats.onnx.onnx import Onnx
from exporter.formats.onnx.ort import Ort
from exporter.formats.saved_model import SavedModel
from exporter.formats.tflite.c_source import CSource
from exporter.formats.tflite.tflite import TFLite

FORMATS: dict[str, Format] = {
    fmt.name: fmt for fmt in (SavedModel(), TFLite(), Onnx(), Ort(), CSource())
}

FORMAT_NAMES: tuple[str, ...] = tuple(FORMATS)

VARIANT_NAMES: tuple[str, ...] = tuple(
    dict.fromkeys(variant.name for fmt in FORMATS.values() for variant in fmt.variants)
)
"""Variants of all formats, the one that is not quantized first."""

__all__ = ["FORMATS", "FORMAT_NAMES", "VARIANT_NAMES", "Format"]
