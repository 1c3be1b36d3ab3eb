import numpy as np
import pytest

from exporter.errors import ConversionError
from exporter.formats.base import ExportOptions
from exporter.formats.tflite.flatbuffer import convert
from exporter.formats.tflite.micro import MicroRunner, adapted, measure_arena
from exporter.graph.network import Network


def test_arena_is_found_where_kernels_crash_without_memory(build, samples):
    """As dense layers with a scale a channel do."""
    model = build("tiny")
    calibration = [samples(model, 32)]
    options = ExportOptions("int8", batch=1, granularity="channel", calibration=calibration)
    content = adapted(convert(Network(model), options))
    inputs = samples(model, 1)
    outputs = MicroRunner(content, measure_arena(content))(inputs)
    for name, expected in Network(model).runner(eager=True)(inputs).items():
        np.testing.assert_allclose(outputs[name], expected, atol=0.06)


def test_a_free_batch_may_be_what_takes_an_operator_that_is_lacking(build):
    content = adapted(convert(Network(build("residual")), ExportOptions("float32")))
    with pytest.raises(ConversionError, match="fix the batch by --batch 1"):
        measure_arena(content)
