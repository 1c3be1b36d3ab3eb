"""What can be exported to: one file a format, one row each in the table below."""

from exporter.formats.base import Format
from exporter.formats.onnx import Onnx
from exporter.formats.saved_model import SavedModel
from exporter.formats.tflite import TFLite

ALL_FORMATS = "all"

FORMATS: dict[str, Format] = {fmt.name: fmt for fmt in (SavedModel(), TFLite(), Onnx())}

FORMAT_NAMES: tuple[str, ...] = tuple(FORMATS)

__all__ = ["ALL_FORMATS", "FORMATS", "FORMAT_NAMES", "Format"]
